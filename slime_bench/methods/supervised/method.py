"""A segmentation network trained on a whole annotated split: the bench's stand-in for the rows CNN and CNN+CRF (with
`refine=crf`) of SLiMe's tables, and the measure of what one or ten annotated images are worth.

Those rows are a fully convolutional VGG-16 of 2015 (Tsogkas et al., arXiv 1505.02438) on images of its own choice; this
is another network on other images, and goes by its own name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from slime_bench.backbones.upernet_network import UperNetStart
from slime_bench.methods.base import SegmentationMethod, check_shapes
from slime_bench.methods.slime.losses import cross_entropy
from slime_bench.methods.supervised.config import SupervisedConfig, SupervisedDescription


class Supervised(SupervisedDescription, SegmentationMethod):
    """The method as a Lightning module.

    Args:
        config: see `SupervisedConfig`. protocol: without switches. backbone: what the training starts from.
        classes: K names, `background` first. seed: of the trial.
    """

    implementation = None  # a subclass computes by itself

    def __init__(
        self,
        config: SupervisedConfig,
        protocol: Any,
        backbone: UperNetStart,
        classes: Sequence[str],
        seed: int,
        keep_maps: int = 0,
    ) -> None:
        super().__init__(classes, keep_maps)
        self.config, self.backbone = config, backbone
        self.network = backbone.network(len(classes), seed)
        # A pass has at least one step, so that the steps come first.
        self.epochs = self.max_steps = config.steps

    def prepare(self, data: Any, device: str) -> None:
        """Ask for the method's own number of images in a training batch."""
        self.to(device)
        data.train_batch = self.config.batch

    def configure_optimizers(self) -> Any:
        """AdamW at a rate that rises and falls once."""
        optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay
        )
        steps = self.config.steps
        rate = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.config.lr, total_steps=steps, pct_start=max(0.1, 2 / steps), cycle_momentum=False
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def training_step(self, batch: Mapping[str, Any], _: int) -> Tensor:
        """Mean of -ln softmax(logits)_y over the annotated pixels of the batch."""
        self.network.train()
        loss = self.loss(self.network(batch["image"]), batch["label"])
        self.log("train/loss", loss.detach(), batch_size=len(batch["image"]))
        return loss

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """As `training_step`; 0 where nothing is annotated.

        Args:
            logits: float32 [B,K,H,W]. label: int64 [B,H,W], 255 = ignore.
        """
        return cross_entropy(logits, label, torch.ones(len(self.classes), device=logits.device))

    @torch.no_grad()
    def scores(self, images: Tensor, ids: Sequence[str]) -> Tensor:
        """Logits of unseen images, float32 [B,K,H,W]."""
        self.network.eval()
        return self.network(images)

    def keep_best(self, epoch: int) -> float | None:
        """The validation's score, for the curve alone: the last state, at the end of the falling rate, is used."""
        score = super().keep_best(epoch)
        self._best_state, self.best_epoch = {}, None
        return score

    def learned_state(self) -> dict[str, Tensor]:
        """All weights of the network, and its running statistics."""
        return {name: value.detach() for name, value in self.network.network.state_dict().items()}

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state of `learned_state`.

        Raises:
            ConfigError: it is of another network or of other classes.
        """
        own = self.learned_state()
        check_shapes(state, own, f"{len(own)} tensors of {self.backbone.config.name}, {len(self.classes)} classes")
        self.network.network.load_state_dict(state)
