"""What the files of a LLaVA fix: sizes, how a prompt stands in the conversation, and which tokens are whose.

The whole conversation is tokenised as one text, as the library's own processor does it, and cut afterwards by the
characters that each token covers. Tokenising the parts one by one would give other tokens at the seams.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from slime_bench.backbones.base import Size, channels
from slime_bench.backbones.weights import CONFIG, PROCESSORS, read_json, unusable
from slime_bench.errors import BackboneError

IMAGE: Final = "<image>"
PROMPT: Final = "{prompt}"
_PROBE: Final = "Image of wheel."


@dataclass
class Templates:
    """The conversation. Our choice: the authors publish no code for LLaVA, so neither the place of their prompts nor
    the score of an image and a text is fixed by them.

    Args:
        conversation: the whole text up to where the model answers. It holds `<image>` and, after it, `{prompt}`, once
            each; the question follows the prompt. The default is the chat template of LLaVA 1.5 (no system text), and
            the question ends with the words by which LLaVA 1.5 was trained to give one-word answers.
        positive, negative: answers as they would go on in the text, with the space before them. Only their first tokens
            count. (Not called yes and no: YAML takes these for true and false.)
    """

    conversation: str = (
        "USER: <image>\n{prompt} Does the image show this? Answer the question using a single word or phrase."
        " ASSISTANT:"
    )
    positive: str = " Yes"
    negative: str = " No"

    def __post_init__(self) -> None:
        before, *after = self.conversation.split(PROMPT)
        if self.conversation.count(IMAGE) != 1 or IMAGE not in before or len(after) != 1 or not after[0]:
            raise ValueError(
                f"templates.conversation must hold {IMAGE} once, after it {PROMPT} once (a text sees only what is"
                " before it), and after that a question, for the answer to be read"
            )


@dataclass(frozen=True)
class Geometry:
    """What the configuration files fix.

    Attributes:
        side: of the square image that the vision tower takes, pixels. patch: side of a patch, pixels.
        prefix: image tokens before those of the patches: 1 where the vision tower's [CLS] is kept, otherwise 0.
        layers: of the language model. positions: tokens that a conversation may have, those of the image included.
        image_token: id of the token that stands for the image.
        mean, std: of the colour channels in [0,1], red first.
    """

    side: int
    patch: int
    prefix: int
    layers: int
    positions: int
    image_token: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def grid(self) -> Size:
        return self.side // self.patch, self.side // self.patch

    @property
    def image_tokens(self) -> int:
        return self.prefix + self.grid[0] * self.grid[1]


def read_geometry(folder: Path) -> Geometry:
    """What the JSON files of a folder fix; no weights are read.

    A key that is not written down has the library's default: the published LLaVA 1.5 does not write its number of
    layers.

    Raises:
        BackboneError: a file that is no JSON, of another model, or with values that do not fit together.
    """
    from transformers import LlavaConfig

    path = folder / CONFIG
    content = read_json(path)
    try:
        config = LlavaConfig.from_dict(content)
        vision, text = config.vision_config, config.text_config
        kinds = (content.get("model_type"), vision.model_type)
        layers, grid = int(text.num_hidden_layers), vision.image_size // vision.patch_size
    except Exception as error:  # the library's checks raise several kinds
        raise unusable(path, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    if kinds != ("llava", "clip_vision_model") or grid < 1:
        raise unusable(
            path, f"model_type {kinds[0]}, a vision tower of model_type {kinds[1]}, {grid} patches per side",
            "a LLaVA 1.5 in the library's own layout (hub ids llava-hf/...)",
        )  # fmt: skip
    positions = text.max_position_embeddings
    described = next(folder / name for name in PROCESSORS if (folder / name).is_file())
    processor = read_json(described)
    # The whole processor's file keeps the image's inside.
    mean, std = channels(described, processor.get("image_processor", processor))
    return Geometry(
        side=vision.image_size,
        patch=vision.patch_size,
        prefix=0 if config.vision_feature_select_strategy == "default" else 1,
        layers=layers,
        positions=min(positions, getattr(text, "sliding_window", None) or positions),
        image_token=config.image_token_id,
        mean=mean,
        std=std,
    )


class Conversation:
    """Templates in the tokens of a model.

    Attributes:
        before: ids up to the image, without it. lead: between image and prompt. question: after the prompt.
        answers: ids of the positive and of the negative answer.
    """

    def __init__(self, tokenizer: Any, templates: Templates, image_token: int) -> None:
        """
        Args:
            tokenizer: of the library, one that knows where in the text a token lies. image_token: id of `<image>`.

        Raises:
            BackboneError: templates that the tokeniser cannot cut.
        """
        self._tokenizer, self._image_token = tokenizer, image_token
        name = tokenizer.convert_ids_to_tokens(image_token) or IMAGE
        self._head, self._tail = templates.conversation.replace(IMAGE, name).split(PROMPT)
        parts = self._cut(_PROBE)
        if parts is None or not parts[3]:
            found = f"{templates.conversation}, with the image's token {image_token}"
            raise _unfit(".conversation", found, "it cannot be cut at the image and the prompt")
        self.before, self.lead, _, self.question = parts
        self.answers = (
            self._answer("positive", templates.positive),
            self._answer("negative", templates.negative),
        )
        if self.answers[0] == self.answers[1]:
            found = f"{templates.positive!r} and {templates.negative!r}"
            raise _unfit("", found, "both answers begin with the same token")

    def __len__(self) -> int:
        """Tokens beside those of the image and of the prompt."""
        return len(self.before) + len(self.lead) + len(self.question)

    def ids_of(self, prompt: str) -> tuple[int, ...]:
        """The tokens of a prompt in its place in the conversation.

        Raises:
            BackboneError: the prompt holds the image's token, or its tokens run into those around it.
        """
        parts = self._cut(prompt)
        if parts is None or (parts[0], parts[1], parts[3]) != (self.before, self.lead, self.question):
            raise BackboneError(
                "a prompt cannot be told from the text around it",
                path=f"prompt {prompt!r}",
                found="tokens that reach across its ends, or the token of an image",
                expected="a text that begins with a letter and ends with a letter or a full stop",
                remedy="change the prompt, or backbone.templates.conversation",
            )
        return parts[2]

    def _cut(self, prompt: str) -> tuple[tuple[int, ...], ...] | None:
        """Ids before the image, between image and prompt, of the prompt, and after it; None where there is no cut."""
        encoded = self._tokenizer(self._head + prompt + self._tail, return_offsets_mapping=True)
        ids, spans = tuple(encoded["input_ids"]), encoded["offset_mapping"]
        start, end = len(self._head), len(self._head) + len(prompt)
        inside = [index for index, (first, last) in enumerate(spans) if first < end and last > start]
        if ids.count(self._image_token) != 1 or not inside or ids.index(self._image_token) >= inside[0]:
            return None
        image = ids.index(self._image_token)
        return ids[:image], ids[image + 1 : inside[0]], ids[inside[0] : inside[-1] + 1], ids[inside[-1] + 1 :]

    def _answer(self, key: str, answer: str) -> int:
        text = self._head + _PROBE + self._tail
        asked = self._tokenizer(text)["input_ids"]
        answered = self._tokenizer(text + answer)["input_ids"]
        if len(answered) <= len(asked) or answered[: len(asked)] != asked:
            raise _unfit(f".{key}", repr(answer), "its tokens run into those of the question")
        return int(answered[len(asked)])


def _unfit(key: str, found: str, why: str) -> BackboneError:
    return BackboneError(
        f"the conversation does not fit the tokeniser: {why}", path=f"backbone.templates{key}", found=found,
        expected="e.g. 'USER: <image>\\n{prompt} Is this in the image? ASSISTANT:', ' Yes' and ' No'",
        remedy="change backbone.templates, or give the tokeniser that belongs to the model",
    )  # fmt: skip
