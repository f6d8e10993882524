"""Settings of DiffSeg, and all that is known of it before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from slime_bench.backbones.diffusion import BackboneFacts, StableDiffusion, check_timesteps, transformers
from slime_bench.config.parts import FILE_NAME
from slime_bench.config.schema import Natural
from slime_bench.errors import ConfigError
from slime_bench.methods.description import MethodDescription, NoSwitches
from slime_bench.methods.infoscore.prompts import read_prompts

ORACLE, PROTOTYPES, NOUNS = "oracle", "prototypes", "nouns"
_SAID: Final = {ORACLE: "oracle: sees the test labels", PROTOTYPES: "prototypes", NOUNS: "nouns"}
Threshold = Annotated[float, Field(gt=0)]


@dataclass
class DiffSegConfig:
    """Settings of `DiffSeg`; the defaults are the authors', but for `naming`.

    Args:
        name: in tables and folder names.
        naming: what gives clusters their classes. `oracle`: the test labels, image by image, as the authors score it.
            `prototypes`: the support images. `nouns`: words in the prompt, through cross-attention.
        t: timestep that the U-Net is told. add_noise: whether the latent is noised to it; the authors' is not.
        weights: of the resolutions of self-attention, the finest first; null for their sides divided by the sum.
        grid: anchors along a side of the latent.
        thresholds: of the KL divergence, of the merging's steps.
        first_step: `half`: in float16, as the authors' code computes it; `exact`: in float64, as the later steps.
        k_means: whether the clusters are refined by k-means.
        unmatched: of `oracle`: clusters that are left over are of `no_class` and cost no false alarm, as the authors
            count them, or `background`.
        vote: of `nouns`: `mean`, or `median`, which the authors' code calls "majority".
        noun_layers: of `nouns`: `equal` weights for the cross-attention layers of a resolution; `code`: on the finest,
            1 / (their number) for those of the way down and 1 / (number of those of the way up) for these.
        prompts: of `nouns`: name of a file of conf/prompts, or a path to one, with the words of the classes.
        layers: of `prototypes`: blocks of the U-Net, of which every transformer's output is compared.
    """

    name: str = "diffseg"
    naming: Literal["oracle", "prototypes", "nouns"] = "prototypes"
    t: Natural = 300
    add_noise: bool = False
    weights: list[Annotated[float, Field(ge=0)]] | None = None
    grid: Annotated[int, Field(ge=2)] = 16
    thresholds: Annotated[list[Threshold], Field(min_length=1)] = field(default_factory=lambda: [0.9, 0.9, 0.9])
    first_step: Literal["half", "exact"] = "half"
    k_means: bool = False
    unmatched: Literal["no_class", "background"] = "no_class"
    vote: Literal["mean", "median"] = "mean"
    noun_layers: Literal["code", "equal"] = "code"
    prompts: str = field(default="car", metadata=FILE_NAME)
    layers: Annotated[list[str], Field(min_length=1)] = field(default_factory=lambda: ["up_blocks.1", "up_blocks.2"])


class DiffSegDescription(MethodDescription):
    """DiffSeg without its computation."""

    implementation: ClassVar[str | None] = "slime_bench.methods.diffseg.method.DiffSeg"
    Config = DiffSegConfig
    Protocol = NoSwitches
    Backbone = StableDiffusion
    least_shots = 0
    table_order = 6

    @classmethod
    def check(
        cls,
        config: DiffSegConfig,
        backbone: BackboneFacts | None,
        classes: Sequence[str],
        image_size: int,
        shots: int = 1,
    ) -> None:
        """Shots that fit the naming, and everything that the backbone's facts tell.

        Raises:
            ConfigError: shots that do not fit the naming, words that name no class or are too many for a prompt, a
                timestep outside the schedule, more anchors than positions, another number of weights than resolutions.
            BackboneError: a block that the backbone does not have.
        """
        _check_shots(config.naming, shots)
        words = nouns_of(config.prompts, classes)[0] if config.naming == NOUNS else []
        if backbone is None:
            return
        check_timesteps(backbone.num_timesteps, {"method.t": [config.t]})
        transformers(backbone.layers, config.layers, "method.layers")
        if len(words) + 2 > backbone.num_tokens:
            raise ConfigError(
                "the nouns do not fit into a prompt", path="method.prompts", found=f"{len(words)} words",
                expected=f"at most {backbone.num_tokens - 2}", remedy="a file with fewer background words",
            )  # fmt: skip
        side = image_size // backbone.downscale
        if config.grid > side:
            raise ConfigError(
                "there are more anchors along a side than positions of the latent", path="method.grid",
                found=config.grid, expected=f"2 to {side} for images of {image_size} pixels",
                remedy=f"e.g. method.grid={max(2, side // 2)}",
            )  # fmt: skip
        sizes = len(set(backbone.layers.values()))
        if config.weights is not None and (len(config.weights) != sizes or not sum(config.weights)):
            raise ConfigError(
                "the weights are not those of the backbone's resolutions", path="method.weights", found=config.weights,
                expected=f"{sizes} numbers, the finest resolution's first, not all of them 0",
                remedy="method.weights=null weighs them by their sides",
            )  # fmt: skip

    @classmethod
    def fingerprints(cls, config: DiffSegConfig) -> dict[str, str]:
        """`prompts`: sha256 of what the prompt file says, where its words are used."""
        return {"prompts": read_prompts(config.prompts).content_hash()} if config.naming == NOUNS else {}

    @classmethod
    def label(cls, config: DiffSegConfig, shots: int) -> str:
        """`DiffSeg (prototypes)`, `DiffSeg (nouns)`, `DiffSeg (oracle: sees the test labels)`; the name in front where
        a file of one's own gives another."""
        return f"{'DiffSeg' if config.name == 'diffseg' else config.name} ({_SAID[config.naming]})"

    @classmethod
    def facts(cls, config: DiffSegConfig, shots: int) -> dict[str, Any]:
        """As of every method; the shots are those of the naming."""
        least, only = (1, None) if config.naming == PROTOTYPES else (0, [0])
        return {**super().facts(config, shots), "least_shots": least, "only_shots": only}

    @classmethod
    def stated(cls, config: DiffSegConfig) -> dict[str, str]:
        """`names of clusters`, `merging` and, where its words are used, `prompts`."""
        names = {
            ORACLE: "THE TEST LABELS, matched one to one in each image; clusters that are left over are "
            + ("of no class and cost no false alarm" if config.unmatched == "no_class" else "background"),
            PROTOTYPES: "the class of the support images whose mean hidden state is nearest",
            NOUNS: f"the noun of the strongest cross-attention ({config.vote})",
        }
        steps = ", ".join(f"{threshold:g}" for threshold in config.thresholds)
        first = "in float16" if config.first_step == "half" else "exact"
        merging = f"thresholds {steps}, first step {first}{', then k-means' if config.k_means else ''}"
        said = {"names of clusters": names[config.naming], "merging": merging}
        return said | ({"prompts": PurePath(config.prompts).name} if config.naming == NOUNS else {})


def nouns_of(prompts: str, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """Nouns and the class of each: all words of the background, and of every other class the one it is written as.

    Raises:
        ConfigError: see `slime_bench.methods.infoscore.prompts.PromptFile.words`.
    """
    words = read_prompts(prompts).words(classes)
    kept = [words[0], *([own[0]] for own in words[1:])]
    return [word for own in kept for word in own], [k for k, own in enumerate(kept) for _ in own]


def _check_shots(naming: str, shots: int) -> None:
    if naming == PROTOTYPES and shots == 0:
        raise ConfigError(
            "clusters are to be named by support images, and there are none", path="shots", found=shots,
            expected="1 or more", remedy="shots=1, or method.naming=nouns, or method.naming=oracle, which sees the "
            "test labels",
        )  # fmt: skip
    if naming != PROTOTYPES and shots > 0:
        raise ConfigError(
            {
                ORACLE: "the oracle names clusters by the labels of the test images, and learns nothing from others",
                NOUNS: "nouns name clusters by words, and learn nothing from annotated images",
            }[naming],
            path="method.naming", found=f"{naming} with {shots} annotated image(s)", expected="shots=0 in a trial",
            remedy="shots=0, or method.naming=prototypes, which segments pictures without labels",
        )  # fmt: skip
