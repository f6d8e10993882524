"""The authors' random-weight models as a backbone of the bench, and SLiMe with recorded draws in place of its own.

The golden draws are fed in, so that every difference from the golden numbers is a difference of the method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from slime_bench.attention.capture import LayerAttention
from slime_bench.attention.maps import was
from slime_bench.backbones.stable_diffusion import DiffusionAttention, StableDiffusionBackbone
from slime_bench.methods.slime.method import Slime, SlimeConfig
from slime_bench.methods.slime.protocol import SlimeProtocol
from tests.parity.golden import Golden

PATCHES_PER_CALL = 3  # so that the patches of the larger grids need several calls, the last one not full


@dataclass(frozen=True)
class Draws:
    """One row per image or patch: t int64 [P], posterior and diffusion noise float [P,4,h,w]."""

    timesteps: torch.Tensor
    posterior: torch.Tensor
    noise: torch.Tensor


class GoldenBackbone(StableDiffusionBackbone):
    """The bench's own loader and passes on the authors' files; the stored text embeddings stand for a text encoder.

    What has been computed without gradient is remembered, as the same crops and the same passes occur in many cases.
    """

    words: torch.Tensor
    empty: torch.Tensor

    def prepare(self, golden: Golden, encoded: dict[bytes, Any]) -> GoldenBackbone:
        """Take the text of `golden`; `encoded` is shared by the flavours, which have one autoencoder."""
        self.words, self.empty = golden.inputs.tensor("text_embedding"), golden.inputs.tensor("uncond_embedding")
        self.vae.encode = remembering(self.vae.encode, encoded)
        self._passes: dict[bytes, DiffusionAttention] = {}
        self._predicted: dict[bytes, torch.Tensor] = {}
        self._capturing = False
        return self

    @property
    def num_tokens(self) -> int:
        return int(self.words.shape[1])

    def embed(self, prompt: str) -> torch.Tensor:
        return self.words if prompt else self.empty

    def images_per_call(self, size: tuple[int, int]) -> int:
        return PATCHES_PER_CALL

    def attention(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor, **how: bool
    ) -> DiffusionAttention:
        """As the bench's; passes without gradient that stop early are remembered."""
        key = _digest(noisy, timesteps, text)
        early = not torch.is_grad_enabled() and how == {"with_noise": False}
        if early and key in self._passes:
            return self._passes[key]
        self._capturing = True
        try:
            found = super().attention(noisy, timesteps, text, **how)
        finally:
            self._capturing = False
        if early:
            self._passes[key] = found
        return found

    def predict_noise(self, noisy: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """As the bench's; passes without gradient are remembered, but always run where attention is captured."""
        key = _digest(noisy, timesteps, text)
        if not torch.is_grad_enabled() and not self._capturing and key in self._predicted:
            return self._predicted[key]
        found = super().predict_noise(noisy, timesteps, text)
        if not torch.is_grad_enabled():
            self._predicted[key] = found
        return found

    def forget(self) -> None:
        """Drop the remembered passes."""
        self._passes.clear()
        self._predicted.clear()


def remembering(encode: Callable[[torch.Tensor], Any], known: dict[bytes, Any]) -> Callable[[torch.Tensor], Any]:
    """`encode`, computed once for the same pixels."""

    def remembered(pixels: torch.Tensor) -> Any:
        key = _digest(pixels)
        if key not in known:
            known[key] = encode(pixels)
        return known[key]

    return remembered


def remembering_was() -> Callable[..., torch.Tensor]:
    """The bench's `was`, computed once for the same layers and maps: thresholds and sizes mostly repeat it."""
    known: dict[tuple[bytes, bytes], torch.Tensor] = {}

    def remembered(layers: Sequence[LayerAttention], maps: torch.Tensor) -> torch.Tensor:
        key = _digest(*(layer.query for layer in layers)), _digest(maps)
        if key not in known:
            known[key] = was(layers, maps)
        return known[key]

    return remembered


def _digest(*tensors: torch.Tensor) -> bytes:
    return hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)).digest()


