"""Segmentation from the image-text attention of a vision-language model ("Segmentation From Attention", TMLR 2026; as a
preprint "The Power of One", arXiv 2503.10779).

Every class is named by a prompt such as "Image of wheel." The attention scores of the layers that InfoScore ranks best,
weighted by how well a prompt matches the image, become class maps: without any training (`zero_shot`), or after the
word embeddings and the cross-attention of those layers were tuned on one or a few annotated images (`one_shot`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from slime_bench.backbones.vlm import VlmBackbone
from slime_bench.errors import ConfigError
from slime_bench.methods.base import SegmentationMethod, check_shapes
from slime_bench.methods.infoscore.config import TEST, InfoScoreConfig, InfoScoreDescription
from slime_bench.methods.infoscore.maps import Reading, layer_classes, marginals, probabilities, read, stacked, view
from slime_bench.methods.infoscore.prompts import PromptList, read_prompts
from slime_bench.methods.infoscore.protocol import InfoScoreProtocol
from slime_bench.methods.infoscore.score import InfoScoreMetric, Ranking
from slime_bench.metrics.iou import IGNORE
from slime_bench.places import exact

_log = logging.getLogger(__name__)
_FLOOR = 1e-12  # least probability whose logarithm is taken


class InfoScore(InfoScoreDescription, SegmentationMethod):
    """The method as a Lightning module.

    Args:
        config: see `InfoScoreConfig`. protocol: which side of every switch. backbone: frozen but for what
            `one_shot` tunes.
        classes: K names, `background` first. seed: of the trial.
        prompts: the lists for ranking and for segmenting, in place of those of the file `config.prompts`; the texts of
            the first are among those of the second.

    Raises:
        ConfigError: see `check`.
    """

    implementation = None  # a subclass computes by itself
    always_ranks = False  # also where the layers are named

    def __init__(
        self,
        config: InfoScoreConfig,
        protocol: InfoScoreProtocol,
        backbone: VlmBackbone,
        classes: Sequence[str],
        seed: int,
        keep_maps: int = 0,
        prompts: tuple[PromptList, PromptList] | None = None,
    ) -> None:
        super().__init__(classes, keep_maps)
        self.config, self.protocol, self.backbone, self.seed = config, protocol, backbone, seed
        self.support_group = None if config.augment else config.group
        self._weights = torch.ones(len(self.classes))
        self._weights[0] = config.background_weight
        if prompts is None:
            file = read_prompts(config.prompts)
            prompts = (file.expand(self.classes, multi=False), file.expand(self.classes, multi=config.multi_prompt))
        self.single, self.chosen = prompts
        self.ranking: Ranking | None = None
        self.layers: tuple[str, ...] = ()
        self.forwarded = 0  # images that went through the model: ranking, validation and test, not the tuning itself
        self._readings: dict[str, Reading] = {}
        self._states: dict[str, torch.Tensor] = {}
        self._tuned: dict[str, nn.Parameter] = {}
        self._before: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def prepare(self, data: Any, device: str) -> None:
        """Choose the layers, by InfoScore unless they are named, and get ready to tune if there are support images."""
        self.to(device)
        self._prompts = self.backbone.tokenize(self.chosen.texts)
        self._views = {
            "single": view(self.single, self.chosen, self._prompts),
            "chosen": view(self.chosen, self.chosen, self._prompts),
        }
        tunes = data.shots > 0
        if tunes:
            self._check_precision()
        names: Sequence[str] = self.config.layers or ()
        if not names or self.always_ranks:
            self.ranking = self.rank(data, keep=not tunes)
            _log.debug("layers by InfoScore: %s", ", ".join(self.ranking.order()))
            names = names or self.ranking.top(self.config.top)
        self.layers = tuple(name for name in self.backbone.layers if name in names)
        if tunes:
            self.epochs, self.max_steps = self.config.epochs, self.config.max_steps
            self._weights = self.class_weights(data).to(self.device)
            self._tuned = self.backbone.tuned(
                self.layers if self.config.tuned_layers == "top" else self.backbone.layers
            )
            self._before = {name: value.detach().clone() for name, value in self._tuned.items()}
            for value in self._tuned.values():
                value.requires_grad_(True)

    def _check_precision(self) -> None:
        """Steps of a small learning rate are lost in half precision: most are below bf16's last bit."""
        low = {str(each.dtype).removeprefix("torch.") for each in self.backbone.parameters()} & {"bfloat16", "float16"}
        if low:
            raise ConfigError(
                "tuning needs weights in full precision", path="trainer.precision", found=" and ".join(sorted(low)),
                expected="fp32", remedy="trainer.precision=fp32; half precision is for shots=0",
            )  # fmt: skip

    def rank(self, data: Any, keep: bool = False) -> Ranking:
        """InfoScore of every layer over the images that `rank_on` names; their annotation is not looked at.

        Args:
            keep: keep the maps of test images for the test, as far as `keep_gb` goes.
        """
        on_test, size = self.config.rank_on == TEST, 0
        loader = data.test_dataloader() if on_test else data.unlabelled_dataloader(self.config.rank_images)
        columns = len(self.single.texts if self.protocol.info_over == "prompts" else self.classes)
        score = InfoScoreMetric(self.backbone.layers, columns).to(exact(self.device))
        shown = self._views["single"]
        for batch in loader:
            images = batch["image"].to(self.device)
            found, frame = self._read(images, None), self._frame(images)
            maps = shown.layer_maps(found, self.protocol)
            values = marginals(maps, shown.spans, self.backbone.grid(frame), frame, self.protocol)
            score.update(values)
            self.seen_marginals(values)
            if keep and on_test:
                for row, name in enumerate(batch["id"]):
                    size += found.size() // len(images)
                    if size <= self.config.keep_gb * 1e9:
                        self._readings[name] = found.rows(row)
        return score.compute()

    def class_weights(self, data: Any) -> torch.Tensor:
        """What a pixel of each class weighs in the loss, float32 [K]; see `InfoScoreConfig`."""
        weights = torch.ones(len(self.classes))
        if self.config.class_weights != "none":
            labels = torch.cat([batch["label"].flatten() for batch in data.support_dataloader()])
            pixels = torch.bincount(labels[labels != IGNORE], minlength=len(self.classes))
            share = pixels / pixels.sum().clamp(min=1) * (pixels > 0).sum()
            weights = torch.where(share > 0, 1 / share, 0.0)
            if self.config.class_weights == "root":
                weights = weights.sqrt()
        weights[0] *= self.config.background_weight
        return weights

    def seen_marginals(self, marginals: torch.Tensor) -> None:
        """Called with every batch's, float32 [B,L,C], while layers are ranked; for subclasses."""

    def _read(self, images: torch.Tensor, layers: Sequence[str] | None) -> Reading:
        self.forwarded += len(images)
        return read(self.backbone, self.backbone.encode_images(images), self._prompts, self.protocol, layers)

    @staticmethod
    def _frame(images: torch.Tensor) -> tuple[int, int]:
        return int(images.shape[-2]), int(images.shape[-1])

    def readings(self, images: torch.Tensor, ids: Sequence[str], layers: Sequence[str]) -> Reading:
        """One pass over the images, or what an earlier one has found."""
        if all(name in self._readings for name in ids):
            return stacked([self._readings[name].only(layers) for name in ids], images.device)
        return self._read(images, layers)

    @torch.no_grad()
    def scores(self, images: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """Class probabilities of unseen images, float32 [B,K,H,W]."""
        return self.combined(self.readings(images, ids, self.layers), self._frame(images))

    def combined(self, found: Reading, frame: tuple[int, int]) -> torch.Tensor:
        """Class probabilities float32 [B,K,H,W] of a reading, all its layers together."""
        shown = self._views["chosen"]
        classes = layer_classes(shown.layer_maps(found, self.protocol), shown.spans, self.protocol)
        return probabilities(classes, self.backbone.grid(frame), frame, self.protocol)

    # Tuning

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self._tuned.values(), lr=self.config.lr, weight_decay=self.config.weight_decay, betas=(0.9, 0.999), eps=1e-8
        )

    def training_step(self, batch: Mapping[str, Any], _: int) -> torch.Tensor:
        """Weighted negative log-likelihood of a group of support images:
        sum_i w(y_i) (-ln max(u_{y_i}(i), 1e-12)) / sum_i w(y_i) over their annotated pixels."""
        images, label = batch["image"], batch["label"]
        states = self.backbone.encode_images(images) if self.config.augment else self._seen(images, batch["id"])
        found = read(self.backbone, states, self._prompts, self.protocol, self.layers)
        loss = self.loss(self.combined(found, self._frame(images)), label)
        self.log("train/loss", loss.detach(), batch_size=len(images))
        return loss

    def _seen(self, images: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """The image's side of the model is frozen: it sees a picture that comes again only once."""
        for row, name in enumerate(ids):
            if name not in self._states:
                self._states[name] = self.backbone.encode_images(images[row : row + 1])
        return torch.cat([self._states[name] for name in ids])

    def loss(self, found: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """As `training_step`.

        Args:
            found: float32 [B,K,H,W]. label: int64 [B,H,W], 255 = ignore.
        """
        weight, annotated = self._weights.to(found), label != IGNORE
        # Where nothing counts (no annotation, or weight 0) the loss is 0, as nothing that is looked at here.
        counts = (weight[label.where(annotated, 0)] > 0).logical_and(annotated).any()
        weight, label = weight.where(counts, 1.0), label.where(counts, 0)
        return F.nll_loss(found.clamp(min=_FLOOR).log(), label, weight, ignore_index=IGNORE) * counts

    def learned_state(self) -> dict[str, torch.Tensor]:
        """The tuned parameters by their names in the backbone; none after `zero_shot`."""
        return {name: value.detach() for name, value in self._tuned.items()}

    @torch.no_grad()
    def load_learned_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over a state of `learned_state`.

        Raises:
            ConfigError: a name that is not tuned, or another shape.
        """
        check_shapes(state, self._tuned, f"the tuned parameters of {', '.join(self.layers)}")
        for name, value in state.items():
            self._tuned[name].copy_(value)

    def training_state(self) -> dict[str, Any]:
        """Also how many images were forwarded. What was seen of the support images is seen again."""
        return {**super().training_state(), "forwarded": self.forwarded}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        super().load_training_state(state)
        self.forwarded = state["forwarded"]

    @torch.no_grad()
    def restore(self) -> None:
        """Give the backbone its own weights back, so that another trial can start from them."""
        for name, value in self._tuned.items():
            value.copy_(self._before[name])
            value.requires_grad_(False)
        self._tuned, self._before = {}, {}

    def extra_files(self) -> dict[str, bytes]:
        """`ranking.json`: InfoScore of every layer, and which were used."""
        ranking = None if self.ranking is None else {**self.ranking._asdict(), "order": self.ranking.order()}
        content = {
            "layers": self.layers,
            "rank_on": None if ranking is None else self.config.rank_on,
            "ranking": ranking,
            "forwarded_images": self.forwarded,
            "prompts": self.chosen.texts,
            "spans": self.chosen.spans,
        }
        return {"ranking.json": (json.dumps(content, indent=1) + "\n").encode()}
