"""Settings of the attention of vision-language models, and the checks that they can pass before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field

from slime_bench.backbones.base import VlmFacts, chosen_layers
from slime_bench.config.parts import FILE_NAME, NO_NUMBERS
from slime_bench.errors import ConfigError
from slime_bench.refine.crf import CrfConfig

TRAIN, TEST = "train", "test"
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
        group: support images per step, in the order of the draw.
        background_weight: weight of the background's pixels in the loss, beside the other classes' 1.
        crf: refinement of the class maps.
        keep_gb: memory for maps that are kept between ranking and test when the images are the same, in 10^9 bytes.
    """

    name: str = "infoscore"
    mode: str = field(default="auto", metadata={"choices": ("auto", ZERO_SHOT, ONE_SHOT)})
    prompts: str = field(default="car", metadata=FILE_NAME)
    multi_prompt: bool = False
    layers: list[str] | None = None
    top: int = field(default=2, metadata={"min": 1})
    rank_on: str = field(default=TRAIN, metadata={"choices": (TRAIN, TEST)})
    rank_images: int | None = field(default=100, metadata={"min": 2})
    epochs: int = field(default=5, metadata={"min": 1})
    max_steps: int | None = field(default=None, metadata={"min": 1})
    lr: float = field(default=2e-4, metadata={"min": 0})
    weight_decay: float = field(default=0.05, metadata={"min": 0})
    group: int = field(default=2, metadata={"min": 1})
    background_weight: float = field(default=0.5, metadata={"min": 0})
    crf: CrfConfig = field(default_factory=CrfConfig)
    keep_gb: float = field(default=2.0, metadata={"min": 0, **NO_NUMBERS})


def check_mode(config: InfoScoreConfig, shots: int) -> None:
    """Refuse a mode that does not fit the number of support images.

    Raises:
        ConfigError: `zero_shot` with support images, or `one_shot` without.
    """
    if (config.mode == ZERO_SHOT and shots > 0) or (config.mode == ONE_SHOT and shots == 0):
        raise ConfigError(
            f"the mode {config.mode} does not fit the number of shots", path="shots", found=shots,
            expected="0" if config.mode == ZERO_SHOT else "1 or more",
            remedy="method.mode=auto goes by the shots: 0 learns nothing, more tune",
        )  # fmt: skip


def check_layers(config: InfoScoreConfig, facts: VlmFacts) -> None:
    """Refuse layers that the backbone does not have.

    Raises:
        BackboneError: an empty list, an unknown name or a name twice. ConfigError: more ranked layers than there are.
    """
    if config.layers is not None:
        chosen_layers(facts.layers, config.layers)
    elif config.top > len(facts.layers):
        raise ConfigError(
            "more layers are asked for than the backbone has", path="method.top", found=config.top,
            expected=f"1 to {len(facts.layers)}: {', '.join(facts.layers)}", remedy="e.g. method.top=2",
        )  # fmt: skip
