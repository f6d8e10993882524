"""Outputs of named modules of a network, of a pass that ends after the last of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from slime_bench.errors import BackboneError


class _AllSeen(Exception):
    """Every named module has run; what follows in the network is not needed."""


def module_name(network: nn.Module, name: str, key: str) -> str:
    """`name` with its negative places counted from the end, as in `down_blocks.-2.resnets.-1`.

    Args:
        key: of the configuration, for the message.

    Raises:
        BackboneError: the network has no such module.
    """
    here: Any = network
    found: list[str] = []
    for part in name.split("."):
        inside = dict(here.named_children())
        place = str(len(inside) + int(part)) if part.lstrip("-").isdigit() and int(part) < 0 else part
        if place not in inside:
            raise BackboneError(
                "the backbone has no module of this name", path=key, found=name,
                expected=f"at `{'.'.join([*found, part])}` one of {', '.join(inside) or 'nothing'}",
                remedy="correct the name; places count from 0, or from the end with a minus: mid_block.resnets.-1",
            )  # fmt: skip
        here = inside[place]
        found.append(place)
    return ".".join(found)


def module_outputs(network: nn.Module, names: Iterable[str], run: Callable[[], object]) -> dict[str, torch.Tensor]:
    """What the named modules give while `run` calls the network, float32 [B,C,h,w] each, in the order of `names`.

    The pass is left as soon as all of them have run; the hooks are gone afterwards, also after an exception.

    Raises:
        BackboneError: a module gives no map.
    """
    names, seen = list(names), dict[str, torch.Tensor]()

    def hook(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            seen[name] = (output[0] if isinstance(output, tuple) else output).float()
            if len(seen) == len(names):
                raise _AllSeen

        return keep

    handles = [network.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        run()
    except _AllSeen:
        pass
    finally:
        for handle in handles:
            handle.remove()
    for name in names:
        if name not in seen or seen[name].ndim != 4:  # never called, or rows of tokens
            raise BackboneError(
                "a module of the backbone gives no map", path="method.layers", found=name,
                expected="blocks, residual blocks, transformers, or modules that resize a map",
                remedy="name one of these, such as up_blocks.1.upsamplers.0 or up_blocks.2.attentions.0",
            )  # fmt: skip
    return {name: seen[name] for name in names}


def output_shapes(network: Any, names: Sequence[str], *inputs: tuple[int, ...]) -> dict[str, tuple[int, int, int]]:
    """(C, h, w) of what the named modules of a diffusers network give for one image; nothing is computed.

    Args:
        inputs: shapes of what the network is called with, the timestep's left out, of one image each.

    Raises:
        BackboneError: a module gives no map.
    """
    from diffusers.models.modeling_utils import no_init_weights

    with torch.device("meta"), no_init_weights():
        twin = type(network).from_config(network.config).eval()
        sample, *others = [torch.empty(shape) for shape in inputs]
        step = torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        found = module_outputs(twin, names, lambda: twin(sample, step, *others))
    return {name: (int(each.shape[1]), int(each.shape[2]), int(each.shape[3])) for name, each in found.items()}


def linear_alphas_cumprod() -> torch.Tensor:
    """abar_t = prod_{s <= t} (1 - b_s), b the 1000 numbers from 1e-4 to 2e-2 in equal steps: the linear schedule of Ho
    et al. 2020, which the pixel-space models were trained with; float64 [1000]."""
    return (1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)).cumprod(0)


def joined(parts: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The maps of several calls as those of one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
