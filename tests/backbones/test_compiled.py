"""Compiled blocks: the same attention, latents and gradients, no graph broken; and a plain word without a compiler."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from slime_bench.backbones.compiled import BLOCKS, compile_blocks
from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone
from slime_bench.errors import ConfigError
from tests.attention.test_activations import gradient, inputs, load
from tests.fixtures.rounding import TINY, same


@dataclass(frozen=True)
class Vectors:
    """Stands for a processor's instructions."""

    bits: int

    def bit_width(self) -> int:
        return self.bits


@pytest.fixture
def dynamo() -> Iterator[None]:
    """Nothing of earlier compilations counts, and nothing of these is left, the limits included."""
    config = torch._dynamo.config
    limits = {name: getattr(config, name) for name in ("recompile_limit", "accumulated_recompile_limit")}
    width = inductor.cpp.simdlen
    with config.patch(limits), inductor.patch({"cpp.simdlen": width}):
        torch._dynamo.reset()
        counters.clear()
        yield
    assert {name: getattr(config, name) for name in limits} == limits and inductor.cpp.simdlen == width
    torch._dynamo.reset()


def compiled(backbone: StableDiffusionBackbone) -> list[str]:
    """Names of the modules of the U-Net and of the encoder that are compiled."""
    parts = {"unet": backbone.unet, "encoder": backbone.vae.encoder}
    return [
        f"{part}.{name}"
        for part, network in parts.items()
        for name, module in network.named_modules()
        if module._compiled_call_impl is not None
    ]


@pytest.mark.usefixtures("dynamo")
def test_the_setting_reaches_the_networks(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", sys.executable)  # nothing runs, so nothing is compiled
    names = compiled(load(tiny_sd, compile=True))
    for part in ("unet.down_blocks.0", "unet.mid_block", "unet.up_blocks.3", "encoder.down_blocks.0"):
        assert any(name.startswith(part) for name in names), part
    assert not compiled(load(tiny_sd))


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("again", [False, True])
def test_no_graph_breaks_in_a_capture(tiny_sd: Path, again: bool) -> None:
    """Traced, and differentiated by AOTAutograd, but not turned into C++, which takes two minutes for all blocks."""
    plain, traced = load(tiny_sd), load(tiny_sd, checkpoint_activations=again)
    compile_blocks(traced.unet, traced.vae.encoder, backend="aot_eager")
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    same(traced.encode(image, None), plain.encode(image, None), **TINY)
    for one, other in zip(gradient(traced, True, True), gradient(plain, True, True), strict=True):
        same(one, other, **TINY)
    noisy, t, text = inputs()
    with torch.inference_mode():
        found = [each.attention(noisy, t, text, with_noise=False).self_[-1].query for each in (traced, plain)]
    same(*found, **TINY)
    assert counters["stats"]["unique_graphs"] > len(BLOCKS)
    assert not counters["graph_break"]


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
@pytest.mark.usefixtures("dynamo")
def test_compiled_code_computes_the_same(tiny_sd: Path) -> None:
    """One block through the real compiler."""
    plain, fast = (load(tiny_sd).unet.down_blocks[0].resnets[0] for _ in range(2))
    assert compile_blocks(fast) == 1
    draw = torch.Generator().manual_seed(0)
    features, time = torch.randn(1, 64, 8, 8, generator=draw), torch.randn(1, 256, generator=draw)
    found = []
    for block in (fast, plain):
        features.requires_grad_()
        output = block(features, time)
        found.append([output, *torch.autograd.grad(output.square().mean(), features)])
    for one, other in zip(*found, strict=True):
        same(one, other, terms=64 * 9, steps=6)  # two convolutions, two norms, the time's projection, a residual
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("dynamo")
def test_processors_with_other_vectors_do_not_share_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's store does not look at the processor: what AVX-512 wrote gives NaN where it is compiled for AVX2."""
    monkeypatch.setenv("CXX", sys.executable)
    keys = []
    for width in (256, 512):
        monkeypatch.setattr("torch._inductor.cpu_vec_isa.pick_vec_isa", lambda bits=width: Vectors(bits))
        with inductor.patch({"cpp.simdlen": None}):
            compile_blocks(torch.nn.Identity())
            keys.append(inductor.save_config_portable())
            inductor.cpp.simdlen = 128
            compile_blocks(torch.nn.Identity())
            assert inductor.cpp.simdlen == 128, "what somebody chose stays"
    differing = {name for name in keys[0] if keys[0][name] != keys[1][name]}
    assert differing == {"cpp.simdlen"}, "the settings are in the key of the store"


@pytest.mark.usefixtures("dynamo")
def test_a_missing_compiler_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"(?s)backbone\.compile.*no-such-compiler.*backbone\.compile=false"):
        compile_blocks(torch.nn.Identity())
