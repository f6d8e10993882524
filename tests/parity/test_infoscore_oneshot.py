"""One-shot tuning of the second paper against numbers made by its authors' code: losses step by step, tuned parameters,
and what the tuned model says of unseen images. See test_infoscore.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from slime_bench.data.config import OPENCV_FLOAT, PAD_FLOOR8
from slime_bench.data.reading import Sample
from slime_bench.data.transforms import fit_sample
from slime_bench.methods.infoscore.config import InfoScoreConfig
from slime_bench.methods.infoscore.maps import Reading, read
from slime_bench.methods.infoscore.method import InfoScore
from slime_bench.methods.infoscore.prompts import PromptList
from slime_bench.methods.infoscore.protocol import InfoScoreProtocol
from slime_bench.metrics.iou import intersection_union
from slime_bench.refine.crf import crf_kernel, mean_field
from slime_bench.refine.crf_config import CrfConfig
from tests.parity.golden_infoscore import MEAN, STD, Arrays, Golden, chosen_folder, open_golden
from tests.parity.infoscore_pass import golden_blip
from tests.parity.table import Checks

# Bars of the README's section 7; a run that takes a step per image is looser than one that takes groups.
LOSS, LOSS_SINGLES = 3e-5, 2e-4
AFTER, AFTER_SINGLES = 5e-5, 2e-4
TUNED = 5e-5
CRF = 5e-5  # of the array's maximum

RUNS = sorted(path.stem.removeprefix("oneshot_") for path in chosen_folder().glob("oneshot_*.npz")) or ["none"]
CODE = InfoScoreProtocol(
    name="infoscore_code", attention="scores", heads="max", tokens="all", token_reduction="sum", match="all",
    softmax_over="prompts", background="sum", foreground="max", align_corners=True, normalise="after",
    info_over="prompts",
)  # fmt: skip


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> Golden:
    return open_golden(request)


class Data:
    """What `InfoScore.prepare` asks of a data module when the layers are named."""

    shots = 1


def tuner(golden: Golden, facts: dict[str, Any]) -> InfoScore:
    """The method as the authors configured the run."""
    mode = "multi" if facts["multi"] else "single"
    config = InfoScoreConfig(
        prompts="car", multi_prompt=facts["multi"], layers=[f"layer.{index}" for index in facts["layers"]],
        epochs=facts["iterations"], lr=facts["lr"], weight_decay=facts["weight_decay"], group=facts["accumulation"],
    )  # fmt: skip
    prompts = PromptList(tuple(golden.prompts(mode)), tuple(golden.spans(mode)))
    method = InfoScore(config, CODE, golden_blip(golden), golden.classes(mode), seed=0, prompts=(prompts, prompts))
    method.backbone.mean.zero_()  # the recorded images are normalised already, and the tuning amplifies every rounding
    method.backbone.std.fill_(1)
    # Adam divides a gradient by its own size: where it is near zero, rounding decides the sign of a whole step, and
    # other kernels than the recorder's may take the other one. float64 decides as the mathematics does, on any
    # processor, and the README's section 7 says how far the recorder's float32 is from it: a fifth of the bars or less.
    method.backbone.double()
    method.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    method.prepare(Data(), "cpu")
    return method


def checksum(maps: Tensor, places: list[int]) -> Tensor:
    """Mean, population deviation, minimum, maximum and some values of a map, as the recorder made them."""
    flat = maps.flatten().double()
    return torch.cat([torch.stack([flat.mean(), flat.std(correction=0), flat.min(), flat.max()]), flat[places]])


def tune(method: InfoScore, images: Tensor, labels: Tensor, iterations: int) -> tuple[list[float], list[Tensor]]:
    """Every step's loss, and the probabilities that entered it."""
    optimiser, losses, seen = method.configure_optimizers(), [], []
    combined = method.combined

    def watched(found: Reading, frame: tuple[int, int]) -> Tensor:
        seen.append(combined(found, frame))
        return seen[-1]

    method.combined = watched  # type: ignore[method-assign]
    group = method.config.group
    for _ in range(iterations):
        for start in range(0, len(images), group):
            rows = range(start, min(start + group, len(images)))
            batch = {"image": images[rows], "label": labels[rows], "id": [str(row) for row in rows]}
            loss = method.training_step(batch, 0)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    method.combined = combined  # type: ignore[method-assign]
    return losses, [maps.detach() for maps in seen]


