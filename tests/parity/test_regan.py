"""ReGAN against numbers made by its authors' code: shared/golden/regan, or the folder that the environment names.

Variable: SLIME_BENCH_GOLDEN_REGAN. Sizes, seeds, classes, layers and steps are whatever the folder holds. The end of
the run prints array, error, tolerance. What the authors' release cannot run, the auto-shot training, has no numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.celebamask_hq.merge import CLASSES, merge
from data_prep.pascal_part.regan import COLOURS
from slime_bench.backbones.stylegan2 import StyleGan2Backbone, bytes_of, numbered_latent
from slime_bench.methods.base import label_maps
from slime_bench.methods.regan.networks import resized
from slime_bench.methods.regan.training import few_shot_steps
from tests.parity.golden_regan import Golden, open_golden, rows
from tests.parity.table import Checks

# Bars of the README.
FEATURES, LOGITS = 1e-3, 1e-3
FIRST_LOSSES, FIRST_STEPS = 2e-3, 5
# Of our own: the README's 1e-3 is of one processor's kernels. A leaky ReLU's slope jumps by 0.99 where rounding decides
# the sign of what it is given, in each of eight layers; kernels without AVX-512 came to 1.4e-3.
GRADIENT = 5e-3
# Of our own: a hundred chaotic steps from 1.6 down to 0.09. What is left may differ by a tenth of where they began.
LAST_STEPS, LAST_LOSSES = 20, 0.1
# Of our own: a stack in half precision has 11 bits of its largest value.
HALF = 2**-11
# Of our own: Adam moves each number by its rate in a first step, whatever its gradient; where that is nearly 0,
# rounding decides the sign. A step of 1e-3 is then made the other way.
UPDATED = 2e-3  # for each update
# Of gradients with a relative error d, a share of d / pi has another sign, as if both were normal; each is a step of 2.
UPDATES_L2 = 2 * math.sqrt(GRADIENT / math.pi)
# Of the README: two ways of computing the same differ on 5 to 7 % of the pixels of the last mask.
LAST_MASK = 0.15

Start = Callable[..., Checks]


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Golden:
    """The golden folder of ReGAN."""
    return open_golden(request)


@pytest.fixture(scope="session")
def backbone(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> StyleGan2Backbone:
    """The authors' generator as the bench reads it."""
    return golden.backbone(tmp_path_factory.mktemp("regan") / "generator")


@torch.no_grad()
def test_generator(golden: Golden, backbone: StyleGan2Backbone, checks: Start) -> None:
    want = golden.arrays("features")
    with checks("features") as check:
        check.absolute("latent", backbone.styles(golden.tensor("features", "z")[:1]), want["latent"], FEATURES)
        for image in golden.images:
            made = golden.generated(backbone, image)
            check.absolute(f"image_{image}", made.pictures, want[f"image_{image}"], FEATURES, "images")
            if image == 0:
                for layer, found in zip(golden.made["layers"], made.maps, strict=True):
                    check.absolute(f"act_{layer}", found, want[f"act_{layer}"], FEATURES, "layers")
                bytes_ = bytes_of(made.pictures)[0].permute(1, 2, 0)
                # A number that rounding carries over a whole one is cut off to the next.
                check.absolute("image_0_uint8", bytes_, want["image_0_uint8"], 1)
            if f"stack_{image}" in want:
                side = golden.made["stack_size"]
                stack = torch.cat([resized(each, side) for each in made.maps], 1)
                bar = FEATURES
                if want[f"stack_{image}"].dtype != "float32":
                    bar += HALF * float(stack.abs().max())
                check.absolute(f"stack_{image}", stack, want[f"stack_{image}"], bar, f"stack_{image}")
        fixed = [*backbone.network.noises.buffers()]
        found = backbone.generate(backbone.styles(golden.tensor("features", "z")[:1]), fixed).pictures
        check.absolute("image_fixed_noise", found, want["image_fixed_noise"], FEATURES)


def test_numbered_latents(golden: Golden, checks: Start) -> None:
    """The latents of pictures that a person labels are the authors'."""
    want = golden.tensor("features", "z512")
    with checks("features") as check:
        for number, expected in enumerate(want):
            check.exactly(f"z512[{number}]", numbered_latent(number, want.shape[1])[0], expected, "z512")


