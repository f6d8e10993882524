"""Several trials of a method in one fit: their steps share the passes of the frozen backbone.

Each trial keeps its own parameters, data, random streams, curve and best state; see `MethodDescription.may_differ`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import nn

from slime_bench.methods.base import SegmentationMethod, batch_on, label_maps


class BatchedMethod(SegmentationMethod):
    """A method that computes T >= 1 trials at once; one trial by itself is T = 1.

    The trials are on one backbone and differ in their seed, their data and the settings of `may_differ` alone.
    """

    @classmethod
    @abstractmethod
    def training_terms(
        cls, trials: Sequence[Any], batches: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, torch.Tensor]]:
        """One step: each trial's named terms, `loss` among them, whose gradient reaches its own parameters alone.

        Args:
            trials: T methods of this class. batches: of each, as `training_step` takes it, of any size.
        """

    @classmethod
    @abstractmethod
    def score_maps(
        cls, trials: Sequence[Any], images: Sequence[torch.Tensor], ids: Sequence[Sequence[str]]
    ) -> list[torch.Tensor]:
        """`scores` of each trial, whose images and ids are given; all images are of one size."""

    @classmethod
    @abstractmethod
    def trials_per_batch(cls, backbone: Any, image_size: int, images: int, device: str) -> int:
        """How many trials one batch should hold, at least 1: as many as pay, and fit the memory.

        Args:
            backbone: loaded. image_size: side in pixels. images: of a trial's step. device: `cpu`, `cuda` or `mps`.
        """

    def training_step(self, batch: Mapping[str, Any], _: int) -> torch.Tensor:
        """One step of this trial; logs its terms."""
        (terms,) = self.training_terms([self], [batch])
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()}, batch_size=len(batch["id"]))
        return terms["loss"]

    @torch.no_grad()
    def scores(self, images: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        return self.score_maps([self], [images], [ids])[0]


class TrialBatch(lightning.LightningModule):
    """The trials as one Lightning module. A batch is a list of the trials' own batches.

    Args:
        trials: at least one, of one class, on one backbone, with as many steps each.
    """

    def __init__(self, trials: Sequence[BatchedMethod]) -> None:
        super().__init__()
        self.methods = nn.ModuleList(trials)
        self.epochs, self.max_steps = trials[0].epochs, trials[0].max_steps
        #: for the line of progress, which shows no single trial's
        self.best_epoch: int | None = None
        self.best_score = -1.0

    @property
    def trials(self) -> list[Any]:
        return list(self.methods)

    def transfer_batch_to_device(
        self, batch: Sequence[Mapping[str, Any]], device: torch.device, _: int
    ) -> list[dict[str, Any]]:
        return [batch_on(own, device, self.training) for own in batch]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimiser with groups of parameters for each trial, which keep their own settings.

        Raises:
            TypeError: trials whose optimisers are not of one class.
        """
        optimisers: list[Any] = [each.configure_optimizers() for each in self.trials]
        kinds = {type(each) for each in optimisers}
        if len(kinds) > 1:
            raise TypeError(f"trials of one batch need one optimiser, found {sorted(kind.__name__ for kind in kinds)}")
        groups = [{**group, "trial": place} for place, each in enumerate(optimisers) for group in each.param_groups]
        return kinds.pop()(groups)

    def training_step(self, batch: Sequence[Mapping[str, Any]], _: int) -> torch.Tensor:
        steps = self.trials[0].training_terms(self.trials, batch)
        for trial, terms, own in zip(self.trials, steps, batch, strict=True):
            for name, value in terms.items():
                self._add(trial, f"train/{name}", value.detach(), len(own["id"]))
        return torch.stack([terms["loss"] for terms in steps]).sum()

    def on_train_batch_end(self, *_: Any) -> None:
        rates = {group["trial"]: group["lr"] for group in reversed(self.trainer.optimizers[0].param_groups)}
        for place, trial in enumerate(self.trials):
            self._add(trial, "train/lr", torch.tensor(rates[place], dtype=torch.float64))

    def validation_step(self, batch: Sequence[Mapping[str, Any]], _: int) -> None:
        images, ids = ([own[name] for own in batch] for name in ("image", "id"))
        found = self.trials[0].score_maps(self.trials, images, ids)
        for trial, scores, own in zip(self.trials, found, batch, strict=True):
            trial.observe(label_maps(trial.refine(scores, own["image"])), own["label"])

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        for trial in self.trials:
            score = trial.keep_best(self.current_epoch)
            if score is not None:
                self._add(trial, "val/miou", 100 * score)

    def learned_state(self) -> dict[str, torch.Tensor]:
        """Those of all trials, the trial's place before each name."""
        return {
            f"{place}.{name}": value
            for place, trial in enumerate(self.trials)
            for name, value in trial.learned_state().items()
        }

    def training_state(self) -> dict[str, Any]:
        """For a checkpoint of the whole batch; see `SegmentationMethod.training_state`."""
        return {"learned": self.learned_state(), "trials": [each.training_state() for each in self.trials]}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        for trial, own in zip(self.trials, state["trials"], strict=True):
            trial.load_training_state(own)

    def _add(self, trial: SegmentationMethod, name: str, value: Any, weight: float = 1.0) -> None:
        """What `SegmentationMethod.log` does; loggers get it when the trial itself goes on."""
        step = self.trainer.fit_loop.epoch_loop._batches_that_stepped
        trial.curve.add(step, self.current_epoch, name, value, weight)


class BatchData(lightning.LightningDataModule):
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
