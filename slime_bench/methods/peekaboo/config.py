"""Settings of Peekaboo, and all that is known of it before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from slime_bench.backbones.diffusion import BackboneFacts, StableDiffusion, check_timesteps
from slime_bench.config.parts import NO_NUMBERS
from slime_bench.config.schema import Natural, NotNegative, Positive
from slime_bench.errors import ConfigError
from slime_bench.methods.description import MethodDescription, NoSwitches

Alpha = Literal["fourier_bilateral", "fourier", "raster_bilateral"]


@dataclass
class PeekabooConfig:
    """Settings of `Peekaboo`; the defaults are the authors', where they have one.

    Args:
        name: in tables and folder names.
        template: of the prompts, with one {} for the part. (The authors: the plain name.)
        words: part -> what it is called in its prompt, where its class name is no word. Other data's parts may be here.
        alpha: what the map is: `fourier_bilateral`, a network on Fourier features, blurred along the image's edges;
            `fourier`, without the blur; `raster_bilateral`, a free image, blurred, which needs a far larger `lr`.
        size: side of the alpha map in pixels; images are brought to it, whatever their shape, and enlarged again to the
            backbone's `image_size`.
        steps: of the optimisation, for every part of every image.
        lr: of plain gradient descent. The gradient is a sum over pixels: it grows with the sizes.
        draws: backgrounds, timesteps and noises per step.
        timesteps: [lowest, highest], both included. (The released code forgets them and fails; its class has these.)
        guidance: scale s of classifier-free guidance, e_u + s (e_c - e_u).
        gravity: weight of the sum of alpha, which pulls it to 0. (0.01 to 0.15 are advised.)
        threshold: alpha of the background: a pixel is the part of the largest alpha above it. (Ours.)
        batch: maps, of parts and images, that are optimised side by side; does not change any number but by rounding.
    """

    name: str = "peekaboo"
    template: str = "{}"
    words: dict[str, str] = field(default_factory=dict)
    alpha: Alpha = "fourier_bilateral"
    size: Annotated[int, Field(ge=8)] = 256
    steps: Positive = 300
    lr: Annotated[float, Field(gt=0)] = 1e-5
    draws: Positive = 1
    timesteps: Annotated[list[Natural], Field(min_length=2, max_length=2)] = field(default_factory=lambda: [20, 980])
    guidance: NotNegative = 100.0
    gravity: NotNegative = 0.05
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    batch: Positive = field(default=1, metadata=NO_NUMBERS)

    def prompts(self, classes: Sequence[str]) -> list[str]:
        """The prompts of the K - 1 parts of `classes`, in their order.

        Raises:
            ConfigError: a template without exactly one {}, a part without a word, or two parts with one prompt.
        """
        if self.template.count("{}") != 1 or set("{}") & set(self.template.replace("{}", "")):
            raise ConfigError(
                "this is no template of a prompt", path="method.template", found=repr(self.template),
                expected="a text with exactly one {}, which becomes the part's word", remedy="e.g. method.template={}",
            )  # fmt: skip
        words = [self.words.get(name, name) for name in classes[1:]]
        for name, word in zip(classes[1:], words, strict=True):
            if not word.strip() or words.count(word) > 1:
                raise ConfigError(
                    "two parts have the same prompt" if word.strip() else "a part has no prompt",
                    path=f"method.words.{name}", found=repr(word), expected="a word for each part, of its own",
                    remedy=f"write it in method.words, e.g. 'method.words={{{name}: <word>}}'",
                )  # fmt: skip
        return [self.template.format(word) for word in words]


class PeekabooDescription(MethodDescription):
    """Peekaboo without its computation."""

    implementation: ClassVar[str | None] = "slime_bench.methods.peekaboo.method.Peekaboo"
    Config = PeekabooConfig
    Protocol = NoSwitches
    Backbone = StableDiffusion
    least_shots = 0
    only_shots = (0,)
    table_order = 5

    @classmethod
    def check(
        cls,
        config: PeekabooConfig,
        backbone: BackboneFacts | None,
        classes: Sequence[str],
        image_size: int,
        shots: int = 1,
    ) -> None:
        """No support images, timesteps of the schedule, and a prompt for each part.

        Raises:
            ConfigError: one of these.
        """
        if shots:
            raise ConfigError(
                "Peekaboo looks at no support image", path="shots", found=shots, expected="0", remedy="shots=0"
            )
        lowest, highest = config.timesteps
        if lowest > highest:
            raise ConfigError(
                "the timesteps are no range", path="method.timesteps", found=config.timesteps,
                expected="[lowest, highest]", remedy=f"e.g. method.timesteps=[{highest},{lowest}]",
            )  # fmt: skip
        if backbone is not None:
            check_timesteps(backbone.num_timesteps, {"method.timesteps": config.timesteps})
        config.prompts(classes)

    @classmethod
    def label(cls, config: PeekabooConfig, shots: int) -> str:
        """`Peekaboo zero-shot`; the name where a file of one's own gives another."""
        return "Peekaboo zero-shot" if config.name == "peekaboo" else config.name

    @classmethod
    def stated(cls, config: PeekabooConfig) -> dict[str, str]:
        """`alpha`, `background` and, where it is more than the plain word, `prompts`."""
        said = {
            "alpha": f"{config.alpha} of {config.size} pixels, {config.steps} steps for each part of each image",
            "background": f"where no part's alpha is above {config.threshold:g}",
        }
        return said | ({"prompts": config.template} if config.template != "{}" else {})
