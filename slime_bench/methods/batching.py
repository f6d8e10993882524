"""Several trials of a method in one fit: their steps share the passes of the frozen backbone.

Each trial keeps its own parameters, data, random streams, curve and best state; see `SegmentationMethod.may_differ`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import nn

from slime_bench.methods.base import SegmentationMethod


class Together(lightning.LightningModule):
    """The trials as one Lightning module. A batch is a list of the trials' own batches.

    Args:
        methods: at least one, of one class, on one backbone, with as many steps each.
    """

    def __init__(self, methods: Sequence[SegmentationMethod]) -> None:
        super().__init__()
        self.methods = nn.ModuleList(methods)
        self.epochs, self.max_steps = methods[0].epochs, methods[0].max_steps
        self.curve = Curves(self.members)
        #: for the line of progress, which shows no single trial's
        self.best_epoch: int | None = None
        self.best_score = -1.0
        self._first_groups: list[int] = []

    @property
    def members(self) -> list[Any]:
        return list(self.methods)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimiser with a group of parameters for each trial, which keeps its own settings.

        Raises:
            TypeError: trials whose optimisers are not of one class.
        """
        optimisers: list[Any] = [each.configure_optimizers() for each in self.members]
        kinds = {type(each) for each in optimisers}
        if len(kinds) > 1:
            raise TypeError(f"trials of one batch need one optimiser, found {sorted(kind.__name__ for kind in kinds)}")
        groups = [[dict(group) for group in each.param_groups] for each in optimisers]
        self._first_groups = [sum(map(len, groups[:place])) for place in range(len(groups))]
        return kinds.pop()([group for own in groups for group in own])

    def training_step(self, batch: Sequence[Mapping[str, Any]], _: int) -> torch.Tensor:
        steps = type(self.members[0]).steps_together(self.members, batch)
        for method, terms, own in zip(self.members, steps, batch, strict=True):
            for name, value in terms.items():
                self._add(method, f"train/{name}", value.detach(), len(own["id"]))
        return torch.stack([terms["loss"] for terms in steps]).sum()

    def on_train_batch_end(self, *_: Any) -> None:
        groups = self.trainer.optimizers[0].param_groups
        for method, place in zip(self.members, self._first_groups, strict=True):
            self._add(method, "train/lr", torch.tensor(groups[place]["lr"], dtype=torch.float64))

    def validation_step(self, batch: Sequence[Mapping[str, Any]], _: int) -> None:
        images, ids = ([own[name] for own in batch] for name in ("image", "id"))
        found = type(self.members[0]).predictions_together(self.members, images, ids)
        for method, prediction, own in zip(self.members, found, batch, strict=True):
            method.observe(prediction, own["label"])

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        for method in self.members:
            score = method.keep_best(self.current_epoch)
            if score is not None:
                self._add(method, "val/miou", 100 * score)

    def learned_state(self) -> dict[str, torch.Tensor]:
        """Those of all trials, the trial's place before each name."""
        return {
            f"{place}.{name}": value
            for place, method in enumerate(self.members)
            for name, value in method.learned_state().items()
        }

    def training_state(self) -> dict[str, Any]:
        """For a checkpoint of the whole batch; see `SegmentationMethod.training_state`."""
        return {"learned": self.learned_state(), "members": [each.training_state() for each in self.members]}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        for method, own in zip(self.members, state["members"], strict=True):
            method.load_training_state(own)

    def _add(self, method: Any, name: str, value: Any, weight: float = 1.0) -> None:
        """What `SegmentationMethod.log` does; loggers get it when the trial itself goes on."""
        step = self.trainer.fit_loop.epoch_loop._batches_that_stepped
        method.curve.add(step, self.current_epoch, name, value, weight)


class Curves:
    """The curves of several trials as one, for a checkpoint."""

    def __init__(self, methods: Sequence[Any]) -> None:
        self._curves = [each.curve for each in methods]

    def state(self) -> list[dict[str, Any]]:
        return [each.state() for each in self._curves]

    def load_state(self, state: Sequence[Mapping[str, Any]]) -> None:
        for curve, own in zip(self._curves, state, strict=True):
            curve.load_state(own)


class TogetherData(lightning.LightningDataModule):
    """The support and validation batches of several trials, side by side.

    Args:
        modules: their data modules, set up, with as many batches each.
    """

    def __init__(self, modules: Sequence[Any]) -> None:
        super().__init__()
        self.modules = list(modules)

    @property
    def first_batch(self) -> int:
        """See `FolderDataModule.first_batch`."""
        return int(self.modules[0].first_batch)

    @first_batch.setter
    def first_batch(self, value: int) -> None:
        for each in self.modules:
            each.first_batch = value

    def train_dataloader(self) -> CombinedLoader:
        return CombinedLoader([each.train_dataloader() for each in self.modules], "max_size")

    def val_dataloader(self) -> CombinedLoader | list[Any]:
        loaders = [each.val_dataloader() for each in self.modules]
        return CombinedLoader(loaders, "max_size") if all(len(each) > 0 for each in loaders) else []
