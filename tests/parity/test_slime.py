"""SLiMe against numbers made by its authors' code: shared/golden/slime, or the folder that the environment names.

Variable: SLIME_BENCH_GOLDEN_SLIME. Every array of the folder is compared but for seeds and screening figures; flavours,
cases, grids, thresholds and sizes are whatever the folder holds. The end of the run prints array, error, tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from slime_bench.attention.capture import LayerAttention
from slime_bench.attention.maps import average, class_logits, class_probabilities, resize, was
from slime_bench.backbones.stable_diffusion import DiffusionAttention
from slime_bench.bench import reference_slime as oracle
from slime_bench.data.config import DataConfig
from slime_bench.data.folder import FolderData
from slime_bench.data.transforms import resize_label
from slime_bench.methods.slime import inference as slime_segment
from slime_bench.methods.slime.config import patch_boxes
from slime_bench.methods.slime.inference import cross_maps, merge_patches, patch_scores
from slime_bench.methods.slime.losses import class_weights
from slime_bench.methods.slime.protocol import SlimeProtocol
from slime_bench.metrics.iou import image_score, intersection_union, reduce_slime
from tests.parity.golden import (
    Arrays,
    Box,
    Golden,
    Grid,
    InStep,
    chosen_folder,
    in_step,
    module_name,
    pixels,
    runs,
    shrink,
    stride,
)
from tests.parity.models import (
    Draws,
    FedSlime,
    GoldenBackbone,
    as_picture,
    encode,
    fed_slime,
    mean_attention,
    remembering_was,
    score_statistics,
    with_gate,
)
from tests.parity.pure import check_iou_cases, check_metric, check_patch_boxes, check_random_crops, utilities
from tests.parity.table import Checks

# Bars that the folder's README suggests for a float32 re-implementation fed the stored draws. Each is about five times
# or more what the recorder's own float32 is away from float64 (its section "Tolerances observed"): so much rounding the
# operation makes on these weights, whichever kernels do it, and a mistake is off by the values themselves.
NOISE_PRED = 2e-4
LOGITS = 5e-4
PROBABILITIES = 5e-5
SELF_ROWS = 1e-4
WAS = 1e-4
LOSS = 1e-5
GRADIENT = 5e-3
PATCHED_MAPS = 2e-4
NEAR_TIE = 1e-3
FIRST_EMBEDDINGS = 1e-3
# Bars of our own, where it suggests none; where they speak of float64, made in the same way.
VAE = 2e-4  # posterior mean and std at values up to 13; the stored mean is 2.6e-5 from float64
LAYER_LOGITS = 1e-3  # of one layer, where LOGITS are for the mean of five: the stored ones are 2.0e-4 from float64
# Raw scores, of the standard deviation of their layer: the stored ones are up to 1.3e-4 of it from float64, in the last
# self-attention, which comes after all other layers. No bar is below LOGITS.
RAW = 7e-4
# Sums over all of attention, relative L2: the stored ones are 7.9e-5 from float64, as the softmax turns the error of a
# score into one of its probability's share.
SUMS = 4e-4
WEIGHTS = 1e-6  # relative: counts and one division in float32
LEVELS = 0  # of 255
IOU = 1e-6  # float32 and an epsilon of 1e-7 there, float64 here
UPDATE = 1e-5  # Adam in float32 from the stored gradients: some roundings of numbers up to 4, a step of 0.1 each
TRANSPOSED = 100  # times the bar of WAS: how far off the transposed product must be

FOUND = Golden(chosen_folder())
FLAVOURS = FOUND.flavours or ["none"]  # with `none` the fixture `golden` says what is missing
CASES = [(flavour, case) for flavour in FOUND.flavours for case in FOUND.cases(flavour)] or [("none", "none")]
PREDICTIONS = [(flavour, file, grid) for flavour in FOUND.flavours for file, grid in FOUND.predictions(flavour)]
PREDICTIONS = PREDICTIONS or [("none", "none", Grid("none", 1, 1))]

Start = Callable[..., Checks]
Load = Callable[[str], GoldenBackbone]


def test_the_folder_is_complete(golden: Golden) -> None:
    """Whatever else it holds: a folder without these would pass by having nothing to compare."""
    assert golden.flavours
    for flavour in golden.flavours:
        assert golden.cases(flavour), f"no training step of {flavour}"
        assert any(runs(golden.arrays(file), grid) for file, grid in golden.predictions(flavour)), f"{flavour}: no run"
        assert len(golden.arrays(f"{flavour}_traj")["loss"]), f"no optimisation step of {flavour}"


@pytest.mark.parametrize(("flavour", "case"), CASES)
def test_training_step(
    golden: Golden, backbone_of: Load, protocol: SlimeProtocol, checks: Start, flavour: str, case: str
) -> None:
    want = golden.arrays(f"{flavour}_train").at(f"{case}_")
    backbone, label = backbone_of(flavour), golden.mask_with(want["onehot_counts"])[None]
    timesteps, noise = want.tensor("t").long(), want.tensor("noise")
    size, num_classes = tuple(want["cross_logits"].shape[-2:]), len(want["cross_logits"])
    method = fed_slime(backbone, num_classes, protocol, train_map_size=size[0])
    with checks(f"{flavour}_train", case) as check:
        noisy = check_latents(check, want, golden, backbone)
        found = backbone.attention(noisy, timesteps, method.text(), with_noise=True)
        check_maps(check, want, found, num_classes, protocol)
        if "noise_pred" in want:
            with torch.no_grad():
                other = backbone.attention(noisy, timesteps, method.empty, with_noise=True)
            halves = [each.noise for each in (other, found) if each.noise is not None]
            check.absolute("noise_pred", torch.cat(halves), want["noise_pred"], NOISE_PRED)
            names = [*backbone.cross_names, *backbone.self_names]
            check_raw_scores(check, want, dict(zip(names, layers(found, other), strict=True)))
            if "cross_logits_uncond" in want:
                logits = logits_of(other, num_classes, size)[0]
                check.absolute("cross_logits_uncond", logits, want["cross_logits_uncond"], LOGITS)
        check_losses(check, want, method, found, label, noisy, timesteps, noise)


def check_latents(check: Checks, want: Arrays, golden: Golden, backbone: GoldenBackbone) -> torch.Tensor:
    """The autoencoder and the noise schedule; returns the noisy latents [1,4,h,w]."""
    mean = backbone.encode(golden.image, None)
    scale = backbone.vae.config.scaling_factor
    check.absolute("vae_post_mean", mean / scale, want["vae_post_mean"], VAE)
    std = backbone.encode(golden.image, torch.ones_like(mean)) - mean
    check.absolute("vae_post_std", std / scale, want["vae_post_std"], VAE)
    latents = backbone.encode(golden.image, want.tensor("vae_eps"))
    check.absolute("latents", latents, want["latents"], latents_bar(backbone))
    noisy = backbone.add_noise(latents, want.tensor("noise"), want.tensor("t").long())
    check.absolute("latents_noisy", noisy, want["latents_noisy"], latents_bar(backbone))
    return noisy


def latents_bar(backbone: GoldenBackbone) -> float:
    """Latents are the scaled posterior mean, its error with it; the std's, and adding noise, change that by less."""
    return VAE * float(backbone.vae.config.scaling_factor)