@torch.no_grad()
def test_few_shot_network(golden: Golden, backbone: StyleGan2Backbone, checks: Start) -> None:
    want, network = golden.arrays("segmenter"), golden.network()
    with checks("segmenter") as check:
        count = sum(value.numel() for value in network.parameters())
        check.exactly("parameters", count, golden.made["parameters_segmenter"])
        for name, image in (("logits_init", 0), ("logits_init_2", 2)):
            if name in want:
                check.absolute(name, network(golden.generated(backbone, image).maps), want[name], LOGITS)


def test_few_shot_training(golden: Golden, backbone: StyleGan2Backbone, checks: Start) -> None:
    want, network = golden.arrays("segmenter"), golden.network()
    labels = golden.tensor("segmenter", "labels").long()
    maps = [golden.generated(backbone, image).maps for image in range(len(labels))]
    names = golden.names(network)
    losses, rates = list[float](), list[float]()
    with checks("segmenter") as check:
        before = {name: value.detach().clone() for name, value in network.named_parameters()}
        for step, done in enumerate(few_shot_steps(network, maps, labels, golden.training()), start=1):
            losses.append(float(done.loss))
            rates.append(done.rate)
            for ours, theirs in names.items():
                value = network.get_parameter(ours)
                if step == 1:
                    assert value.grad is not None
                    gradient, kept = value.grad, want[f"grad0_{theirs}"]
                    check.relative(f"grad0_{theirs}", rows(gradient, len(kept)), kept, GRADIENT, "first gradient")
                    check.relative(
                        f"norm {theirs}", gradient.norm(), want[f"grad0_norm_{theirs}"][0], GRADIENT, "norms"
                    )
                if f"step{step}_{theirs}" in want:
                    kept = torch.from_numpy(want[f"step{step}_{theirs}"])
                    found, start = rows(value, len(kept)), rows(before[ours], len(kept))
                    where = f"weights after {step} updates"
                    check.absolute(f"step{step}_{theirs}", found, kept, step * UPDATED, where)
                    check.relative(
                        f"moves of step{step}_{theirs}", found - start, kept - start, UPDATES_L2, f"moves of {step}"
                    )
        check.relative("lr", torch.tensor(rates, dtype=torch.float64), want["lr"], 1e-12)
        check.absolute("first losses", torch.tensor(losses[:FIRST_STEPS]), want["losses"][:FIRST_STEPS], FIRST_LOSSES)
        last = torch.tensor(losses[-LAST_STEPS:]).mean()
        bar = LAST_LOSSES * float(want["losses"][0])
        check.absolute("last losses", last, want["losses"][-LAST_STEPS:].mean(), bar)
        with torch.no_grad():
            image = max(golden.images)
            mask = label_maps(network(golden.generated(backbone, image).maps))
        different = float((mask != golden.tensor("segmenter", f"mask_final_{image}").long()).float().mean())
        check.absolute(f"mask_final_{image}, share that differs", different, 0.0, LAST_MASK)


def test_masks(golden: Golden, checks: Start) -> None:
    """The order in which parts of a face cover each other, and the colours of cars; a part counts from 0.4 on after
    Pillow's resize, and what is left is background."""
    want, named = golden.arrays("masks"), {"eyebrow": "brow", "lip": "mouth", "clothes": "cloth"}
    with checks("masks") as check:
        parts = golden.facts("masks")["parts_10"]
        size = want["celeba_10"].shape[::-1]
        small = {
            name.removeprefix("att_"): np.asarray(Image.fromarray(values).resize(size)) / 255 >= 0.4
            for name, values in want.items()
            if name.startswith("att_")
        }
        ours = np.array([CLASSES.index(named.get(part, part)) for part in parts])
        check.exactly("celeba_10", merge(small, "regan"), ours[want["celeba_10"]])
        colours = {tuple(each.tolist()) for each in want["car_rgb"].reshape(-1, 3)}
        check.exactly("colours of car_rgb", sorted(colours - {(0, 0, 0)}), sorted(COLOURS.values()))
