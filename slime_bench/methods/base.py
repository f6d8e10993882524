"""What every method shares: validation chooses the best learned state, testing counts intersections and unions.

A method is one Python file with a subclass of `SegmentationMethod` and one YAML file in `conf/method`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning
import torch

from slime_bench.errors import ConfigError
from slime_bench.methods.curve import Curve
from slime_bench.methods.description import MethodDescription
from slime_bench.metrics.iou import IouMetric, image_score
from slime_bench.places import onto
from slime_bench.refine.config import NoRefinement, Refinement


def label_maps(scores: torch.Tensor) -> torch.Tensor:
    """The argmax over K, the first of equal ones: score maps float [B,K,H,W] -> label maps int64 [B,H,W].

    By `max`, which on a CPU takes a ninth of the time of `argmax` where K is not the last axis.
    """
    return scores.max(dim=1).indices


def batch_on(batch: Mapping[str, Any], device: torch.device, training: bool) -> dict[str, Any]:
    """A batch whose images are on the device, and whose label maps are there to be trained on. Keys of random draws,
    and labels that are only counted, stay on the CPU, where they are wanted: nobody waits for a GPU to give them back.
    """
    moved = ("image", "label") if training else ("image",)
    return {**batch, **{name: onto(batch[name], device) for name in moved}}


def foreign_state(state: Mapping[str, torch.Tensor], expected: str) -> ConfigError:
    """The error of `load_learned_state` for a state that none of this method's trials can have made."""
    names = sorted(state)
    return ConfigError(
        "the learned state is of another method, backbone or class list", path="state.safetensors",
        found=f"{len(names)} tensors" + ": " * bool(names) + ", ".join(names[:4]) + ", ..." * (len(names) > 4),
        expected=expected, remedy="use the classes, the method, its settings and the backbone that it was made with",
    )  # fmt: skip


def check_shapes(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], expected: str) -> None:
    """That a state has the method's own tensors, by name and shape.

    Raises:
        ConfigError: see `foreign_state`.
    """
    found, wanted = ({name: value.shape for name, value in each.items()} for each in (state, own))
    if found != wanted:
        raise foreign_state(state, expected)