def layers(*passes: DiffusionAttention) -> list[LayerAttention]:
    """The layers of the text's pass, each with the empty prompt's [1,H,N,D] in front: [2,H,N,D]."""
    text, empty = ([*each.cross, *each.self_] for each in passes)
    return [
        LayerAttention(torch.cat([e.query, t.query]).detach(), torch.cat([e.key, t.key]).detach(), t.scale)
        for t, e in zip(text, empty, strict=True)
    ]


def check_raw_scores(check: Checks, want: Arrays, found: dict[str, LayerAttention]) -> None:
    """Scores before the softmax of every layer and of both halves: shape, statistics, one row of each half."""
    for name in [key.removesuffix("/shape") for key in want if key.startswith("raw/") and key.endswith("/shape")]:
        layer = found[module_name(name.removeprefix("raw/"))]
        query, key, scale = layer.query, layer.key, layer.scale
        shape = (len(query) * query.shape[1], query.shape[2], key.shape[2])
        check.exactly(f"{name}/shape", shape, want[f"{name}/shape"], "raw/*/shape")
        stats = torch.tensor(score_statistics(query, key, scale))
        check.absolute(f"{name}/stats", stats, want[f"{name}/stats"], LOGITS, "raw/*/stats")
        bar = max(LOGITS, RAW * float(want[f"{name}/stats"][1]))
        for half, row in (("uncond_slice", 0), ("cond_slice", 1)):
            theirs = want[f"{name}/{half}"]
            ours = key[row, 0, : len(theirs)] @ query[row, 0, query.shape[2] // 2] * scale
            check.absolute(f"{name}/{half}", ours, theirs, bar, f"raw/*/{half}")


def logits_of(found: DiffusionAttention, num_classes: int, size: Sequence[int]) -> torch.Tensor:
    """Training maps float [1,K,*size]."""
    pairs = zip(found.cross, found.cross_grids, strict=True)
    return average([class_logits(layer, num_classes, grid) for layer, grid in pairs], (size[0], size[1]))


@torch.no_grad()
def check_maps(check: Checks, want: Arrays, found: DiffusionAttention, k: int, protocol: SlimeProtocol) -> None:
    """Cross maps of every kind, self-attention, WAS."""
    size, pairs = want["cross_logits"].shape[-2:], list(zip(found.cross, found.cross_grids, strict=True))
    logits = logits_of(found, k, size)
    check.absolute("cross_logits", logits[0], want["cross_logits"], LOGITS)
    if "cross_logits_per_layer" in want:
        ours = torch.cat([resize(class_logits(layer, k, grid), tuple(size)) for layer, grid in pairs])
        check.absolute("cross_logits_per_layer", ours, want["cross_logits_per_layer"], LAYER_LOGITS)
    if "cross_probs_testmode" in want:
        ours = cross_maps(found.cross, found.cross_grids, k, tuple(size), protocol)[0]
        check.absolute("cross_probs_testmode", ours, want["cross_probs_testmode"], PROBABILITIES)
    if "cross_probs_trainsoftmax" in want:
        maps = [class_probabilities(layer, k, grid, over_all_tokens=False) for layer, grid in pairs]
        check.absolute(
            "cross_probs_trainsoftmax", average(maps, tuple(size))[0], want["cross_probs_trainsoftmax"], PROBABILITIES
        )
    probabilities = resize(logits, found.self_grids[0]).softmax(1)
    accumulated = resize(was(found.self_, probabilities), tuple(size))[0]
    check.absolute("was", accumulated, want["was"], WAS)
    if "self_rows" not in want:
        return
    grid = found.self_grids[0]
    points = [(int(y), int(x)) for y, x in want["self_query_pixels"]]
    matrix = mean_attention(found.self_)  # [N,N]
    places = [y * grid[1] + x for y, x in points]
    check.absolute("self_rows", matrix[places].unflatten(1, grid), want["self_rows"], SELF_ROWS)
    # A map that is 1 at one key and 0 elsewhere comes back as that key's column.
    deltas = torch.zeros(1, len(points), grid[0] * grid[1])
    deltas[0, range(len(points)), places] = 1
    check.absolute("self_cols", was(found.self_, deltas.unflatten(2, grid))[0], want["self_cols"], SELF_ROWS)
    if "self_keysum" in want:
        check.relative("self_keysum", matrix.sum(0).view(grid), want["self_keysum"], SUMS)
    if "transposed_product" in want:
        wrong = oracle.was(matrix.T[None], probabilities)[0]
        check.relative("transposed_product", wrong, want["transposed_product"], SUMS)
        distance = float((accumulated - want.tensor("transposed_product")).abs().max())
        check.more("was against transposed_product", "max abs", distance, TRANSPOSED * WAS)


def check_losses(
    check: Checks,
    want: Arrays,
    method: FedSlime,
    found: DiffusionAttention,
    label: torch.Tensor,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    noise: torch.Tensor,
) -> None:
    """Class weights, the three losses and their weighted sum, and the gradient of each on the embeddings."""
    weights = class_weights(label, len(method.classes), method.protocol.ce_weights)
    check.relative("pixel_weights", weights, want["pixel_weights"], WEIGHTS)
    terms = method.losses(found, method.unconditional(noisy, timesteps), label, noise)
    names = {"cross_entropy": "loss1", "was": "loss2", "diffusion": "sd_loss", "loss": "loss_total"}
    for ours, theirs in names.items():
        check.relative(theirs, terms[ours].reshape(1), want[theirs], LOSS)
    weighted = method.config.loss_weights
    scales = {"cross_entropy": 1.0, "was": weighted.alpha, "diffusion": weighted.beta}
    total = torch.zeros_like(method.embeddings)
    for ours, scale in scales.items():
        (gradient,) = torch.autograd.grad(terms[ours], method.embeddings, retain_graph=True)
        check.relative(f"grad_{names[ours]}", gradient, want[f"grad_{names[ours]}"], GRADIENT)
        total += scale * gradient  # differentiating the sum itself costs as much again; `test_optimisation` does
    check.relative("grad_total", total, want["grad_total"], GRADIENT)


@pytest.mark.parametrize(("flavour", "case"), CASES)
@torch.no_grad()
def test_prediction_in_a_training_step(
    golden: Golden, backbone_of: Load, protocol: SlimeProtocol, checks: Start, flavour: str, case: str
) -> None:
    want = golden.arrays(f"{flavour}_train").at(f"{case}_trainiou_")
    label = golden.mask_with(golden.arrays(f"{flavour}_train")[f"{case}_onehot_counts"])
    theirs = want.tensor("final_attention_map")
    method = fed_slime(backbone_of(flavour), len(theirs), protocol)
    default = InStep(1, golden.side, protocol.token_gate, method.config.t_test)
    settings = in_step(want.text("final_attention_map") + want.text("vae_eps"), default)
    draws = Draws(want.tensor("t").long(), want.tensor("vae_eps"), want.tensor("noise"))
    with checks(f"{flavour}_train", case) as check:
        ours = predicted(method, golden, settings, draws, theirs.shape[-1])
        check.absolute("trainiou_final_attention_map", ours, theirs, PATCHED_MAPS)
        check.labels("trainiou_final_mask", ours.argmax(0), want["final_mask"], theirs, NEAR_TIE)
        parts, mean = train_iou(want.tensor("final_mask"), label, len(theirs))
        check.absolute("trainiou_parts", parts, want["parts"], IOU)
        check.absolute("trainiou_mean", mean, want["mean"][0], IOU)


def predicted(method: FedSlime, golden: Golden, settings: InStep, draws: Draws, size: int) -> torch.Tensor:
    """Score maps of the golden image at `size`, float [K,size,size]."""
    boxes = patch_boxes((golden.side, golden.side), settings.patch, settings.per_side)
    repeated = draws.timesteps.expand(len(boxes))
    cross, passes = patch_passes(method, golden, boxes, Draws(repeated, draws.posterior, draws.noise))
    return merged(cross, passes, boxes, golden.side, size, with_gate(method.protocol, settings.threshold))


def train_iou(prediction: torch.Tensor, label: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, float]:
    """IoU per class, NaN where absent, and the mean over those present: the log of a training step."""
    counts = intersection_union(prediction[None].long(), label[None], num_classes)
    return reduce_slime(counts, keep_background_only=True), image_score(counts)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_optimisation(golden: Golden, backbone_of: Load, protocol: SlimeProtocol, checks: Start, flavour: str) -> None:
    """The bench's own training step and optimiser: the first step from the stored start, and all updates from the
    stored gradients. (Adam divides a gradient by its own size: in several steps of our own, rounding would grow about
    fivefold in each, until other kernels lead to other embeddings.)"""
    want = golden.arrays(f"{flavour}_traj")
    method = trajectory_method(golden, backbone_of(flavour), protocol, want)
    optimiser = method.configure_optimizers()
    with checks(f"{flavour}_traj") as check:
        train(method, golden, want, 0).backward()
        check_logged(check, want, 0, method, "step 1", LOSS)
        assert method.embeddings.grad is not None
        gradient = want.tensor("grad")[0]
        check.relative("grad[0]", method.embeddings.grad, gradient, GRADIENT, "step 1 grad")
        optimiser.step()
        # A gradient within GRADIENT has the sign of the stored one in all elements that are larger than its distance,
        # and the first step is the learning rate with that sign.
        sure = gradient.abs() > GRADIENT * gradient.norm()
        check.more("elements of a sure sign", "share", float(sure.float().mean()), 0.3)
        ours, theirs = method.embeddings[sure], want.tensor("embeddings")[0][sure]
        check.absolute("embeddings[0]", ours, theirs, FIRST_EMBEDDINGS, "step 1 embeddings")

        method = trajectory_method(golden, backbone_of(flavour), protocol, want)
        optimiser = method.configure_optimizers()
        for step, gradient in enumerate(want.tensor("grad")):
            method.embeddings.grad = gradient.clone()
            optimiser.step()
            theirs = want["embeddings"][step]
            check.absolute(f"embeddings[{step}]", method.embeddings, theirs, UPDATE, "updates by the stored gradients")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_optimisation_from_the_stored_embeddings(
    golden: Golden, backbone_of: Load, protocol: SlimeProtocol, checks: Start, flavour: str
) -> None:
    """The later steps each from the stored embeddings, so that no rounding of earlier ones enters: sharp bars."""
    want = golden.arrays(f"{flavour}_traj")
    method = trajectory_method(golden, backbone_of(flavour), protocol, want)
    if len(want["loss"]) < 2:
        pytest.skip("one step alone: `test_optimisation` has checked it")
    with checks(f"{flavour}_traj", "from stored embeddings") as check:
        for step in range(1, len(want["loss"])):
            method.load_learned_state({"embeddings": want.tensor("embeddings")[step - 1]})
            (gradient,) = torch.autograd.grad(train(method, golden, want, step), method.embeddings)
            check_logged(check, want, step, method, "later steps", LOSS)
            check.relative(f"grad[{step}]", gradient, want["grad"][step], GRADIENT, "later steps grad")


def trajectory_method(golden: Golden, backbone: GoldenBackbone, protocol: SlimeProtocol, want: Arrays) -> FedSlime:
    """SLiMe at the stored start of a trajectory."""
    size, num_classes = want["train_final_mask"].shape[-1], want["embeddings"].shape[1] + 1
    return fed_slime(backbone, num_classes, protocol, train_map_size=size)


def train(method: FedSlime, golden: Golden, want: Arrays, step: int) -> torch.Tensor:
    """The loss of one training step on the golden image, with the recorded draws."""
    method.draws = Draws(*(want.tensor(name)[step : step + 1] for name in ("t", "vae_eps", "noise")))
    picture, label = as_picture(golden.image, method.protocol), golden.full_mask()[None]
    return method.training_step({"image": picture, "label": label, "id": ["golden"], "epoch": torch.tensor([0])}, 0)


def check_logged(check: Checks, want: Arrays, step: int, method: FedSlime, part: str, bar: float) -> None:
    """The losses of one step, before its update."""
    names = {"cross_entropy": "loss1", "was": "loss2", "diffusion": "sd_loss", "loss": "loss"}
    for ours, theirs in names.items():
        check.relative(f"{theirs}[{step}]", method.logged[f"train/{ours}"], want[theirs][step], bar, f"{part} {theirs}")


@pytest.mark.parametrize("flavour", FLAVOURS)
@torch.no_grad()
def test_predictions_along_the_optimisation(
    golden: Golden, backbone_of: Load, protocol: SlimeProtocol, checks: Start, flavour: str
) -> None:
    """The in-step predictions, each from the stored embeddings, so that no rounding of earlier steps enters."""
    want = golden.arrays(f"{flavour}_traj")
    label = resize_label(golden.full_mask(), want["train_final_mask"].shape[-1])
    text = want.text("trainiou_noise") + want.text("trainiou_vae_eps")
    num_classes = want["embeddings"].shape[1] + 1
    method = fed_slime(backbone_of(flavour), num_classes, protocol)
    settings = in_step(text, InStep(1, golden.side, protocol.token_gate, method.config.t_test))
    timestep = torch.tensor([settings.timestep])
    patches = settings.per_side**2
    with checks(f"{flavour}_traj") as check:
        for step, theirs in enumerate(want["train_final_mask"]):
            if step:
                method.load_learned_state({"embeddings": want.tensor("embeddings")[step - 1]})
            rows = slice(step * patches, (step + 1) * patches)
            draws = Draws(timestep, want.tensor("trainiou_vae_eps")[rows], want.tensor("trainiou_noise")[rows])
            ours = predicted(method, golden, settings, draws, theirs.shape[-1])
            check.labels(
                f"train_final_mask[{step}]", ours.argmax(0), theirs.astype(int), ours, NEAR_TIE, "train_final_mask"
            )
            parts, mean = train_iou(torch.from_numpy(theirs), label, num_classes)
            check.absolute(
                f"train_iou[{step}]",
                torch.cat([parts, torch.tensor([mean])]),
                want["train_iou"][step],
                IOU,
                "train_iou",
            )


@pytest.mark.parametrize(("flavour", "file", "grid"), PREDICTIONS, ids=lambda part: getattr(part, "name", part))
@torch.no_grad()
def test_prediction(
    golden: Golden,
    backbone_of: Load,
    protocol: SlimeProtocol,
    checks: Start,
    monkeypatch: pytest.MonkeyPatch,
    flavour: str,
    file: str,
    grid: Grid,
) -> None:
    monkeypatch.setattr(slime_segment, "was", remembering_was())
    arrays = golden.arrays(file)
    text = arrays.tensor("text_embedding") if "text_embedding" in arrays else None
    want = arrays.at(grid.name)
    draws = Draws(want.tensor("t").long(), want.tensor("vae_eps"), want.tensor("noise"))
    boxes = patch_boxes((golden.side, golden.side), grid.patch, grid.per_side)
    settings = {} if boxes == [(0, golden.side, 0, golden.side)] else {"patch_size": grid.patch}
    backbone = backbone_of(flavour)
    with checks(file, grid.name.rstrip("/")) as check:
        check.exactly("crops", boxes, want["crops"])
        num_classes = want["prob_max"].shape[1]
        whole = {"patches_per_side": grid.per_side, "t_test": int(draws.timesteps[0]), **settings}
        method = fed_slime(backbone, num_classes, protocol, text, **whole)
        method.draws = draws
        cross, passes = patch_passes(method, golden, boxes, draws)
        check_patches(check, want, golden, backbone, boxes, draws, cross, passes)
        full = golden.full_maps(file, grid)
        for run in runs(arrays, grid):
            gated = with_gate(protocol, run.threshold)
            if run.size == golden.side and len(set(draws.timesteps.tolist())) == 1:
                method.protocol = gated
                ours = method.scores(as_picture(golden.image, protocol), ["golden"])[0]  # the bench's own whole way
            else:
                ours = merged(cross, passes, boxes, golden.side, run.size, gated)
            check_run(check, arrays.at(run.name), run.name.removeprefix(grid.name), ours)
            if (run.threshold, run.size) in full:
                theirs = full[run.threshold, run.size]
                check.absolute(f"{run.name}complete map", ours, theirs, PATCHED_MAPS, "complete map")
                mask = arrays[f"{run.name}final_mask"]
                check.labels(f"{run.name}complete mask", ours.argmax(0), mask, theirs, NEAR_TIE, "complete map's mask")
    backbone.forget()


Passes = list[tuple[torch.Tensor, DiffusionAttention]]


def patch_passes(
    method: FedSlime, golden: Golden, boxes: Sequence[Box], draws: Draws
) -> tuple[torch.Tensor, list[DiffusionAttention]]:
    """Cross maps of the golden image's patches, float [P,K,h,w], and the passes that they come from."""
    backbone, side = method.backbone, (golden.side, golden.side)
    crops = torch.cat([resize(golden.image[:, :, y0:y1, x0:x1], side) for y0, y1, x0, x1 in boxes])
    noisy = backbone.add_noise(encode(backbone, crops, draws.posterior), draws.noise, draws.timesteps)
    count = backbone.images_per_call(side)
    passes = [
        backbone.attention(part, t, method.text(), with_noise=False)
        for part, t in zip(noisy.split(count), draws.timesteps.split(count), strict=True)
    ]
    maps = [
        cross_maps(each.cross, each.cross_grids, len(method.classes), each.self_grids[0], method.protocol)
        for each in passes
    ]
    return torch.cat(maps), passes


def merged(
    cross: torch.Tensor,
    passes: Sequence[DiffusionAttention],
    boxes: Sequence[Box],
    side: int,
    size: int,
    protocol: SlimeProtocol,
) -> torch.Tensor:
    """Score maps in a frame of `size` pixels, float [K,size,size]."""
    placed = shrink(list(boxes), side // size)
    extent = (placed[0][1] - placed[0][0], placed[0][3] - placed[0][2])
    parts = cross.split([len(each.self_[0].query) for each in passes])
    made = [patch_scores(c, each.self_, protocol, True, extent) for c, each in zip(parts, passes, strict=True)]
    scores, passed = (torch.cat(values)[None] for values in zip(*made, strict=True))
    return merge_patches(scores, passed, placed, (size, size))[0]


def check_patches(
    check: Checks,
    want: Arrays,
    golden: Golden,
    backbone: GoldenBackbone,
    boxes: Sequence[Box],
    draws: Draws,
    cross: torch.Tensor,
    passes: Sequence[DiffusionAttention],
) -> None:
    """Latents, cross maps and self-attention of the patches, before any gate."""
    for name, index in (("latents0", 0), ("latents_last", len(boxes) - 1)):
        y0, y1, x0, x1 = boxes[index]
        patch = resize(golden.image[:, :, y0:y1, x0:x1], (golden.side, golden.side))
        latents = backbone.encode(patch, draws.posterior[index : index + 1])
        check.absolute(name, latents, want[name], latents_bar(backbone))
    check.absolute("prob_max", cross.amax((2, 3)), want["prob_max"], PROBABILITIES)
    check.absolute("prob_min", cross.amin((2, 3)), want["prob_min"], PROBABILITIES)
    check.absolute("prob_mean", cross.mean((2, 3)), want["prob_mean"], PROBABILITIES)
    check.absolute("probs", cross[: len(want["probs"])], want["probs"], PROBABILITIES)
    grid, first = passes[0].self_grids[0], passes[0].self_
    places = [y * grid[1] + x for y, x in pixels(want.text("self_rows0"))]
    queries = [LayerAttention(layer.query[:1, :, places], layer.key[:1], layer.scale) for layer in first]
    check.absolute("self_rows0", mean_attention(queries).unflatten(1, grid), want["self_rows0"], SELF_ROWS)


def check_run(check: Checks, want: Arrays, name: str, ours: torch.Tensor) -> None:
    """Map before the argmax (whole or sampled), its statistics, its labels."""
    maps = next(key for key in want if key.startswith("final_attention_map"))
    sampled, near = ours, ours
    if "_stride" in maps:
        rows, columns = stride(maps, want.text(maps))
        sampled = ours[:, rows, columns]
    else:
        near = want.tensor(maps)
    group = f"thr*/out*/{maps}"
    check.absolute(f"{name}{maps}", sampled, want[maps], PATCHED_MAPS, group)
    stats = torch.stack([ours.amin((1, 2)), ours.amax((1, 2)), ours.mean((1, 2))], 1)
    check.absolute(f"{name}stats", stats, want["stats"], PATCHED_MAPS, "thr*/out*/stats")
    # Within the bar of the maps our own near ties are as good as the stored ones, which are not complete everywhere.
    check.labels(
        f"{name}final_mask", ours.argmax(0), want["final_mask"].astype(int), near, NEAR_TIE, "thr*/out*/final_mask"
    )


def test_training_masks_are_nearest_neighbours_of_the_whole_mask(golden: Golden, checks: Start) -> None:
    whole = golden.full_mask()
    smaller = {name: mask for name, mask in golden.masks().items() if mask.shape[-1] != golden.side}
    plain = [name for name in smaller if name == f"mask{smaller[name].shape[-1]}"]
    with checks("inputs") as check:
        for name in plain:
            check.exactly(name, resize_label(whole, smaller[name].shape[-1]), smaller[name])


def test_metric(golden: Golden, checks: Start) -> None:
    with checks("metric") as check:
        check_metric(check, golden.arrays("metric"), IOU)


def test_patch_boxes(golden: Golden, checks: Start) -> None:
    with checks("utils.json", "get_crops_coords") as check:
        check_patch_boxes(check, utilities(golden.folder, "get_crops_coords"))


def test_random_crops(golden: Golden, checks: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with checks("utils.json", "get_random_crop_coordinates") as check:
        check_random_crops(check, utilities(golden.folder, "get_random_crop_coordinates"), monkeypatch)


def test_calculate_iou(golden: Golden, checks: Start) -> None:
    with checks("utils.json", "calculate_iou") as check:
        check_iou_cases(check, utilities(golden.folder, "calculate_iou"), IOU)


class Seen(Exception):
    """Carries the images that the autoencoder was to see."""


def test_dataset_item(
    golden: Golden,
    backbone_of: Load,
    protocol: SlimeProtocol,
    checks: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A picture file and its label file, through the data module, to the pixels that the model sees."""
    want = golden.arrays("dataset_item")
    for kind in ("images", "labels"):
        (tmp_path / "test" / kind).mkdir(parents=True)
    Image.fromarray(want["png_rgb"]).save(tmp_path / "test" / "images" / "item.png")
    np.save(tmp_path / "test" / "labels" / "item.npy", want["mask_npy"])
    masks = {name: want[name] for name in want if name.startswith("mask") and name != "mask_npy"}
    side = want["image"].shape[-1]
    classes = ["background", *(f"part{k}" for k in range(1, int(want["mask_npy"].max()) + 1))]
    config = DataConfig(name="golden", root=str(tmp_path), classes=classes, image_size=side, resize="opencv")
    (batch,) = FolderData(config, shots=1, seed=0).datamodule().test_dataloader()
    backbone = backbone_of(golden.flavours[0])
    method = fed_slime(backbone, len(classes), protocol)
    method.draws = Draws(torch.zeros(1).long(), torch.zeros(1), torch.zeros(1))

    def see(images: torch.Tensor, *_: Any) -> torch.Tensor:
        raise Seen(images)

    monkeypatch.setattr(backbone, "encode", see)
    with pytest.raises(Seen) as seen:
        method.scores(batch["image"], batch["id"])
    with checks("dataset_item") as check:
        check.absolute("image", (seen.value.args[0][0] * 255).round(), want["image"].astype(int), LEVELS)
        for name, mask in masks.items():
            check.exactly(name, resize_label(batch["label"][0], mask.shape[-1]), mask)
