"""Settings of the attention of vision-language models, and all that is known of it before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from slime_bench.backbones.base import VisionLanguage, VlmFacts, chosen_layers, patch_grid
from slime_bench.config.parts import FILE_NAME, NO_NUMBERS
from slime_bench.config.schema import Natural, NotNegative, Positive
from slime_bench.errors import ConfigError
from slime_bench.methods.description import MethodDescription
from slime_bench.methods.infoscore.prompts import read_prompts
from slime_bench.methods.infoscore.protocol import InfoScoreProtocol

TEST = "test"
ZERO_SHOT, ONE_SHOT = "zero_shot", "one_shot"


@dataclass
class InfoScoreConfig:
    """Settings of `InfoScore`.

    Args:
        name: in tables and folder names.
        mode: `zero_shot` learns nothing and takes `shots=0`; `one_shot` tunes on the support images, one or more;
            `auto` is the one that fits the number of shots.
        prompts: name of a file of conf/prompts, or a path to one.
        multi_prompt: whether classes other than the background also use their related words.
        layers: names of the layers that are used; null for the best by InfoScore.
        top: how many of the ranked layers are used.
        rank_on: images that InfoScore looks at, never at their annotation: those of the `train` side (the pool that
            support images are drawn from), or, as the authors did, the `test` images themselves.
        rank_images: at most so many of the train side, drawn with the seed; null for all. The test side is taken whole.
        epochs: passes over the support images. max_steps: ends the tuning after so many steps, where that is earlier.
        lr, weight_decay: of AdamW; the decay acts on every tuned parameter, biases included.
        group: support images per step, in the order of the draw; without effect where they are augmented.
        augment: whether the support images are varied as `data.augment` says and come `data.train_batch_size` a step,
            in random order; as they are otherwise, which is the authors' code.
        class_weights: what a pixel weighs in the loss by its class. `none`: 1, the authors' code, by which small parts
            are given up; `balanced`: pixels of all classes / (classes * pixels of its class), counted over the support
            images; `root`: the root of that. A class that no support image shows then has none.
        background_weight: by which the background's weight is multiplied.
        tuned_layers: those whose cross-attention is tuned: the `top` that segment, or `all`.
        keep_gb: memory for maps that are kept between ranking and test when the images are the same, in 10^9 bytes.
    """

    name: str = "infoscore"
    mode: Literal["auto", "zero_shot", "one_shot"] = "auto"
    prompts: str = field(default="car", metadata=FILE_NAME)
    multi_prompt: bool = False
    layers: list[str] | None = None
    top: Positive = 2
    rank_on: Literal["train", "test"] = "train"
    rank_images: Annotated[int, Field(ge=2)] | None = 100
    epochs: Positive = 5
    max_steps: Positive | None = None
    lr: NotNegative = 2e-4
    weight_decay: NotNegative = 0.05
    group: Positive = 2
    augment: bool = False
    class_weights: Literal["none", "root", "balanced"] = "none"
    background_weight: NotNegative = 0.5
    tuned_layers: Literal["top", "all"] = "top"
    keep_gb: NotNegative = field(default=2.0, metadata=NO_NUMBERS)


@dataclass
class InfoScoreRankingConfig(InfoScoreConfig):
    """Settings of `InfoScoreRanking`: those of `InfoScoreConfig`, without tuning, and

    Args:
        pairs: random pairs of layers that the two best are compared with.
        resamples: of the bootstrap over images.
    """

    name: str = "infoscore_ranking"
    pairs: Natural = 10
    resamples: Natural = 1000


class InfoScoreDescription(MethodDescription):
    """The second paper's method without its computation."""

    implementation: ClassVar[str | None] = "slime_bench.methods.infoscore.method.InfoScore"
    Config = InfoScoreConfig
    Protocol = InfoScoreProtocol
    Backbone = VisionLanguage
    least_shots = 0
    table_order = 10
    self_contained = False  # the layers are chosen with the images of the data set

    @classmethod
    def check(
        cls, config: InfoScoreConfig, backbone: VlmFacts | None, classes: Sequence[str], image_size: int, shots: int = 1
    ) -> None:
        """Everything that can be known before the weights are loaded: prompts, layers, mode.

        Raises:
            ConfigError: prompts that do not name every class once, or a mode that does not fit the shots.
            BackboneError: layers that are not there, or images that cannot be cut into patches.
        """
        if (config.mode == ZERO_SHOT and shots > 0) or (config.mode == ONE_SHOT and shots == 0):
            raise ConfigError(
                f"the mode {config.mode} does not fit the number of shots", path="shots", found=shots,
                expected="0" if config.mode == ZERO_SHOT else "1 or more",
                remedy="method.mode=auto goes by the shots: 0 learns nothing, more tune",
            )  # fmt: skip
        read_prompts(config.prompts).expand(classes, multi=config.multi_prompt)
        if backbone is None:
            return
        if config.layers is not None:
            chosen_layers(backbone.layers, config.layers)
        elif config.top > len(backbone.layers):
            raise ConfigError(
                "more layers are asked for than the backbone has", path="method.top", found=config.top,
                expected=f"1 to {len(backbone.layers)}: {', '.join(backbone.layers)}", remedy="e.g. method.top=2",
            )  # fmt: skip
        if backbone.image_size is None:  # else the backbone resizes
            patch_grid((image_size, image_size), backbone.patch)

    @classmethod
    def fingerprints(cls, config: InfoScoreConfig) -> dict[str, str]:
        """`prompts`: sha256 of what the prompt file says."""
        return {"prompts": read_prompts(config.prompts).content_hash()}

    @classmethod
    def label(cls, config: InfoScoreConfig, shots: int) -> str:
        """`InfoScore zero-shot`, `InfoScore 1-shot` and so on; the name where a file of one's own gives another."""
        return f"InfoScore {shots or 'zero'}-shot" if config.name == "infoscore" else config.name

    @classmethod
    def stated(cls, config: InfoScoreConfig) -> dict[str, str]:
        """`layers`, `prompts` and `tuning`."""
        layers = f"named: {', '.join(dict.fromkeys(config.layers or ()))}"
        if config.layers is None:
            number = "all" if config.rank_images is None else f"up to {config.rank_images}"
            by = "InfoScore of single prompts" if config.multi_prompt else "InfoScore"
            layers = f"the best {config.top} by {by}, ranked on {ranked_on(config.rank_on, number)}"
        words = "multi (with related words)" if config.multi_prompt else "single (one word for each class)"
        return {
            "layers": layers,
            "prompts": f"{PurePath(config.prompts).name}, {words}",  # a table says nothing of folders
            "tuning": f"{'augmented' if config.augment else 'plain'} support images, class weights "
            f"{config.class_weights}, cross-attention of {'all layers' if config.tuned_layers == 'all' else 'these'}",
        }


class InfoScoreRankingDescription(InfoScoreDescription):
    """The ranking experiment without its computation."""

    implementation: ClassVar[str | None] = "slime_bench.methods.infoscore.ranking.InfoScoreRanking"
    Config = InfoScoreRankingConfig
    only_shots = (0,)
    own_report = "ranking"

    @classmethod
    def check(
        cls, config: InfoScoreConfig, backbone: VlmFacts | None, classes: Sequence[str], image_size: int, shots: int = 1
    ) -> None:
        """As `InfoScoreDescription.check`, no support images, and enough layers to be ranked."""
        if shots:
            raise ConfigError(
                "the ranking experiment learns nothing", path="shots", found=shots, expected="0", remedy="shots=0"
            )
        super().check(config, backbone, classes, image_size, shots)
        super().check(replace(config, layers=None), backbone, classes, image_size, shots)


def ranked_on(rank_on: str, number: str) -> str:
    """The images that layers were ranked on, in words.

    Args:
        rank_on: `train` or `test`. number: of images, e.g. "up to 100".
    """
    return "TEST IMAGES (transductive)" if rank_on == TEST else f"{number} unlabelled images of the training side"
