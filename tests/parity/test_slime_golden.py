"""SLiMe against numbers made by its authors' code on small random weights (shared/golden/slime).

Draws, crops and latents are taken from the golden files, so that every difference is a difference of the method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from slime_bench.attention.capture import LayerAttention
from slime_bench.attention.maps import average, class_logits, class_probabilities, was
from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone, _layer_name
from slime_bench.methods import slime_segment
from slime_bench.methods.slime import Slime, SlimeConfig
from slime_bench.methods.slime_losses import class_weights
from slime_bench.methods.slime_protocol import SlimeProtocol
from slime_bench.methods.slime_segment import cross_maps, merge_patches, patch_boxes, patch_scores, scale_boxes

CLASSES = ["background", "body", "light", "plate", "wheel", "window"]
CODE = SlimeProtocol(
    name="slime_code",
    channel_order="rgb",
    ce_input="logits",
    ce_weights="foreground",
    diffusion_loss="guided",
    guidance_scale=100.0,
    was_loss="mean",
    test_softmax="all_tokens",
    token_gate=0.2,
    gate_inclusive=True,
    zero_below_mean=True,
    affine_rescale=True,
    sample_latents=True,
)


class RememberingVae(nn.Module):
    """The authors' autoencoder; remembers what it has encoded, as the same crops occur in many cases."""

    def __init__(self, folder: Path) -> None:
        from diffusers import AutoencoderKL

        super().__init__()
        self.model = AutoencoderKL.from_pretrained(folder / "vae").float().requires_grad_(False).eval()
        self.config = self.model.config
        self._known: dict[bytes, Any] = {}

    def encode(self, pixels: torch.Tensor) -> Any:
        key = hashlib.sha256(pixels.numpy().tobytes()).digest()
        if key not in self._known:
            self._known[key] = self.model.encode(pixels)
        return self._known[key]


class GoldenBackbone(StableDiffusionBackbone):
    """The authors' random-weight models, with the stored text embeddings in place of a text encoder."""

    def __init__(self, folder: Path, unet: str, inputs: dict[str, np.ndarray], vae: RememberingVae) -> None:
        from diffusers import DDIMScheduler, UNet2DConditionModel

        nn.Module.__init__(self)
        self.vae, self.unet = vae, UNet2DConditionModel.from_pretrained(folder / unet).float()
        self._scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
        self.tokenizer = SimpleNamespace(model_max_length=77)
        self.config = self.Config(image_size=512)
        self.cross_names = [
            _layer_name(f"up_blocks.{b}.attentions.{a}", "attn2") for b, a in ((1, 0), (1, 1), (1, 2), (2, 0), (2, 1))
        ]
        self.self_names = [_layer_name(f"up_blocks.3.attentions.{a}", "attn1") for a in range(3)]
        self.register_buffer("alphas_cumprod", self._scheduler.alphas_cumprod.float(), persistent=False)
        self.prompt_embedding = torch.from_numpy(inputs["text_embedding"])
        self._empty = torch.from_numpy(inputs["uncond_embedding"])
        self.requires_grad_(False).eval()

    def embed(self, prompt: str) -> torch.Tensor:
        return self.prompt_embedding if prompt else self._empty


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "golden" / "slime"


@pytest.fixture(scope="module")
def inputs(golden: Path) -> dict[str, np.ndarray]:
    return dict(np.load(golden / "inputs.npz"))


@pytest.fixture(scope="module")
def backbones(golden: Path, inputs: dict[str, np.ndarray]) -> dict[str, GoldenBackbone]:
    vae = RememberingVae(golden)
    return {name: GoldenBackbone(golden, f"unet_{name}", inputs, vae) for name in ("sd1", "sd21")}


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array))


def remembering_was() -> Callable[..., torch.Tensor]:
    """`was`, computed once for the same layers and maps: gates and sizes of one case mostly repeat them."""
    known: dict[tuple[int, bytes], torch.Tensor] = {}

    def remembered(layers: Sequence[LayerAttention], maps: torch.Tensor) -> torch.Tensor:
        key = id(layers), maps.numpy().tobytes()
        if key not in known:
            known[key] = was(layers, maps)
        return known[key]

    return remembered


