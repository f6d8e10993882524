"""The Python call: what docs/python.md shows runs as it stands, whatever form the pictures have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from slime_bench.data.mini_world.render import render
from slime_bench.errors import ConfigError, DataError, LabelError
from slime_bench.segment.confidence import DOUBTFUL, UNSURE, Reached, doubtful
from slime_bench.segment.segmenter import Segmenter

NAMES = ["body", "light", "plate", "wheel", "window"]
PROBE = ["method=feature_probe"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An annotated car and another one."""
    folder = tmp_path_factory.mktemp("pictures")
    support, other = render("car", "support", 0), render("car", "test", 0)
    Image.fromarray(support.image).save(folder / "car.png")
    Image.fromarray(support.label.astype(np.uint8)).save(folder / "car_mask.png")
    Image.fromarray(other.image).save(folder / "other.png")
    return folder


@pytest.fixture(scope="module")
def car(pictures: Path) -> Segmenter:
    """Learned by the bundled backbone on the CPU."""
    return Segmenter.fit(pictures / "car.png", pictures / "car_mask.png", NAMES, overrides=PROBE, device="cpu")


def test_the_page_runs_as_it_stands(
    repository: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pictures)
    shown: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (repository / "docs/python.md").read_text("utf-8"), re.DOTALL):
        exec(block, shown)
    assert shown["label"].shape == (128, 128) and shown["label"].dtype == np.uint8
    assert shown["scores"].shape == (6, 128, 128) and shown["scores"].dtype == np.float32
    assert (shown["scores"].argmax(0) == shown["label"]).all()
    assert "cannot read the image" in capsys.readouterr().out


def test_a_part_is_found(car: Segmenter) -> None:
    """Wheels of another car, better than by chance: more than half of what is called wheel is one."""
    other = render("car", "test", 0)
    found, wheel = car.segment(other.image) == 4, other.label == 4
    assert found.any() and (found & wheel).sum() > 0.5 * found.sum()


def test_all_forms_of_a_picture_are_one(pictures: Path, car: Segmenter) -> None:
    picture = Image.open(pictures / "other.png")
    maps = [
        car.segment(form) for form in (pictures / "other.png", str(pictures / "other.png"), picture, np.array(picture))
    ]
    assert all((each == maps[0]).all() for each in maps)
    label = np.array(Image.open(pictures / "car_mask.png"))
    again = Segmenter.fit(
        [Image.open(pictures / "car.png")], [label], {name: k + 1 for k, name in enumerate(NAMES)}, overrides=PROBE,
        device="cpu",
    )  # fmt: skip
    assert again.classes == car.classes and again.content_hash() == car.content_hash()


def test_what_is_saved_is_loaded(car: Segmenter, pictures: Path, tmp_path: Path) -> None:
    car.save(tmp_path / "car.safetensors")
    loaded = Segmenter.load(tmp_path / "car.safetensors", device="cpu")
    assert loaded.classes == car.classes == ("background", *NAMES) and loaded.colours == car.colours
    assert (loaded.segment(pictures / "other.png") == car.segment(pictures / "other.png")).all()
    assert loaded.reached == car.reached is not None
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "car.safetensors").read_bytes()
    changed = Segmenter.load(tmp_path / "car.safetensors", device="cpu", overrides=["method.test_draws=1"])
    assert changed.reached is None, "scores of other settings cannot be compared"


def test_a_picture_of_nothing_does_not_convince(car: Segmenter) -> None:
    assert car.reached is not None
    own = [car.reached.confidence(car.scored([car.fitted(each)], [key])[0].best) for each, key in (
        (render("car", "support", 0).image, "support"), (np.full((128, 128, 3), 128, np.uint8), "grey"),
    )]  # fmt: skip
    assert not doubtful(own[0]) and doubtful(own[1])
    assert min(each for each in own[0] if each is not None) > UNSURE


def test_classes_that_were_not_shown_are_not_judged() -> None:
    import torch

    reached = Reached((None, 2.0, None, 1.0), (0.5, 0.1, None, 0.4))
    assert reached.confidence(torch.tensor([9.0, 1.0, 9.0, 3.0])) == [None, 0.5, None, 1.0]
    assert reached.too_large([0.0, 0.41, 0.5, 0.09]) == [1]
    assert doubtful([None, DOUBTFUL - 0.01]) and not doubtful([None, DOUBTFUL, None]) and not doubtful([None, None])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"images": np.zeros((4, 4, 4), np.uint8)}, DataError, r"an array \[4, 4, 4\] of uint8"),
        ({"images": np.zeros((4, 4, 3))}, DataError, "float64"),
        ({"images": "nowhere.png"}, DataError, "No such file"),
        ({"masks": np.zeros((4, 4), np.uint8)}, LabelError, "differ in size"),
        ({"masks": np.full((128, 128), 0.5)}, LabelError, "numbers that are no class index"),
        ({"masks": []}, ConfigError, r"1 picture\(s\), 0 mask\(s\)"),
        ({"classes": ["body"]}, LabelError, "values that no class has"),
        ({"preset": "large"}, ConfigError, "large"),
    ],
)
def test_mistakes(pictures: Path, change: dict[str, Any], error: type[Exception], words: str) -> None:
    given: dict[str, Any] = {"images": pictures / "car.png", "masks": pictures / "car_mask.png", "classes": NAMES}
    with pytest.raises(error, match=words):
        Segmenter.fit(**{**given, **change}, device="cpu")
