"""Hidden states of a diffusion backbone: the library's own outputs, of a pass that ends early and leaves no hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from slime_bench.backbones.features import module_name, module_outputs
from slime_bench.errors import BackboneError

LAYERS = ["up_blocks.2.attentions.1", "up_blocks.1.attentions.0"]


def draw(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_features_are_the_networks_hidden_states(tiny_backbone: Any) -> None:
    """Beside a whole pass of the library's U-Net, with hooks of our own, one image at a time."""
    images, noise, t = draw(3, 3, 64, 64), torch.randn(3, 4, 16, 16), torch.tensor([5, 300, 700])
    found = tiny_backbone.features(images, t, noise, LAYERS)
    assert list(found) == LAYERS
    text = tiny_backbone.embed("")
    for row in range(3):
        keep = tiny_backbone.alphas_cumprod[t[row]]
        latent = tiny_backbone.encode(images[row : row + 1], None)
        noisy = keep.sqrt() * latent + (1 - keep).sqrt() * noise[row]
        seen: dict[str, torch.Tensor] = {}

        names = {tiny_backbone.unet.get_submodule(name): name for name in LAYERS}

        def keep(module: Any, _: Any, output: Any, seen: Any = seen, names: Any = names) -> None:
            seen[names[module]] = output[0]

        hooks = [module.register_forward_hook(keep) for module in names]
        with torch.no_grad():
            tiny_backbone.unet(noisy, t[row], text)
        for hook in hooks:
            hook.remove()
        for name in LAYERS:
            assert found[name].dtype == torch.float32
            torch.testing.assert_close(found[name][row], seen[name][0], rtol=1e-4, atol=1e-4)


def test_the_pass_ends_after_the_last_named_module_and_hooks_are_gone(tiny_backbone: Any) -> None:
    ran: list[str] = []
    later = tiny_backbone.unet.up_blocks[3].register_forward_hook(lambda *_: ran.append("later"))
    try:
        tiny_backbone.features(draw(1, 3, 64, 64), torch.tensor([5]), torch.zeros(1, 4, 16, 16), LAYERS)
    finally:
        later.remove()
    assert not ran
    assert not any(module._forward_hooks for module in tiny_backbone.unet.modules())
    with pytest.raises(RuntimeError, match="halfway"):
        module_outputs(tiny_backbone.unet, LAYERS, lambda: (_ for _ in ()).throw(RuntimeError("halfway")))
    assert not any(module._forward_hooks for module in tiny_backbone.unet.modules())


def test_images_do_not_depend_on_the_size_of_a_call(tiny_backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images, noise, t = draw(3, 3, 64, 64), torch.randn(3, 4, 16, 16), torch.tensor([100, 100, 100])
    whole = tiny_backbone.features(images, t, noise, LAYERS)
    encoded = tiny_backbone.encoder_features(images, ["mid_block.resnets.1"])
    calls = []
    monkeypatch.setattr(tiny_backbone, "images_per_call", lambda size: calls.append(size) or 2)
    parts = tiny_backbone.features(images, t, noise, LAYERS)
    assert calls == [(64, 64)]
    for name in LAYERS:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-4)
    again = tiny_backbone.encoder_features(images, ["mid_block.resnets.1"])["mid_block.resnets.1"]
    assert again.shape[::2] == (3, 16)  # the latent's grid
    torch.testing.assert_close(again, encoded["mid_block.resnets.1"], rtol=1e-4, atol=1e-4)


def test_places_count_from_either_end(tiny_backbone: Any) -> None:
    encoder = tiny_backbone.vae.encoder
    assert module_name(encoder, "down_blocks.-2.resnets.-1", "k") == "down_blocks.1.resnets.0"
    assert module_name(encoder, "mid_block.resnets.1", "k") == "mid_block.resnets.1"
    for wrong in ("down_blocks.7", "mid_block.nothing.0", "up_blocks.-9"):
        with pytest.raises(BackboneError, match="no module of this name") as caught:
            module_name(encoder, wrong, "method.b.encoder_layers")
        assert caught.value.path == "method.b.encoder_layers" and "one of" in str(caught.value.expected)
