"""LLaVA as a vision-language backbone: the text-to-image block of a language model's causal self-attention.

There is no cross-attention in LLaVA. What stands for it are the rows of the prompt's tokens and the columns of the
image's tokens in the self-attention of every layer (golden README, section 9). Two things are **our choice**, because
the authors publish no code for this model (the words: `slime_bench.backbones.llava_text.Templates`):

* Where a prompt stands. A prompt of the method, such as "Image of wheel.", is the beginning of the user's message,
  right after the image: `USER: <image>\\n{prompt} {question} ASSISTANT:`. Only the prompt's own tokens are rows.
* The score of an image and a text. The question after the prompt asks whether the image shows this, and the match
  probability is that of "Yes" in the softmax over the logits of "Yes" and "No" at the last position. The question
  comes after the prompt, and attention is causal, so it changes no map.

Images of any size are resized to the vision tower's fixed square (bilinear, corners not aligned, antialiased when they
shrink), stretched where they are not square, so that the h x w maps always cover the whole image. The library's own
processor would resize the short side and cut away the ends of the long one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from slime_bench.backbones.base import Size, chosen_layers
from slime_bench.backbones.llava_attention import KeyValue, attention_by, pack, shared_attention
from slime_bench.backbones.load import DTYPES, load_network
from slime_bench.backbones.vision_language import Llava
from slime_bench.backbones.vlm import (
    ImageText,
    Prompts,
    Reduce,
    VlmBackbone,
    check_finite,
    check_prompts,
    finite_sum,
    wrong_length,
)
from slime_bench.backbones.weights import check_hashes

_TUNED = ("q_proj", "k_proj", "v_proj", "o_proj")


class LlavaBackbone(Llava, VlmBackbone):
    """Frozen until someone switches gradients on, see `tuned`. The network computes in the precision of its weights;
    scores and match probabilities are float32.

    Raises:
        BackboneError: weights missing, corrupt or of another architecture, or a conversation that does not fit.
    """

    implementation: ClassVar[str | None] = None
    _mean: Tensor
    _std: Tensor

    def __init__(self, config: Llava.Config) -> None:
        from transformers import LlavaForConditionalGeneration as Network

        super().__init__()
        self.config = config
        folder = self.folder_of(config)
        check_hashes(folder)
        self._geometry, self._conversation, facts = self.read_folder(folder, config.templates)
        self.model = load_network(Network, folder, DTYPES[config.dtype], whole=True, attn_implementation="sdpa")
        self.requires_grad_(False).eval()
        self.layers, self.num_tokens = facts.layers, facts.num_tokens
        self.num_prefix_keys = self._geometry.prefix
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self._geometry, name)).view(1, 3, 1, 1)
            self.register_buffer(f"_{name}", values, persistent=False)

    def grid(self, size: Size) -> Size:
        """Patches (h, w): the same for every image, as every image is resized to one square."""
        return self._geometry.grid

    def tokenize(self, prompts: Sequence[str]) -> Prompts:
        """Token ids of prompts as they stand in the conversation; no token is special."""
        texts = check_prompts(prompts)
        rows = [self._conversation.ids_of(text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if len(row) > self.num_tokens:
                raise wrong_length(text, len(row), self.num_tokens)
        device = self._mean.device
        ids = pad_sequence([torch.tensor(row, device=device) for row in rows], batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
        return Prompts(texts, ids, mask, torch.zeros_like(mask))

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """The vision tower's output, projected to the language model's width; of images of any size."""
        side = self._geometry.side, self._geometry.side
        if images.shape[-2:] != side:
            images = F.interpolate(images, side, mode="bilinear", align_corners=False, antialias=True)
        pixels = ((images - self._mean) / self._std).to(self.model.dtype)
        return torch.stack(list(self.model.get_image_features(pixel_values=pixels).pooler_output))

    def read(self, states: Tensor, prompts: Prompts, reduce: Reduce, layers: Sequence[str] | None = None) -> ImageText:
        """See `VlmBackbone.read`. T are the prompts' own tokens; a row of padding repeats the prompt's last token.

        The image and what stands before it pass once per image, then all prompts pass together; see
        `slime_bench.backbones.llava_attention`.
        """
        names = chosen_layers(self.layers, layers)
        shared, image = self._shared(states)
        packed = pack(
            self._conversation.lead,
            prompts.ids,
            prompts.mask,
            self._conversation.question,
            shared=image.stop,
            group=self.config.prompts_per_call,
        )
        maps: dict[str, Any] = {}
        sums: dict[str, Tensor] = {}

        def take(name: str, scores: Tensor) -> None:
            sums[name] = finite_sum(scores)
            maps[name] = reduce(scores)

        keep: dict[int, Callable[[Tensor], None]] = {self.layers.index(name): partial(take, name) for name in names}
        text = self._language
        with attention_by(text, shared_attention(packed, shared, image, keep)):
            embedded = self._embed(packed.ids).expand(len(states), -1, -1)
            output = text(inputs_embeds=embedded, position_ids=packed.positions, use_cache=False)
        match = self._match(output.last_hidden_state[:, packed.last])
        check_finite({**sums, "match": finite_sum(match)}, self.model.dtype)
        return ImageText(maps, match)

    def tuned(self, layers: Sequence[str]) -> dict[str, nn.Parameter]:
        """The input embeddings and the query, key, value and output projections of these layers.

        Gradients reach them from the prompts and from the tokens of the image and before it. Steps as small as usual
        are lost in bfloat16 weights: tune in fp32.
        """
        text = "model.model.language_model."
        wanted = [f"{text}embed_tokens."]
        for name in chosen_layers(self.layers, layers):
            wanted += [f"{text}layers.{self.layers.index(name)}.self_attn.{part}." for part in _TUNED]
        return {name: value for name, value in self.named_parameters() if name.startswith(tuple(wanted))}

    @property
    def _language(self) -> Any:
        return self.model.model.language_model

    def _embed(self, ids: Tensor) -> Tensor:
        return self._language.get_input_embeddings()(ids)

    def _shared(self, states: Tensor) -> tuple[list[KeyValue], slice]:
        """Keys and values of the tokens up to the image's last, of every layer, and the image's place among them."""
        before = self._embed(torch.tensor([self._conversation.before], device=states.device))
        embedded = torch.cat([before.expand(len(states), -1, -1), states.to(before.dtype)], dim=1)
        cache = self._language(inputs_embeds=embedded, use_cache=True).past_key_values
        image = slice(before.shape[1], embedded.shape[1])
        return [(layer.keys, layer.values) for layer in cache.layers], image

    def _match(self, hidden: Tensor) -> Tensor:
        """float [B,P,D] at the last position -> float32 [B,P,1], probability of yes against no."""
        head = self.model.get_output_embeddings()
        answers = torch.tensor(self._conversation.answers, device=hidden.device)
        logits = F.linear(hidden, head.weight[answers])  # the other 32 thousand rows are not asked for
        return logits.float().softmax(dim=-1)[..., :1]
