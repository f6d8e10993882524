"""A small but complete bench: random weights in Stable Diffusion's layout, a dozen pictures, the real command line."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from slime_bench import cli
from slime_bench.errors import DataError
from slime_bench.results import TrialResult, read_result

SIDE = 64
SPLITS = {"support": 4, "val": 2, "test": 5}
FAILING = (2, 1)  # shots and seed of the trial that fails in `swept`


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Bench:
    """The command line on the small weights and the small data set.

    Attributes:
        sd: folder of the weights. data: folder of the data set. outputs: `output_root`.
    """

    sd: Path
    data: Path
    outputs: Path

    @property
    def settings(self) -> list[str]:
        """Overrides that make any trial small; without a gate the random weights' classes all take part."""
        sizes = [
            f"data.image_size={SIDE}",
            f"backbone.image_size={SIDE}",
            "data.batch_size=2",
            "method.train_map_size=16",
        ]
        names = ["data=pascal_part_car", "data.name=tiny_car", f"data.root={self.data}", f"backbone.weights={self.sd}"]
        fast = ["method.epochs=2", "protocol.token_gate=0", "trainer=cpu", "trainer.progress=false", "save_maps=3"]
        return [*names, *sizes, *fast, f"output_root={self.outputs}"]

    def __call__(self, *arguments: str) -> Outcome:
        return command(*_flags(arguments), *self.settings, *_overrides(arguments))

    def folder(self, shots: int = 1, seed: int = 0) -> Path:
        """The one folder of a trial."""
        (found,) = (self.outputs / "runs" / "tiny_car" / "slime" / f"{shots}-shot").glob(f"seed{seed}-*")
        return found

    def result(self, shots: int = 1, seed: int = 0) -> TrialResult:
        return read_result(self.folder(shots, seed) / "result.json")


def command(*arguments: str) -> Outcome:
    """`slime-bench <arguments>` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(arguments)
    return Outcome(code, out.getvalue(), err.getvalue())


def contents(folder: Path) -> dict[str, bytes]:
    """Relative name -> bytes of every file under `folder`."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _flags(arguments: Sequence[str]) -> list[str]:
    return [each for each in arguments if each.startswith("--")]


def _overrides(arguments: Sequence[str]) -> list[str]:
    return [each for each in arguments if not each.startswith("--")]


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion folder with SD's block types and random weights, about 3 MB."""
    import torch
    from diffusers import StableDiffusionPipeline

    from data_prep import mini_models, mini_world

    folder = tmp_path_factory.mktemp("weights") / "tiny_sd"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = mini_models.build_tokenizer(mini_world.vocabulary())
        pipeline = StableDiffusionPipeline(
            vae=mini_models.build_vae((8, 16, 16)),
            unet=mini_models.build_unet((32, 32, 32, 32), text_width=32),
            text_encoder=mini_models.build_text_encoder(tokenizer, width=32, layers=1),
            tokenizer=tokenizer,
            scheduler=mini_models.build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def car_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder data set of the mini world's cars at half size."""
    from PIL import Image

    from data_prep import mini_world

    root = tmp_path_factory.mktemp("pictures") / "car"
    for split, count in SPLITS.items():
        for index in range(count):
            picture = mini_world.render("car", split, index)
            for kind, array in (("images", picture.image), ("labels", picture.label)):
                path = root / split / kind / f"car-{split}-{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array[::2, ::2].copy()).save(path)
    return root


@pytest.fixture(scope="session")
def mini_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data_root` with the mini world's real car data set."""
    from data_prep.mini_world import write_dataset

    root = tmp_path_factory.mktemp("data")
    write_dataset(root / "mini" / "car", "car")
    return root


@pytest.fixture(scope="session")
def swept(tiny_sd: Path, car_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Outcome]:
    """A sweep of four trials of which one fails, and how it ended. Read only: see `finished` for a copy."""
    from slime_bench import trial

    bench = Bench(tiny_sd, car_pictures, tmp_path_factory.mktemp("swept"))
    real = trial._compute

    def sometimes(cfg, *arguments):  # type: ignore[no-untyped-def]
        if (cfg.shots, cfg.seed) == FAILING:
            raise DataError("a file went missing", path="some/image.png", remedy="put it back")
        return real(cfg, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "_compute", sometimes)
        outcome = bench("--multirun", "shots=1,2", "seed=0,1")
    return bench, outcome


@pytest.fixture
def finished(swept: tuple[Bench, Outcome], tmp_path: Path) -> Bench:
    """A copy of the swept bench that a test may change: outputs and data set are its own."""
    bench, _ = swept
    shutil.copytree(bench.outputs, tmp_path / "outputs")
    shutil.copytree(bench.data, tmp_path / "car")
    return Bench(bench.sd, tmp_path / "car", tmp_path / "outputs")


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra prints the program's name, which under pytest is pytest's."""
    monkeypatch.setattr(sys, "argv", ["slime-bench"])
