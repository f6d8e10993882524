"""The hypercolumn probe: which part a cell belongs to, read linearly and by retrieval from the hidden states of a
frozen diffusion model. Nothing is optimised: the fit is a linear system.

The name is Hariharan et al.'s (CVPR 2015) for the vector of all layers at a pixel. That such states hold parts is known
from DatasetDDPM (Baranchuk et al., ICLR 2022), whose layers and networks need more labels; see docs/probe.md.

Shapes: B images, K classes, D features of a cell, k support images; grid h is the latent's, 2h twice as fine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from slime_bench.backbones.diffusion import transformers
from slime_bench.backbones.features import module_name
from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone
from slime_bench.errors import ConfigError
from slime_bench.methods.feature_probe import ridge
from slime_bench.methods.feature_probe.config import FeatureProbeConfig, FeatureProbeDescription
from slime_bench.methods.feature_probe.ridge import Linear, Moments, Rows
from slime_bench.methods.features import Annotated, FeatureMethod, Size
from slime_bench.seeding import generator

Maps = list[Tensor]
"""Features of a batch, layer by layer: float32 [B,C_l,h_l,w_l]."""


class FeatureProbe(FeatureProbeDescription, FeatureMethod):
    """The method as a Lightning module.

    Args:
        config: see `FeatureProbeConfig`. protocol: without switches. backbone: frozen.
        classes: K names, `background` first. seed: of the trial.

    Raises:
        BackboneError: a layer that the backbone does not have.
    """

    implementation = None  # a subclass computes by itself

    def __init__(
        self,
        config: FeatureProbeConfig,
        protocol: Any,
        backbone: StableDiffusionBackbone,
        classes: Sequence[str],
        seed: int,
        keep_maps: int = 0,
    ) -> None:
        super().__init__(backbone, classes, seed, keep_maps)
        self.config = config
        layers = type(backbone).describe(backbone.config).layers
        self._a = transformers(layers, config.a.layers, "method.a.layers")
        self._near = transformers(layers, config.a.retrieval_layers, "method.a.retrieval_layers")
        self._all_a = list(dict.fromkeys([*self._a, *self._near]))
        self._b = transformers(layers, config.b.layers, "method.b.layers")
        encoder = backbone.vae.encoder
        self._encoder = [module_name(encoder, name, "method.b.encoder_layers") for name in config.b.encoder_layers]

    # Fit

    def fit(self, support: Annotated) -> dict[str, Tensor]:
        """The linear maps of both parts, the rows to retrieve from, and the weight of part B.

        Raises:
            ConfigError: the fit needs more than `memory_gb`.
        """
        count = len(support.ids)
        share = {"a": 0.0, "b": 1.0, "both": (count - 1) / (count + 3)}[self.config.parts]
        self._check_memory(support, share)
        learned = {"share_b": torch.tensor(share)}
        if share < 1:
            learned |= self._fit_semantic(support)
        if share > 0:
            learned |= self._fit_detail(support)
        return learned

    def _fit_semantic(self, support: Annotated) -> dict[str, Tensor]:
        """Part A. Every draw of the noise gives rows of its own."""
        config, draws, count = self.config.a, self.config.draws, len(support.ids)
        seen = support.with_mirrored() if config.flip else support
        grid = self.latent(support.images)
        cells, total = grid[0] * grid[1], len(seen.ids) * grid[0] * grid[1]
        targets, weights = self._targets(seen.labels, grid, config.gamma)
        keyed = generator(self.seed, "probe bank")
        kept = torch.randperm(draws * total, generator=keyed)[: config.bank]  # of all rows, draw by draw
        bank: dict[int, Tensor] = {}
        held: list[Maps] = []

        def rows() -> Iterator[tuple[int, Rows]]:
            for here in self.calls(seen):
                some, mean = seen.part(here), None
                for draw in range(draws):
                    maps = self.hidden(some, config.t, "fit", draw, self._all_a)
                    own = [maps[name] for name in self._a]
                    mean = own if mean is None else [one + two for one, two in zip(mean, own, strict=True)]
                    for row, columns in enumerate(self._columns(own, grid)):
                        place = here.start + row
                        yield place % count, Rows(columns, targets[place], weights[place])
                    if config.retrieval > 0:
                        near = ridge.descriptors([maps[name] for name in self._near], grid).flatten(0, 1)
                        first = draw * total + here.start * cells
                        for each in kept[(kept >= first) & (kept < first + len(near))].tolist():
                            bank[each] = near[each - first].clone()
                originals = range(min(len(some.ids), max(0, count - here.start)))
                held.extend([each[row : row + 1] / draws for each in mean or []] for row in originals)

        model = self._regress(rows(), draws * total, config.strength, support, grid, held)
        learned = {"a.weight": model.weight, "a.bias": model.bias}
        if config.retrieval > 0:
            learned["a.bank"] = torch.stack([bank[each] for each in kept.tolist()])
            learned["a.bank_targets"] = targets.flatten(0, 1)[kept.to(targets.device) % total].float()
        return learned

    def _fit_detail(self, support: Annotated) -> dict[str, Tensor]:
        """Part B. Features are means over the draws."""
        config, count = self.config.b, len(support.ids)
        grid = self._fine(support.images)
        targets, weights = self._targets(support.labels, grid, config.gamma)
        held: list[Maps] = []

        def rows() -> Iterator[tuple[int, Rows]]:
            for here in self.calls(support):
                some = support.part(here)
                maps = self._detail(some, "fit", self.config.draws)
                held.extend([each[row : row + 1] for each in maps] for row in range(len(some.ids)))
                for row, columns in enumerate(self._columns(maps, grid)):
                    place = here.start + row
                    yield place, Rows(columns, targets[place], weights[place])

        strength = config.strength if count >= config.few else config.strength_few
        model = self._regress(rows(), count * grid[0] * grid[1], strength, support, grid, held)
        return {"b.weight": model.weight, "b.bias": model.bias}

    def _targets(self, labels: Tensor, grid: Size, gamma: float) -> tuple[Tensor, Tensor]:
        """Tilted labels of all cells, float64 [B,h*w,K], and weights of the rows, mean 1, [B,h*w]."""
        shares, labelled = ridge.cell_labels(labels, len(self.classes), grid)
        flat, inside = shares.flatten(2).transpose(1, 2).flatten(0, 1), labelled.flatten()  # [N,K], [N]
        targets = ridge.tilted(flat, inside @ flat, gamma)
        weights = ridge.row_weights(targets, inside @ targets, inside)
        size = (len(labels), grid[0] * grid[1])
        return targets.unflatten(0, size), (weights / weights.mean()).unflatten(0, size)

    def _regress(
        self,
        rows: Iterable[tuple[int, Rows]],
        total: int,
        strength: float,
        support: Annotated,
        grid: Size,
        held: Sequence[Maps],
    ) -> Linear:
        """The regression of all rows, with the given lambda or the one that leaving one image out prefers.

        Args:
            rows: with the place of the support image that they are of. total: number of all of them.
            held: features of each support image, filled while `rows` are made.
        """
        count, parts, sums = len(support.ids), list[Rows](), dict[int, Moments]()
        fixed = self.config.choose_strength == "fixed" or count == 1
        for place, each in rows:
            if fixed and total < each.features.shape[1]:
                parts.append(each)
                continue
            own = place if not fixed else 0
            sums[own] = Moments.total([sums[own], Moments.of(each)]) if own in sums else Moments.of(each)
        if parts:
            return ridge.ridge_dual(Rows(*(torch.cat(each) for each in zip(*parts, strict=True))), strength)
        every = [sums[place] for place in sorted(sums)]
        if not fixed:

            def judge(left: int, model: Linear) -> float:
                return self._left_out(model, held[left], support.labels[left], grid)

            strength = ridge.leave_one_out(every, self.config.strengths, judge)
        return ridge.ridge(Moments.total(every), strength)

    def _left_out(self, model: Linear, maps: Maps, label: Tensor, grid: Size) -> float:
        """Mean IoU over the classes that a support image shows, cell by cell."""
        shares, labelled = ridge.cell_labels(label[None], len(self.classes), grid)
        truth, inside = shares[0].argmax(0), labelled[0] > 0
        guess, found = ridge.apply(model, maps, grid)[0].argmax(0).to(truth.device), []
        for k in truth[inside].unique():
            one, two = (guess == k) & inside, (truth == k) & inside
            found.append(float((one & two).sum() / (one | two).sum()))
        return sum(found) / len(found) if found else 0.0

    def _check_memory(self, support: Annotated, share: float) -> None:
        """Refuse a fit that needs more than `memory_gb`, told from the sizes of one small image's features."""
        small = torch.zeros(1, 3, *(8 * self.backbone.downscale,) * 2, device=self.device)
        one = Annotated(small, small[:, 0].long(), ["size"])
        chosen = 1 if self.config.choose_strength == "fixed" else len(support.ids)
        needed = 0.0
        for used, maps, grid in (
            (share < 1, lambda: [*self.hidden(one, self.config.a.t, "size", 0, self._a).values()], self.latent),
            (share > 0, lambda: self._detail(one, "size", 1), self._fine),
        ):
            if not used:
                continue
            found = maps()
            width, larger = sum(each.shape[1] for each in found), support.images[0, 0].numel() / small[0, 0].numel()
            cells = grid(support.images)[0] * grid(support.images)[1]
            # Sums of each image and three systems, in float64; a pass's rows, twice in float64; held features.
            here = 8 * (chosen + 3) * width**2 + 20 * cells * width
            needed = max(needed, here + 4 * len(support.ids) * larger * sum(each.numel() for each in found))
        if needed > self.config.memory_gb * 1e9:
            raise ConfigError(
                "the fit of the probe needs more memory than it may take", path="method.memory_gb",
                found=f"about {needed / 1e9:.1f} GB for {len(support.ids)} support images",
                expected=f"at most {self.config.memory_gb:g} GB",
                remedy="raise method.memory_gb, name fewer layers, or method.choose_strength=fixed",
            )  # fmt: skip

    # Features

    def _fine(self, images: Tensor) -> Size:
        height, width = self.latent(images)
        return 2 * height, 2 * width

    def _detail(self, seen: Annotated, purpose: str, draws: int) -> Maps:
        """All maps of part B: timestep by timestep, then the encoder's."""
        found: Maps = []
        for t in self.config.b.t:
            found += self.mean_hidden(seen, t, purpose, draws, self._b).values()
        if self._encoder:
            found += self.backbone.encoder_features(seen.images, self._encoder).values()
        return found

    @staticmethod
    def _columns(maps: Maps, grid: Size) -> Iterator[Tensor]:
        """Hypercolumns of each image, float32 [h*w,D]."""
        for row in range(len(maps[0])):
            columns = torch.cat([ridge.resized(each[row : row + 1], grid)[0] for each in maps])
            yield columns.flatten(1).T

    # Test

    @torch.no_grad()
    def scores(self, images: Tensor, ids: Sequence[str]) -> Tensor:
        """(1 - w) A + w B at the images' size, float32 [B,K,H,W]: shares of the classes, up to the error of a linear
        fit; a class that no support image has is at `ABSENT`."""
        share, size = float(self._learned["share_b"]), (int(images.shape[-2]), int(images.shape[-1]))
        seen = Annotated(images, images[:, 0].long(), list(ids))
        found = images.new_zeros(len(images), len(self.classes), *size)
        if share < 1:
            found = found + (1 - share) * ridge.resized(self._semantic_scores(seen), size)
        if share > 0:
            found = found + share * ridge.resized(self._detail_scores(seen), size)
        return self.without_absent(found)

    def _semantic_scores(self, seen: Annotated) -> Tensor:
        """Part A on the latent's grid, float32 [B,K,h,w]."""
        config, grid = self.config.a, self.latent(seen.images)
        maps = self.mean_hidden(seen, config.t, "test", self.config.test_draws, self._all_a)
        linear = Linear(self._learned["a.weight"], self._learned["a.bias"])
        found = ridge.apply(linear, [maps[name] for name in self._a], grid)
        if config.retrieval == 0:
            return found
        bank, targets = self._learned["a.bank"], self._learned["a.bank_targets"]
        near = torch.stack(
            [
                ridge.retrieve(each, bank, targets, config.neighbours, config.temperature)
                for each in ridge.descriptors([maps[name] for name in self._near], grid)
            ]
        )
        return (1 - config.retrieval) * found + config.retrieval * near.transpose(1, 2).unflatten(2, grid)

    def _detail_scores(self, seen: Annotated) -> Tensor:
        """Part B on a grid twice as fine, float32 [B,K,2h,2w]."""
        linear = Linear(self._learned["b.weight"], self._learned["b.bias"])
        return ridge.apply(linear, self._detail(seen, "test", self.config.test_draws), self._fine(seen.images))
