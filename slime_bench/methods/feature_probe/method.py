"""The hypercolumn probe: which part a cell belongs to, read linearly and by retrieval from the hidden states of a frozen
diffusion model. Nothing is optimised: the fit is a linear system.

The name is Hariharan et al.'s (CVPR 2015) for one vector of all layers at a pixel. That such states hold parts is known
from DatasetDDPM (Baranchuk et al., ICLR 2022), whose layers and MLPs need far more labels.

Shapes: B images, K classes, D features of a cell, k support images; grid h is the latent's, 2h twice as fine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from slime_bench.backbones.features import module_name
from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone
from slime_bench.errors import ConfigError, DataError
from slime_bench.methods.base import SegmentationMethod
from slime_bench.methods.feature_probe import ridge
from slime_bench.methods.feature_probe.config import FeatureProbeConfig, FeatureProbeDescription, transformers
from slime_bench.methods.feature_probe.ridge import Linear, Moments, Rows
from slime_bench.seeding import generator

ABSENT: Final = -1e3
"""Score of a class that no support image has."""
Grid = tuple[int, int]


class Support(NamedTuple):
    """The annotated images: image float32 [k,3,S,S], label int64 [k,S,S], their ids."""

    images: Tensor
    labels: Tensor
    ids: list[str]


class FeatureProbe(FeatureProbeDescription, SegmentationMethod):
    """The method as a Lightning module.

    Args:
        config: see `FeatureProbeConfig`. protocol: without switches. backbone: frozen.
        classes: K names, `background` first. seed: of the trial.
    """

    implementation = None  # a subclass computes by itself
    empty: Tensor

    def __init__(
        self,
        config: FeatureProbeConfig,
        protocol: Any,
        backbone: StableDiffusionBackbone,
        classes: Sequence[str],
        seed: int,
        keep_maps: int = 0,
    ) -> None:
        super().__init__(classes, keep_maps)
        self.config, self.backbone, self.seed = config, backbone, seed
        self.register_buffer("empty", backbone.embed(""), persistent=False)  # [1,T,D]
        layers = type(backbone).describe(backbone.config).layers
        self._a = transformers(layers, config.a.layers, "method.a.layers")
        self._near = transformers(layers, config.a.retrieval_layers, "method.a.retrieval_layers")
        self._b = transformers(layers, config.b.layers, "method.b.layers")
        encoder = backbone.vae.encoder
        self._encoder = [module_name(encoder, name, "method.b.encoder_layers") for name in config.b.encoder_layers]
        self._learned: dict[str, Tensor] = {}

    # Fit

    @torch.no_grad()
    def prepare(self, data: Any, device: str) -> None:
        """Fit both parts on the support images.

        Raises:
            DataError: a support without any part.
        """
        self.to(device)
        batches = list(data.support_dataloader())
        support = Support(
            torch.cat([each["image"] for each in batches]).to(self.device),
            torch.cat([each["label"] for each in batches]).to(self.device),
            [name for each in batches for name in each["id"]],
        )
        self.fit(support)

    def fit(self, support: Support) -> None:
        """Learn from the support images; see `prepare`."""
        present = torch.stack([(support.labels == k).any() for k in range(len(self.classes))])
        if not bool(present[1:].any()):
            raise DataError(
                "the support images show none of the parts", path=", ".join(support.ids[:5]),
                found="background or unlabelled pixels alone", expected=f"pixels of {', '.join(self.classes[1:])}",
                remedy="choose other support images: data.support_ids=[...]",
            )  # fmt: skip
        count = len(support.ids)
        share = {"a": 0.0, "b": 1.0, "both": (count - 1) / (count + 3)}[self.config.parts]
        learned = {"present": present, "share_b": torch.tensor(share)}
        if share < 1:
            learned |= self._fit_semantic(support)
        if share > 0:
            learned |= self._fit_detail(support)
        self._learned = {name: value.to(self.device) for name, value in learned.items()}

    def _fit_semantic(self, support: Support) -> dict[str, Tensor]:
        config, count = self.config.a, len(support.ids)
        grid = self._latent(support.images)
        images, labels, ids = support
        if config.flip:
            images, labels = torch.cat([images, images.flip(-1)]), torch.cat([labels, labels.flip(-1)])
            ids = [*ids, *(f"{name} mirrored" for name in ids)]
        targets, weights, shares = self._targets(labels, grid, config.gamma)
        names = list(dict.fromkeys([*self._a, *self._near]))
        per_image: list[list[Rows]] = [[] for _ in range(count)]
        near: list[Tensor] = []
        for draw in range(self.config.draws):
            maps = self._unet(images, ids, config.t, "fit", draw, names)
            cells = self._cells([maps[name] for name in self._a], grid)
            for place in range(len(ids)):
                per_image[place % count].append(Rows(cells[place], targets[place], weights[place]))
            if config.retrieval > 0:
                near.append(ridge.descriptors([maps[name] for name in self._near], grid))
        stacked = [Rows(*(torch.cat(parts) for parts in zip(*rows, strict=True))) for rows in per_image]
        model = self._ridge(stacked, config.strength, labels[:count], grid)
        learned = {"a.weight": model.weight, "a.bias": model.bias}
        if config.retrieval > 0:
            bank = torch.stack(near).flatten(0, 2)
            kept = torch.randperm(len(bank), generator=generator(self.seed, "probe bank"))[: config.bank].to(
                bank.device
            )
            every = targets.expand(self.config.draws, *targets.shape).flatten(0, 2)
            learned |= {"a.bank": bank[kept], "a.bank_targets": every[kept].float()}
        return learned

    def _fit_detail(self, support: Support) -> dict[str, Tensor]:
        config, count = self.config.b, len(support.ids)
        grid = self._fine(support.images)
        targets, weights, _ = self._targets(support.labels, grid, config.gamma)
        cells = self._cells(self._detail(support.images, support.ids, "fit", self.config.draws), grid)
        rows = [Rows(*each) for each in zip(cells, targets, weights, strict=True)]
        strength = config.strength if count >= config.few else config.strength_few
        model = self._ridge(rows, strength, support.labels, grid)
        return {"b.weight": model.weight, "b.bias": model.bias}

    def _targets(self, labels: Tensor, grid: Grid, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Tilted labels of all cells, float64 [B,h*w,K]; weights of the rows, mean 1, [B,h*w]; the plain shares."""
        shares, labelled = ridge.cell_labels(labels, len(self.classes), grid)
        flat = shares.flatten(2).transpose(1, 2)  # [B,N,K]
        inside = labelled.flatten(1)
        plain = (flat * inside[..., None]).sum((0, 1))
        lifted = ridge.tilted(flat.flatten(0, 1), plain, gamma).unflatten(0, flat.shape[:2])
        totals = (lifted * inside[..., None]).sum((0, 1))
        weights = ridge.row_weights(lifted.flatten(0, 1), totals, inside.flatten()).unflatten(0, flat.shape[:2])
        return lifted, weights / weights.mean(), flat

    def _ridge(self, images: Sequence[Rows], strength: float, labels: Tensor, grid: Grid) -> Linear:
        """Of the rows of all support images, with the configured lambda or the one that leaving one out prefers."""
        rows, width = sum(len(each.features) for each in images), images[0].features.shape[1]
        if self.config.choose_strength == "fixed" or len(images) == 1:
            if rows < width:
                return ridge.ridge_dual(Rows(*(torch.cat(parts) for parts in zip(*images, strict=True))), strength)
            return ridge.ridge(ridge.total([Moments.of(each) for each in images]), strength)
        sums = [Moments.of(each) for each in images]
        whole, scores = ridge.total(sums), torch.zeros(len(self.config.strengths))
        for left, own in enumerate(sums):
            for place, model in enumerate(ridge.ridge_path(whole.plus(own, -1), self.config.strengths)):
                scores[place] += self._left_out(model, images[left], labels[left], grid)
        return ridge.ridge(whole, self.config.strengths[int(scores.argmax())])

    def _left_out(self, model: Linear, rows: Rows, label: Tensor, grid: Grid) -> float:
        """Mean IoU, over the classes that a support image shows, of its own cells' labels."""
        cells = grid[0] * grid[1]
        scores = (rows.features.float() @ model.weight + model.bias).unflatten(0, (-1, cells)).mean(0)  # over the draws
        shares, labelled = ridge.cell_labels(label[None], len(self.classes), grid)
        truth, inside = shares[0].flatten(1).argmax(0), labelled.flatten() > 0
        guess, found = scores.argmax(1), []
        for k in truth[inside].unique():
            one, two = (guess == k) & inside, (truth == k) & inside
            found.append(float((one & two).sum() / (one | two).sum()))
        return sum(found) / len(found) if found else 0.0

    # Features

    def _latent(self, images: Tensor) -> Grid:
        height, width = self.backbone.latent_shape((int(images.shape[-2]), int(images.shape[-1])))[1:]
        return height, width

    def _fine(self, images: Tensor) -> Grid:
        height, width = self._latent(images)
        return 2 * height, 2 * width

    def _unet(
        self, images: Tensor, ids: Sequence[str], t: int, purpose: str, draw: int, names: Sequence[str]
    ) -> dict[str, Tensor]:
        """Features of the U-Net of one draw, keyed by the image: name -> float32 [B,C,h_l,w_l]."""
        shape = self.backbone.latent_shape((int(images.shape[-2]), int(images.shape[-1])))
        noise = torch.stack(
            [torch.randn(shape, generator=generator(self.seed, f"probe {purpose}", name, t, draw)) for name in ids]
        )
        steps = torch.full((len(ids),), t, device=images.device)
        return self.backbone.features(images, steps, noise.to(images), names, self.empty)

    def _mean_unet(
        self, images: Tensor, ids: Sequence[str], t: int, purpose: str, draws: int, names: Sequence[str]
    ) -> dict[str, Tensor]:
        """The mean over several draws."""
        every = [self._unet(images, ids, t, purpose, draw, names) for draw in range(draws)]
        return {name: torch.stack([each[name] for each in every]).mean(0) for name in names}

    def _detail(self, images: Tensor, ids: Sequence[str], purpose: str, draws: int) -> list[Tensor]:
        """All maps of part B, float32 [B,C,h_l,w_l] each: timestep by timestep, then the encoder's."""
        found = [
            value
            for t in self.config.b.t
            for value in self._mean_unet(images, ids, t, purpose, draws, self._b).values()
        ]
        if self._encoder:
            found += self.backbone.encoder_features(images, self._encoder).values()
        return found

    @staticmethod
    def _cells(maps: Sequence[Tensor], grid: Grid) -> Tensor:
        """Hypercolumns of a grid, float32 [B,h*w,D]."""
        return torch.cat([ridge.resized(each, grid) for each in maps], dim=1).flatten(2).transpose(1, 2)

    # Test

    @torch.no_grad()
    def scores(self, images: Tensor, ids: Sequence[str]) -> Tensor:
        """(1 - w) A + w B at the images' size, float32 [B,K,H,W]: shares of the classes, up to the error of a linear fit; a
        class that no support image has is at `ABSENT`."""
        share, size = float(self._learned["share_b"]), (int(images.shape[-2]), int(images.shape[-1]))
        found = images.new_zeros(len(images), len(self.classes), *size)
        if share < 1:
            found = found + (1 - share) * ridge.resized(self._semantic_scores(images, ids), size)
        if share > 0:
            found = found + share * ridge.resized(self._detail_scores(images, ids), size)
        return found.masked_fill(~self._learned["present"][None, :, None, None], ABSENT)

    def _semantic_scores(self, images: Tensor, ids: Sequence[str]) -> Tensor:
        """Part A on the latent's grid, float32 [B,K,h,w]."""
        config, grid = self.config.a, self._latent(images)
        names = list(dict.fromkeys([*self._a, *self._near]))
        maps = self._mean_unet(images, ids, config.t, "test", self.config.test_draws, names)
        linear = Linear(self._learned["a.weight"], self._learned["a.bias"])
        found = ridge.apply(linear, [maps[name] for name in self._a], grid)
        if config.retrieval == 0:
            return found
        queries = ridge.descriptors([maps[name] for name in self._near], grid)
        bank, targets = self._learned["a.bank"], self._learned["a.bank_targets"]
        near = torch.stack(
            [ridge.retrieve(each, bank, targets, config.neighbours, config.temperature) for each in queries]
        )
        near = near.transpose(1, 2).unflatten(2, grid)
        return (1 - config.retrieval) * found + config.retrieval * near

    def _detail_scores(self, images: Tensor, ids: Sequence[str]) -> Tensor:
        """Part B on a grid twice as fine, float32 [B,K,2h,2w]."""
        linear = Linear(self._learned["b.weight"], self._learned["b.bias"])
        return ridge.apply(linear, self._detail(images, ids, "test", self.config.test_draws), self._fine(images))

    # State

    def learned_state(self) -> dict[str, Tensor]:
        return dict(self._learned)

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state of `learned_state`.

        Raises:
            ConfigError: it is of other classes.
        """
        if "present" not in state or len(state["present"]) != len(self.classes):
            raise ConfigError(
                "the learned state is of another method or class list", path="state.safetensors",
                found=", ".join(sorted(state)) or "nothing", expected=f"a probe of {len(self.classes)} classes",
                remedy="use the classes, the method and the backbone that it was made with",
            )  # fmt: skip
        self._learned = {name: value.to(self.device) for name, value in state.items()}