class SegmentationMethod(MethodDescription, lightning.LightningModule, ABC):
    """Base of all methods. Batches are dictionaries: image float32 [B,3,H,W] RGB in [0,1], label int64 [B,H,W]
    (255 = ignore), id list of B str, epoch int64 [B]; what of them is on the trial's device: `batch_on`.

    Args:
        classes: the K class names, `background` first.
        keep_maps: number of test images whose maps are kept in `examples`, for the qualitative figure.
    """

    #: passes over the support set; 0 for a method that learns nothing
    epochs: int = 0
    #: ends training early
    max_steps: int | None = None
    #: support images per training step, as they are and in the order of the draw; None for augmented batches of
    #: `data.train_batch_size` in random order
    support_group: int | None = None

    def __init__(self, classes: Sequence[str], keep_maps: int = 0) -> None:
        super().__init__()
        self.classes = tuple(classes)
        #: of the score maps, before the argmax; the trial sets its own
        self.refine: Refinement = NoRefinement()
        self.keep_maps = keep_maps
        #: a method that takes minutes for a batch of images calls it with how much is done and how much there is to do
        self.progress: Callable[[int, int], None] = lambda done, total: None
        self.best_score = -1.0
        self.best_epoch: int | None = None
        self.test_ids: list[str] = []
        self.examples: list[dict[str, torch.Tensor]] = []
        self.test_metric = IouMetric(len(self.classes))
        self.curve = Curve()
        self._val_scores: list[float] = []
        self._best_state: dict[str, torch.Tensor] = {}

    def prepare(self, data: Any, device: str) -> None:
        """What comes before training and test, on the device of the trial; it may look at the data module's images.

        Args:
            data: the trial's data module, set up. device: `cpu`, `cuda` or `mps`.
        """

    def restore(self) -> None:
        """Undo every change of the backbone, when the trial is over or has failed."""

    def extra_files(self) -> dict[str, bytes]:
        """Files that the method leaves in the trial's folder, by name."""
        return {}

    @abstractmethod
    def scores(self, images: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """Score maps of unseen images, float [B,K,H,W] at the images' size; the prediction is the argmax over K,
        after the trial's refinement.

        Args:
            images: float32 [B,3,H,W] RGB in [0,1]. ids: B names, from which any random draw of an image is keyed.
        """

    @abstractmethod
    def learned_state(self) -> dict[str, torch.Tensor]:
        """The tensors that training changes, by name; all that inference needs besides the frozen backbone."""

    @abstractmethod
    def load_learned_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over a state of `learned_state`."""

    def training_state(self) -> dict[str, Any]:
        """All that training changes in the method, for a checkpoint: `learned`, the last learned state, and tensors and
        plain values in any nesting. A method that keeps more than its learned state from step to step adds it here."""
        return {
            "learned": self.learned_state(),
            "best": self._best_state,
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "curve": self.curve.state(),
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Take over a state of `training_state`."""
        self.load_learned_state(state["learned"])
        self._best_state = dict(state["best"])
        self.best_score, self.best_epoch = state["best_score"], state["best_epoch"]
        self.curve.load_state(state["curve"])

    def refined_scores(self, images: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """`scores` after the trial's refinement, float [B,K,H,W]."""
        return self.refine(self.scores(images, ids), images)

    def predict(self, images: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """Label maps int64 [B,H,W] of images float32 [B,3,H,W]."""
        return label_maps(self.refined_scores(images, ids))

    def transfer_batch_to_device(self, batch: Mapping[str, Any], device: torch.device, _: int) -> dict[str, Any]:
        return batch_on(batch, device, self.training)

    def use_best_state(self) -> None:
        """Go back to the state with the best validation score; without a validation the last state stays."""
        if self._best_state:
            self.load_learned_state(self._best_state)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Lightning's, for whatever logger there is; during the fit the number also goes into the trial's curves."""
        super().log(name, value, *args, **kwargs)
        trainer = self._trainer  # None in a test of one step
        if trainer is None or not (trainer.training or trainer.validating) or kwargs.get("logger") is False:
            return
        # Loggers get this count, which a validation shares with the step before it; `global_step` is then one ahead.
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        self.curve.add(step, self.current_epoch, name, value, kwargs.get("batch_size") or 1)

    def on_train_batch_end(self, *_: Any) -> None:
        # Lightning gives a method without an optimiser a mock that has no parameters.
        for group in [group for each in self.trainer.optimizers[:1] for group in each.param_groups[:1]]:
            rate = torch.tensor(group["lr"], dtype=torch.float64)  # Lightning would make it float32
            self.log("train/lr", rate)

    def on_validation_epoch_start(self) -> None:
        self._val_scores = []

    def validation_step(self, batch: Mapping[str, Any], _: int) -> None:
        self.observe(self.predict(batch["image"], batch["id"]), batch["label"])

    def observe(self, prediction: torch.Tensor, label: torch.Tensor) -> None:
        """Count validation images: label maps int64 [B,H,W] both."""
        metric = IouMetric(len(self.classes))
        metric.update(prediction.cpu(), label.cpu())
        counts = metric.counts()
        for row in range(counts.num_images):
            one = type(counts)(*(getattr(counts, name)[row : row + 1] for name in ("intersection", "union", "present")))
            self._val_scores.append(image_score(one))

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        score = self.keep_best(self.current_epoch)
        if score is not None:
            self.log("val/miou", 100 * score)

    def keep_best(self, epoch: int) -> float | None:
        """The score in [0,1] of the validation images that were observed since the last call, None without any.

        The learned state is kept where the score is at least the best so far (ties go to the later epoch).
        """
        scores, self._val_scores = self._val_scores, []
        if not scores:
            return None
        score = sum(scores) / len(scores)
        if score >= self.best_score:
            self.best_score, self.best_epoch = score, epoch
            self._best_state = {name: value.detach().clone() for name, value in self.learned_state().items()}
        return score

    def test_step(self, batch: Mapping[str, Any], _: int) -> None:
        scores = self.refined_scores(batch["image"], batch["id"])
        prediction = label_maps(scores)
        self.test_metric.update(prediction.cpu(), batch["label"].cpu())
        self.test_ids += batch["id"]
        for row in range(min(len(scores), self.keep_maps - len(self.examples))):
            tensors = {"image": batch["image"], "label": batch["label"], "prediction": prediction, "maps": scores}
            self.examples.append({name: value[row].float().cpu() for name, value in tensors.items()})
