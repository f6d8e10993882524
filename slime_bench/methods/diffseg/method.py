"""DiffSeg, Diffuse, attend and segment (Tian et al., CVPR 2024, arXiv 2308.12469): the self-attention maps of a frozen
Stable Diffusion, one for each position of the latent, merged by their KL divergence into clusters.

The method is without supervision and its clusters have no names. `naming` gives them some, by the test labels as the
authors do to score it, by support images, or by nouns.

Shapes: B images, K classes, n clusters, (h, w) the latent grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_bench.attention.capture import LayerAttention, capture
from slime_bench.attention.maps import Size
from slime_bench.backbones.diffusion import layer_name, transformers
from slime_bench.backbones.features import module_outputs
from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone
from slime_bench.errors import ConfigError
from slime_bench.methods.diffseg import names
from slime_bench.methods.diffseg.aggregate import aggregate, token_maps
from slime_bench.methods.diffseg.config import NOUNS, ORACLE, PROTOTYPES, DiffSegConfig, DiffSegDescription, nouns_of
from slime_bench.methods.diffseg.merge import anchors, cluster_scores, k_means, merge
from slime_bench.methods.features import Annotated, FeatureMethod
from slime_bench.places import onto
from slime_bench.seeding import generator

NO_CLASS: Final = 255
"""Of pixels without a class, in the pictures that a trial keeps."""


class Pass:
    """What one pass of the U-Net shows of one image.

    Attributes:
        attention: name -> queries and keys of the image, batch of 1. hidden: hidden states float [C,h,w] of the layers
            that are compared.
    """

    def __init__(self, attention: Mapping[str, LayerAttention], hidden: Sequence[Tensor], place: int) -> None:
        here = slice(place, place + 1)
        self.attention = {
            name: LayerAttention(layer.query[here], layer.key[here], layer.scale) for name, layer in attention.items()
        }
        self.hidden = [maps[place] for maps in hidden]


class DiffSeg(DiffSegDescription, FeatureMethod):
    """The method as a Lightning module.

    Args:
        config: see `DiffSegConfig`. protocol: without switches. backbone: frozen.
        classes: K names, `background` first. seed: of the trial.

    Raises:
        BackboneError: a layer that the backbone does not have. ConfigError: nouns that do not fit into a prompt.
    """

    implementation = None  # a subclass computes by itself

    def __init__(
        self,
        config: DiffSegConfig,
        protocol: Any,
        backbone: StableDiffusionBackbone,
        classes: Sequence[str],
        seed: int,
        keep_maps: int = 0,
    ) -> None:
        super().__init__(backbone, classes, seed, keep_maps)
        self.config = config
        self._budget = int(backbone.config.memory_gb * 1e9)
        layers = type(backbone).describe(backbone.config).layers
        self._last = list(layers)[-1]
        self._compared = transformers(layers, config.layers, "method.layers") if config.naming == PROTOTYPES else []
        self._self = [layer_name(name, "attn1") for name in layers]
        self._cross: dict[str, float] = {}
        if config.naming == ORACLE:
            self.test_metric = names.MatchedIou(len(self.classes))
            self._truth: Tensor | None = None
        if config.naming == NOUNS:
            self._cross = cross_weights(layers, config.noun_layers)
            words, self._class_of = nouns_of(config.prompts, self.classes)
            self._tokens = names.word_tokens(backbone.tokenizer, words)
            if self._tokens[-1][-1] + 2 > backbone.num_tokens:
                raise ConfigError(
                    "the nouns do not fit into a prompt", path="method.prompts",
                    found=f"{self._tokens[-1][-1]} tokens", expected=f"at most {backbone.num_tokens - 2}",
                    remedy="a file with fewer background words",
                )  # fmt: skip
            self.empty = backbone.embed(" ".join(words))

    # Clusters

    def passes(self, seen: Annotated) -> list[Pass]:
        """One pass of the U-Net over images that one call may hold, as the authors have it: the latent is the mean of
        the encoder's distribution, without noise, and the U-Net is told that it is of timestep t."""
        unet, images = self.backbone.unet, seen.images
        steps = torch.full((len(seen.ids),), self.config.t, device=images.device)
        latents = self.backbone.encode(images, None, keep=True)
        if self.config.add_noise:
            draws = [generator(self.seed, "diffseg noise", name) for name in seen.ids]
            noise = onto(torch.stack([torch.randn(latents.shape[1:], generator=each) for each in draws]), latents)
            latents = self.backbone.add_noise(latents, noise, steps)
        run = partial(self.backbone.predict_noise, latents, steps, self.empty)
        with capture(unet, [*self._self, *self._cross]) as recording:
            found = module_outputs(unet, dict.fromkeys([*self._compared, self._last]), run)
        hidden = [found[name] for name in self._compared]
        return [Pass(recording.layers, hidden, place) for place in range(len(seen.ids))]

    def clusters(self, seen: Pass, grid: Size, size: Size) -> tuple[Tensor, Tensor]:
        """Clusters of one image that win somewhere: their maps float64 [n,H,W], and which is strongest, int64 [H,W]."""
        config = self.config
        maps = aggregate([seen.attention[name] for name in self._self], grid, self._budget, config.weights)
        start = onto(anchors(config.grid, grid), maps.device)
        merged = merge(maps, start, config.thresholds, config.first_step)
        if config.k_means:
            merged = k_means(maps, merged)
        scores = cluster_scores(merged, grid, size)
        present, labels = scores.max(dim=0).indices.unique(return_inverse=True)
        return scores[present], labels

    # Names

    def prepare(self, data: Any, device: str) -> None:
        """Prototypes of the support images, where these name the clusters; see `FeatureMethod.prepare`."""
        if self.config.naming == PROTOTYPES:
            super().prepare(data, device)
        else:
            self.to(device)

    def fit(self, support: Annotated) -> dict[str, Tensor]:
        """`prototypes`, float32 [K,C]: hidden features of each class, of all its pixels in the support images."""
        classes = torch.arange(len(self.classes), device=support.labels.device)[:, None, None]
        found = []
        for here in self.calls(support):
            some = support.part(here)
            regions = [label == classes for label in some.labels]
            found += [
                names.region_features(seen.hidden, own) for seen, own in zip(self.passes(some), regions, strict=True)
            ]
        return {"prototypes": torch.stack(found).sum(dim=0)}

    def named(self, seen: Pass, labels: Tensor, truth: Tensor | None) -> Tensor:
        """Names of the clusters of one image, int64 [n]: classes, or K for no class.

        Args:
            labels: int64 [H,W], clusters. truth: the label map, of `oracle` alone.
        """
        if self.config.naming == PROTOTYPES:
            regions = F.one_hot(labels).permute(2, 0, 1).bool()
            return names.nearest_names(names.region_features(seen.hidden, regions), self._learned["prototypes"])
        if self.config.naming == NOUNS:
            return self._nouns(seen, labels)
        assert truth is not None
        found = names.matched_names(labels, truth, len(self.classes))
        return found if self.config.unmatched == "no_class" else found.where(found < len(self.classes), 0)

    def _nouns(self, seen: Pass, labels: Tensor) -> Tensor:
        latent = self.backbone.latent_shape((int(labels.shape[0]), int(labels.shape[1])))[1:]
        flat = torch.tensor([token for own in self._tokens for token in own], device=labels.device)
        layers = [(seen.attention[name], weight) for name, weight in self._cross.items()]
        maps = token_maps(layers, flat, latent, (int(labels.shape[0]), int(labels.shape[1])), self._budget)
        words = torch.stack([own.mean(dim=0) for own in maps.split([len(own) for own in self._tokens])])
        found = names.noun_of_clusters(words, labels, self.config.vote)
        return torch.tensor(self._class_of, device=labels.device)[found]

    # Test

    @torch.no_grad()
    def scores(self, images: Tensor, ids: Sequence[str]) -> Tensor:
        """The share of each class's strongest cluster, float32 [B,K,H,W] in [0,1], see `names.named_scores`; in the
        test of `oracle` [B,K+1,H,W], the last for clusters that are of no class.

        Raises:
            ConfigError: `oracle`, outside a test.
        """
        truth = self._truth if self.config.naming == ORACLE else None
        if self.config.naming == ORACLE and truth is None:
            raise ConfigError(
                "the oracle names clusters by the labels of the images that it segments", path="method.naming",
                found="oracle, and images without labels", expected="a trial's test images",
                remedy="method.naming=prototypes learns the names from annotated images",
            )  # fmt: skip
        found: list[Tensor] = []
        size = (int(images.shape[-2]), int(images.shape[-1]))
        every = Annotated(images, images[:, 0].long(), list(ids))
        for here in self.calls(every):
            for seen in self.passes(every.part(here)):
                maps, labels = self.clusters(seen, self.latent(images), size)
                given = self.named(seen, labels.to(images.device), None if truth is None else truth[len(found)])
                found.append(names.named_scores(maps, given, len(self.classes) + (self.config.naming == ORACLE)))
        return torch.stack(found).to(images.device)

    def test_step(self, batch: Mapping[str, Any], index: int) -> None:
        """The base's; `oracle` alone sees the labels here, and pixels without a class are no class's in pictures."""
        if self.config.naming != ORACLE:
            return super().test_step(batch, index)
        kept, classes = len(self.examples), len(self.classes)
        self._truth = batch["label"].to(batch["image"].device)
        super().test_step(batch, index)
        self._truth = None
        for one in self.examples[kept:]:
            one["prediction"][one["prediction"] == classes] = NO_CLASS
            one["maps"] = one["maps"][:classes]

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state of `learned_state`; only `prototypes` has any."""
        if self.config.naming == PROTOTYPES:
            super().load_learned_state(state)


def cross_weights(layers: Mapping[str, int], kind: str) -> dict[str, float]:
    """Cross-attention layers by their full names, with their weights among those of a resolution.

    Args:
        layers: transformers and how often the latent grid was halved there. kind: see `DiffSegConfig.noun_layers`.
    """
    finest = [name for name, halvings in layers.items() if halvings == min(layers.values())]
    up = [name for name in finest if name.startswith("up_blocks")]
    weights = dict.fromkeys(layers, 1.0)
    if kind == "code":
        weights |= {name: 1 / len(up if name in up else finest) for name in finest}
    return {layer_name(name, "attn2"): weight for name, weight in weights.items()}