def relative(found: torch.Tensor, expected: np.ndarray) -> float:
    """Largest absolute difference over the largest expected value."""
    wanted = tensor(expected).double()
    return float((found.detach().double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


@pytest.mark.parametrize("unet", ["sd1", "sd21"])
@pytest.mark.parametrize(("case", "mask"), [("A", "mask64"), ("B", "mask64_noclass3")])
def test_training_step(
    golden: Path,
    inputs: dict[str, np.ndarray],
    backbones: dict[str, GoldenBackbone],
    unet: str,
    case: str,
    mask: str,
) -> None:
    want = {k[2:]: v for k, v in np.load(golden / f"{unet}_train.npz").items() if k.startswith(f"{case}_")}
    backbone = backbones[unet]
    backbone.prompt_embedding = tensor(inputs["text_embedding"])
    method = Slime(SlimeConfig(), CODE, backbone, CLASSES, seed=0)
    image = tensor(inputs["image_u8"])[None].float() / 255
    latents = backbone.encode(image, tensor(want["vae_eps"]))
    assert relative(latents, want["latents"]) < 1e-5
    timesteps, noise = tensor(want["t"]).long(), tensor(want["noise"])
    noisy = backbone.add_noise(latents, noise, timesteps)
    assert relative(noisy, want["latents_noisy"]) < 1e-5
    found = backbone.attention(noisy, timesteps, method.text(), with_noise=True)
    assert found.noise is not None and relative(found.noise, want["noise_pred"][1:]) < 1e-4
    label = tensor(inputs[mask])[None].long()
    assert relative(class_weights(label, 6, "foreground"), want["pixel_weights"]) < 1e-6
    logits = average([class_logits(x, 6, g) for x, g in zip(found.cross, found.cross_grids, strict=True)], (64, 64))
    assert relative(logits[0], want["cross_logits"]) < 1e-4
    assert relative(was(found.self_, logits.softmax(1))[0], want["was"]) < 1e-4
    if case == "A":
        probabilities = [class_probabilities(x, 6, g) for x, g in zip(found.cross, found.cross_grids, strict=True)]
        assert relative(average(probabilities, (64, 64))[0], want["cross_probs_testmode"]) < 1e-4
    terms = method.losses(found, label, noisy, timesteps, noise)
    for ours, theirs in (
        ("cross_entropy", "loss1"),
        ("was", "loss2"),
        ("diffusion", "sd_loss"),
        ("loss", "loss_total"),
    ):
        assert relative(terms[ours].reshape(1), want[theirs]) < 1e-4, theirs
    for ours, theirs in (("cross_entropy", "loss1"), ("was", "loss2"), ("diffusion", "sd_loss"), ("loss", "total")):
        (gradient,) = torch.autograd.grad(terms[ours], method.embeddings, retain_graph=True)
        assert relative(gradient, want[f"grad_{theirs}"]) < 1e-3, theirs


def test_optimisation_steps(golden: Path, inputs: dict[str, np.ndarray], backbones: dict[str, GoldenBackbone]) -> None:
    want = np.load(golden / "sd21_traj.npz")
    backbone = backbones["sd21"]
    backbone.prompt_embedding = tensor(inputs["text_embedding"])
    method = Slime(SlimeConfig(), CODE, backbone, CLASSES, seed=0)
    optimiser = method.configure_optimizers()
    image, label = tensor(inputs["image_u8"])[None].float() / 255, tensor(inputs["mask64"])[None].long()
    for step in range(3):
        timesteps, noise = tensor(want["t"][step : step + 1]).long(), tensor(want["noise"][step : step + 1])
        noisy = backbone.add_noise(backbone.encode(image, tensor(want["vae_eps"][step : step + 1])), noise, timesteps)
        found = backbone.attention(noisy, timesteps, method.text(), with_noise=True)
        terms = method.losses(found, label, noisy, timesteps, noise)
        optimiser.zero_grad()
        terms["loss"].backward()
        assert relative(terms["loss"], want["loss"][step]) < 1e-3
        optimiser.step()
        # Adam divides a gradient by its own size: rounding grows about fivefold per step, the first is the sharp test.
        difference = (method.embeddings.detach() - tensor(want["embeddings"][step])).abs()
        assert float(difference.max()) < (1e-3 if step == 0 else 0.1) and float(difference.median()) < 1e-2, step


@pytest.mark.parametrize("unet", ["sd1", "sd21"])
@pytest.mark.parametrize(
    ("file", "grid", "patch", "per_side"),
    [
        ("infer", "grid1x512", 512, 1),
        ("infer", "grid2x400", 400, 2),
        ("infer", "grid3x256", 256, 3),
        ("infer_alt", "grid1x512", 512, 1),
        ("infer_alt", "grid2x400", 400, 2),
    ],
)
def test_inference(
    golden: Path,
    inputs: dict[str, np.ndarray],
    backbones: dict[str, GoldenBackbone],
    monkeypatch: pytest.MonkeyPatch,
    unet: str,
    file: str,
    grid: str,
    patch: int,
    per_side: int,
) -> None:
    want = np.load(golden / f"{unet}_{file}.npz")
    prompt = want["text_embedding"] if "text_embedding" in want.files else None
    backbone = backbones[unet]
    backbone.prompt_embedding = tensor(inputs["text_embedding"] if prompt is None else prompt)
    boxes = patch_boxes((512, 512), patch, per_side)
    assert [list(box) for box in boxes] == want[f"{grid}/crops"].tolist()
    image = tensor(inputs["image_u8"])[None].float() / 255
    crops = torch.cat(
        [torch.nn.functional.interpolate(image[:, :, a:b, c:d], (512, 512), mode="bilinear") for a, b, c, d in boxes]
    )
    method = Slime(SlimeConfig(), CODE, backbone, CLASSES, seed=0)
    text, timesteps = method.text(), tensor(want[f"{grid}/t"]).long()
    with torch.no_grad():
        latents = torch.cat(
            [backbone.encode(c[None], tensor(e)[None]) for c, e in zip(crops, want[f"{grid}/vae_eps"], strict=True)]
        )
        assert relative(latents[:1], want[f"{grid}/latents0"]) < 1e-5
        noisy = backbone.add_noise(latents, tensor(want[f"{grid}/noise"]), timesteps)
        found = [
            backbone.attention(n[None], t[None], text, with_noise=False) for n, t in zip(noisy, timesteps, strict=True)
        ]
        cross = torch.cat([cross_maps(f.cross, f.cross_grids, 6, (64, 64), CODE) for f in found])
        assert relative(cross.amax((2, 3)), want[f"{grid}/prob_max"]) < 1e-4
        monkeypatch.setattr(slime_segment, "was", remembering_was())
        gates = sorted({float(k.split("/")[1][3:]) for k in want.files if k.startswith(f"{grid}/thr")})
        assert gates
        for gate in gates:
            protocol = SlimeProtocol(**{**vars(CODE), "token_gate": gate})
            for size in (64, 256, 512):
                key = f"{grid}/thr{gate:g}/out{size}"
                if f"{key}/final_mask" not in want.files:
                    continue
                placed = scale_boxes(boxes, (512, 512), (size, size))
                extent = (placed[0][1] - placed[0][0],) * 2
                pairs = zip(cross, found, strict=True)
                made = [patch_scores(c[None], f.self_, protocol, True, extent) for c, f in pairs]
                scores, passed = (torch.cat(parts)[None] for parts in zip(*made, strict=True))
                final = merge_patches(scores, passed, placed, (size, size))[0]
                stats = torch.stack([final.amin((1, 2)), final.amax((1, 2)), final.mean((1, 2))], 1)
                assert relative(stats, want[f"{key}/stats"]) < 1e-3, key
                if f"{key}/final_attention_map" in want.files:
                    assert relative(final, want[f"{key}/final_attention_map"]) < 1e-3, key
                undecided = float(want[f"{key}/margin"][2])
                assert (
                    float((final.argmax(0) != tensor(want[f"{key}/final_mask"])).float().mean()) <= undecided + 1e-4
                ), key