class FedSlime(Slime):
    """SLiMe with recorded timesteps and noise; `logged` holds what its last training step logged."""

    draws: Draws
    logged: Mapping[str, Any]

    def timesteps(self, keys: Sequence[tuple[str, int]]) -> torch.Tensor:
        return self.draws.timesteps[[row for _, row in keys]]

    def noises(
        self, images: torch.Tensor, keys: Sequence[tuple[str, int]], purpose: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [row for _, row in keys]
        return self.draws.posterior[rows], self.draws.noise[rows]

    def latents(self, patches: torch.Tensor, keys: Sequence[tuple[str, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        images = self._channels(patches)
        posterior, noise = self.noises(images, keys, "test")
        return encode(self.backbone, images, posterior), noise

    def log_dict(self, dictionary: Mapping[str, Any], *_: Any, **__: Any) -> None:  # type: ignore[override]
        self.logged = dictionary


def encode(backbone: StableDiffusionBackbone, images: torch.Tensor, posterior: torch.Tensor) -> torch.Tensor:
    """Latents of images one by one, as the remembered ones are."""
    return torch.cat([backbone.encode(i[None], p[None]) for i, p in zip(images, posterior, strict=True)])


def fed_slime(
    backbone: GoldenBackbone, num_classes: int, protocol: SlimeProtocol, text: torch.Tensor | None = None, **config: Any
) -> FedSlime:
    """SLiMe with `num_classes` classes on the stored text, or on `text` [1,T,D]; keys of `SlimeConfig` in `config`."""
    stored = backbone.words
    backbone.words = stored if text is None else text
    try:
        classes = ["background", *(f"part{k}" for k in range(1, num_classes))]
        return FedSlime(SlimeConfig(**config), protocol, backbone, classes, seed=0)
    finally:
        backbone.words = stored


def golden_backbone(golden: Golden, flavour: str, folder: Path, encoded: dict[bytes, Any]) -> GoldenBackbone:
    """The models of one flavour, put together in the empty `folder` as a Stable Diffusion folder."""
    for name, source in (("vae", "vae"), ("unet", f"unet_{flavour}"), ("scheduler", "scheduler")):
        (folder / name).symlink_to(golden.folder / source)
    _save_text_encoder(folder, golden.inputs["text_embedding"].shape)
    cross, self_ = golden.layers(flavour)
    config = GoldenBackbone.Config(
        name=flavour, weights=str(folder), image_size=golden.side, cross_layers=cross, self_layers=self_
    )
    return GoldenBackbone(config).prepare(golden, encoded)


def _save_text_encoder(folder: Path, shape: tuple[int, ...]) -> None:
    """A text encoder of the right length and width that no number comes from: the loader wants a whole folder."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from data_prep.pretrain.models import build_tokenizer

    tokenizer = build_tokenizer(["part"])
    tokenizer.model_max_length = shape[1]
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=shape[2], intermediate_size=shape[2], num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=shape[1], projection_dim=shape[2],
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    tokenizer.save_pretrained(folder / "tokenizer")
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def slime_code() -> SlimeProtocol:
    """The bundle conf/protocol/slime_code.yaml as a trial gets it."""
    from slime_bench.config.compose import plan

    protocol = plan(["protocol=slime_code"]).trials[0].protocol
    assert isinstance(protocol, SlimeProtocol)
    return protocol


def with_gate(protocol: SlimeProtocol, threshold: float) -> SlimeProtocol:
    """The same bundle with another token gate."""
    return replace(protocol, token_gate=threshold)


def as_picture(image: torch.Tensor, protocol: SlimeProtocol) -> torch.Tensor:
    """The RGB picture that a trial would have read, for an image in the order in which the model saw it; and back."""
    return image.flip(-3) if protocol.channel_order == "bgr" else image


def mean_attention(layers: Sequence[LayerAttention]) -> torch.Tensor:
    """A(q, p) of captured layers, head by head: mean over layers and heads of the softmax over keys; float [N,M] of the
    first image."""
    total, count = None, 0
    for layer in layers:
        for query, key in zip(layer.query[0].detach(), layer.key[0].detach(), strict=True):
            one = (query @ key.T * layer.scale).softmax(-1)
            total, count = one if total is None else total.add_(one), count + 1
    assert total is not None
    return total / count


def score_statistics(queries: torch.Tensor, keys: torch.Tensor, scale: float) -> list[float]:
    """Mean and standard deviation of the scores of all halves, then of the last half; [2,H,N,D] and [2,H,M,D]."""
    pairs = [
        torch.var_mean(query @ key.T * scale, correction=0)
        for half in zip(queries, keys, strict=True)
        for query, key in zip(*half, strict=True)
    ]
    variances, means = (torch.stack(values).double() for values in zip(*pairs, strict=True))
    result = []
    for part in (slice(None), slice(len(means) // 2, None)):
        spread = variances[part].mean() + means[part].var(correction=0)
        result += [float(means[part].mean()), float(spread.sqrt())]
    return result
