"""The architectures of the small models, in the libraries' own classes and folder layouts.

Mini Stable Diffusion: block types and layer names are Stable Diffusion's, so that `up_blocks.2.attentions.1` means the
same thing here and in SD 2.1: cross maps come from up_blocks 1 and 2, self maps from up_blocks 3. Mini BLIP: an
image-text matcher with 8-pixel patches.
"""

from __future__ import annotations

import itertools
import string
from collections import Counter
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)
from transformers.models.blip.modeling_blip import BlipAttention

HEAD_WIDTH = 32  # narrower heads make the CPU's fused attention slow in the backward pass
MAX_TOKENS = 77
WORD_END = "</w>"
BLIP_SIDE, BLIP_PATCH, BLIP_TOKENS = 128, 8, 64


def build_tokenizer(words: list[str]) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer with merges learned on `words` alone, so that each of them is one token.

    Any other word still has tokens, made of pieces, as with the original vocabulary.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges(words)
    names = [*alphabet, *(f"{c}{WORD_END}" for c in alphabet), *("".join(pair) for pair in merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that make every word of ASCII letters one token: the most frequent pair first, ties by spelling.

    The library's trainer breaks ties by the order of a hash map: two processes would number some tokens differently.
    """
    pieces = [[*word[:-1], word[-1] + WORD_END] for word in sorted({w.lower() for w in words}) if word.isalpha()]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in pieces for pair in itertools.pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [_merged(word, best) for word in pieces]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """`word` with every occurrence of `pair`, from the left, made one piece."""
    result: list[str] = []
    for piece in word:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def build_text_encoder(tokenizer: CLIPTokenizer, width: int = 128, layers: int = 2) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_vae(channels: tuple[int, int, int] = (24, 48, 64), latent_channels: int = 4) -> AutoencoderKL:
    """128x128x3 -> 32x32x4, two halvings."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
    )


def build_unet(
    channels: tuple[int, int, int, int], text_width: int, query_key_gain: float = 2.0
) -> UNet2DConditionModel:
    """SD's U-Net, narrow: one layer per block, heads of width 32.

    `query_key_gain` starts every self-attention as a similarity kernel: to_q = to_k = gain * an orthogonal matrix, so
    that a query attends to what looks like itself before anything is learned. Without it the self-attention of so
    small a network stays nearly uniform, and WAS can only blur.
    """
    unet = UNet2DConditionModel(
        sample_size=32,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=channels,
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=tuple(c // HEAD_WIDTH for c in channels),
        norm_num_groups=16,
        use_linear_projection=True,
    )
    for name, module in unet.named_modules():
        if name.endswith("attn1"):
            matrix = torch.empty_like(module.to_q.weight)
            torch.nn.init.orthogonal_(matrix, gain=query_key_gain)
            module.to_q.weight.data.copy_(matrix)
            module.to_k.weight.data.copy_(matrix)
    return unet


def build_scheduler() -> DDIMScheduler:
    """SD's noise schedule: 1000 steps, scaled-linear betas, eps-prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def build_blip_tokenizer(words: list[str]) -> BertTokenizer:
    """BERT's WordPiece tokenizer in which each of `words` is one token; any other word has its letters' tokens."""
    letters = [*string.ascii_lowercase, *string.digits]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.punctuation]
    names += [*letters, *(f"##{each}" for each in letters), *sorted(words)]
    vocab = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return BertTokenizer(vocab=vocab, model_max_length=BLIP_TOKENS)


class ScaledQueryAttention(BlipAttention):
    """The library's, but it scales the queries, which are few numbers, in place of the scores. torch's fused kernel
    takes twice as long in its backward pass in bfloat16, with heads this narrow."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        q, k, v = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B,heads,N,d]
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)
        return self.projection((weights @ v).transpose(1, 2).flatten(2)), None


def build_blip(tokenizer: BertTokenizer, width: int = 192, layers: int = 6) -> BlipForImageTextRetrieval:
    """`layers` vision layers and as many text layers, each with cross-attention to the image."""
    shared = {
        "hidden_size": width,
        "projection_dim": width // 2,
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD_WIDTH,
    }
    text = {
        "vocab_size": len(tokenizer),
        "encoder_hidden_size": width,
        "intermediate_size": 2 * width,
        "max_position_embeddings": BLIP_TOKENS,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "intermediate_size": 4 * width,
        "image_size": BLIP_SIDE,
        "patch_size": BLIP_PATCH,
        "initializer_range": 0.02,
    }
    sizes = {"projection_dim": width // 2, "image_text_hidden_size": width // 2}
    model = BlipForImageTextRetrieval(BlipConfig(text_config=shared | text, vision_config=shared | vision, **sizes))
    for layer in model.vision_model.encoder.layers:
        layer.self_attn.__class__ = ScaledQueryAttention  # the same parameters under the same names
    return model