@torch.no_grad()
def after(method: InfoScore, images: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities [N,C,H,W] and matching scores [N,P] of unseen images."""
    shown, found, scores = method._views["chosen"], [], []
    for image in images.split(1):
        states = method.backbone.encode_images(image)
        reading = read(method.backbone, states, method._prompts, method.protocol, method.layers)
        found.append(method.combined(reading, method._frame(image)))
        scores.append(reading.match[:, shown.columns].amax(-1))
    return torch.cat(found), torch.cat(scores)


@pytest.mark.parametrize("name", RUNS)
def test_tuning(name: str, golden: Golden, record_property: Callable[[str, object], None]) -> None:
    facts = golden.meta[f"oneshot_{name}"]
    want: Arrays = golden.arrays(f"oneshot_{name}")
    places = golden.meta["slice64_flat_indices_of_CHW"]
    singles = facts["accumulation"] == 1
    loss_bar, after_bar = (LOSS_SINGLES, AFTER_SINGLES) if singles else (LOSS, AFTER)
    with Checks(record_property, f"oneshot_{name}") as check:
        for run in range(facts["runs"]):
            method = tuner(golden, facts)
            untouched = {key: value.clone() for key, value in method.backbone.state_dict().items()}
            pictures = want.tensor(f"r{run}_support_images")
            labels = want.tensor(f"r{run}_support_labels").long()
            losses, seen = tune(method, pictures, labels, facts["iterations"])
            check.absolute(f"r{run}_losses", torch.tensor(losses), want[f"r{run}_losses"], loss_bar, "losses")
            steps = torch.stack([torch.stack([checksum(each, places) for each in maps]).mean(0) for maps in seen])
            check.absolute(
                f"r{run}_step_unary", steps, want[f"r{run}_step_unary_checksum"], after_bar, "unary of every step"
            )
            _parameters(check, method, want, run, facts, untouched)
            _queries(check, method, golden, want, run, facts, after_bar, places)
            method.restore()
            for key, value in method.backbone.state_dict().items():
                assert torch.equal(value, untouched[key]), f"{key} was not restored"


def _parameters(
    check: Checks, method: InfoScore, want: Arrays, run: int, facts: dict[str, Any], before: dict[str, Tensor]
) -> None:
    """Every recorded parameter, and that no other one has changed."""
    state = method.backbone.state_dict()
    recorded = [key.removeprefix(f"r{run}_tuned.") for key in want if key.startswith(f"r{run}_tuned.")]
    seen = set()
    for short in recorded:
        tail = re.sub(r"^layer(\d+)\.", r"layer.\1.", short)
        (full,) = [key for key in state if key.endswith((f".{tail}", f".{tail}.weight"))]
        seen.add(full)
        # A head that never wins the maximum has a gradient of rounding noise here, which Adam scales up to lr a step.
        ill = short.endswith("key.bias")
        bar = facts["lr"] * facts["iterations"] * len(want[f"r{run}_losses"]) if ill else TUNED
        check.absolute(
            f"r{run} {short}",
            state[full],
            want[f"r{run}_tuned.{short}"],
            bar,
            "key.bias" if ill else "tuned parameters",
        )
    changed = {key for key, value in state.items() if not torch.equal(value, before[key])}
    check.exactly(f"r{run} tuned names", sorted(changed), sorted(seen), "names of what changed")


def _queries(
    check: Checks, method: InfoScore, golden: Golden, want: Arrays, run: int, facts: dict[str, Any], bar: float,
    places: list[int],
) -> None:  # fmt: skip
    images, labels = _query_images(golden, facts["query_order"][run])
    found, scores = after(method, images)
    check.absolute(
        f"r{run}_unary_after", found[: len(want[f"r{run}_unary_after"])], want[f"r{run}_unary_after"], bar, "unary"
    )
    sums = torch.stack([checksum(maps, places) for maps in found])
    check.absolute(f"r{run}_unary_checksums", sums, want[f"r{run}_unary_after_checksums"], bar, "unary of all queries")
    check.absolute(f"r{run}_itm_after", scores, want[f"r{run}_itm_after"], bar, "ITM scores")
    crf = CrfConfig(final_softmax=True)
    smooth = torch.cat([mean_field(u[None], crf_kernel(x[None], crf), crf) for u, x in zip(found, images, strict=True)])
    first = want[f"r{run}_crf_after0"]
    check.absolute(f"r{run}_crf_after0", smooth[: len(first)], first, 10 * CRF * float(abs(first).max()), "CRF")
    counts = [
        intersection_union(p[None], y[None], len(method.classes)) for p, y in zip(smooth.argmax(1), labels, strict=True)
    ]
    intersection = torch.cat([each.intersection for each in counts]).sum(0).double()
    union = torch.cat([each.union for each in counts]).sum(0).double()
    # A pixel on the edge of two classes may go either way by the CRF's rounding.
    check.absolute(f"r{run}_iou", intersection / (union + 1e-16), want[f"r{run}_iou"], 2e-3, "IoU after the CRF")


def _query_images(golden: Golden, names: list[str]) -> tuple[Tensor, Tensor]:
    """The recorded queries, normalised, through the bench's own reading and resizing."""
    samples = []
    for name in names:
        image = np.array(Image.open(golden.folder / name).convert("RGB"))
        label = np.array(Image.open(golden.folder / name.replace("images", "labels"))).astype(np.int64)
        samples.append(fit_sample(Sample(name, image, label), golden.size[0], OPENCV_FLOAT, PAD_FLOOR8))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return torch.stack([(each.image / 255 - mean) / std for each in samples]), torch.stack(
        [each.label for each in samples]
    )
