"""The page's state, without a browser: pictures, classes, paint, learning, results, errors in words."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from slime_bench.app import html
from slime_bench.app.jobs import Progress, Stopped, duration
from slime_bench.app.server import archive
from slime_bench.app.session import EXAMPLES, Session
from slime_bench.colours import class_colours, palette
from slime_bench.errors import ConfigError, DataError, LabelError, ResultError, SlimeBenchError
from slime_bench.segment.folder import Record
from slime_bench.segment.segmenter import Segmenter

Draw = tuple[slice, slice, int]
ROOT = "/"


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session()
    yield made
    made.close()


@pytest.fixture(scope="module")
def small(tiny_sd: Path) -> list[str]:
    """Overrides: small random weights."""
    return [f"backbone.weights={tiny_sd}", "backbone.image_size=64", "data.image_size=64", "method.train_map_size=16"]


def drawn(session: Session, *patches: Draw) -> None:
    """Paint on the picture in the canvas, on its square of 800 pixels."""
    assert session.current is not None
    _, layer = session.open(session.current)
    for rows, columns, index in patches:
        layer[rows, columns] = (*session.colours[index], 255) if index else 0
    session.keep_paint([layer])


def saved(folder: Path, name: str, size: tuple[int, int] = (40, 30)) -> Path:
    path = folder / name
    Image.fromarray(np.random.default_rng(len(name)).integers(0, 255, (*size[::-1], 3), np.uint8)).save(path)
    return path


def opened(session: Session, folder: Path, *names: str) -> None:
    session.add_pictures([saved(folder, name) for name in names])
    session.open(names[0])


def ended(job: Iterator[Progress]) -> list[Progress]:
    return list(job)


class TestPictures:
    def test_what_is_no_picture_is_said_and_the_others_are_taken(self, session: Session, tmp_path: Path) -> None:
        text = tmp_path / "words.jpg"
        text.write_text("no picture")
        with pytest.raises(DataError) as caught:
            session.add_pictures([saved(tmp_path, "a.png"), text, saved(tmp_path, "b.jpg")])
        assert [*session.photos] == ["a.png", "b.jpg"]
        assert "1 of 3 files are no pictures" in str(caught.value) and "words.jpg" in str(caught.value)
        assert str(tmp_path) not in html.failed(caught.value)

    def test_names_stay_apart(self, session: Session, tmp_path: Path) -> None:
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir()
            session.add_pictures([saved(tmp_path / folder, "car.jpg"), saved(tmp_path / folder, "car.png")])
        assert [*session.photos] == ["car.jpg", "car.png", "car (2).jpg", "car (2).png"]
        assert len({photo.stem.casefold() for photo in session.photos.values()}) == 4

    def test_closing_leaves_nothing(self, session: Session) -> None:
        session.take_example()
        place = session.place
        session.close()
        assert not place.exists() and not session.photos


class TestClasses:
    @pytest.mark.parametrize(("text", "words"), [(" , ", "have no names"), ("wheel, body, wheel", "stands twice")])
    def test_names_that_cannot_be(self, session: Session, text: str, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            session.name_classes(text)

    def test_paint_follows_its_class(self, session: Session, tmp_path: Path) -> None:
        opened(session, tmp_path, "a.png")
        session.name_classes("body, wheel, window")
        drawn(session, (slice(200, 400), slice(None), 1), (slice(400, 500), slice(None), 3))
        label = session.photos["a.png"].label
        assert label is not None and set(np.unique(label)) == {0, 1, 3}
        session.name_classes("hull, wheel, window")  # as many names: one is renamed
        session.name_classes("window, hull")
        again = session.photos["a.png"].label
        assert again is not None and np.array_equal(again == 1, label == 3) and np.array_equal(again == 2, label == 1)


class TestPaint:
    def test_what_is_missing_is_said_step_by_step(self, session: Session, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no picture to paint"):
            session.support()
        opened(session, tmp_path, "a.png", "b.png")
        with pytest.raises(ConfigError, match="no names"):
            session.support()
        session.name_classes("body, wheel")
        with pytest.raises(LabelError, match="nothing is painted"):
            session.support()
        drawn(session, (slice(200, 400), slice(0, 100), 1))
        with pytest.raises(LabelError, match=r"(?s)without paint.*no pixel of wheel"):
            session.support()
        session.open("b.png")
        drawn(session, (slice(200, 400), slice(0, 100), 2))  # in another picture
        support = session.support()
        assert support.names == ("a.png", "b.png") and [each.shape for each in support.labels] == [(30, 40)] * 2
        assert support.classes.names == ("background", "body", "wheel")
        assert [list(each) for each in support.classes.colours] == palette(3).tolist()
        with pytest.raises(ConfigError, match="nothing is learned"):
            ended(session.segment())
        session.clear_paint()
        with pytest.raises(LabelError, match="without paint"):
            session.support()

    def test_masks(self, session: Session, tmp_path: Path) -> None:
        opened(session, tmp_path, "a.png")
        values = np.zeros((30, 40), np.uint8)
        values[5:15, 5:15], values[20:28, 5:30] = 1, 2

        def written(array: np.ndarray, name: str = "mask.png") -> Path:
            Image.fromarray(array).save(tmp_path / name)
            return tmp_path / name

        session.load_mask(written(values))
        assert session.classes == ("background", "class_1", "class_2")
        session.name_classes("body, wheel")
        session.load_mask(written(palette(3)[values]))  # in the page's own colours
        assert session.classes == ("background", "body", "wheel")
        assert np.array_equal(session.photos["a.png"].label, values)
        other = session.load_mask(written(np.array([[0, 0, 0], [0, 200, 9], [9, 0, 200]], np.uint8)[values]))
        assert "#00c809" in other and len(session.classes) == 3 and "body" not in session.classes
        with pytest.raises(LabelError, match="differ in size"):
            session.load_mask(written(values[:20]))
        with pytest.raises(LabelError, match="format that changes pixels"):
            session.load_mask(written(values, "mask.jpg"))
        with pytest.raises(ConfigError, match="no mask of its own"):
            session.take_example_mask()


class TestLearning:
    def test_from_paint_to_archive_and_back(self, session: Session, small: list[str], tmp_path: Path) -> None:
        session.take_example()
        session.open("car0.png")
        session.take_example_mask()
        said = ended(session.learn("slime", "mini", [*small, "method.max_steps=8"]))
        steps = [each.done for each in said]
        assert steps == sorted(steps) and said[-1].done == said[-1].total == 8 and len(said[-1].losses) == 8
        assert said[-1].preview is not None and said[-1].preview.shape == (128, 128)
        assert session.segmenter is not None
        # Looking at it on the way has changed nothing.
        plain = Segmenter.fit(
            session.pixels_of(session.photos["car0.png"]),
            session.photos["car0.png"].label,
            list(session.classes),
            overrides=["method=slime", *small, "method.max_steps=8"],
        )
        assert plain.content_hash() == session.segmenter.content_hash()
        for photo in [*session.photos.values()][3:]:
            session.photos.pop(photo.name)
        found = ended(session.segment())
        assert [each.done for each in found] == [0, 1, 2] and [*session.records] == [
            "car1.png",
            "car2.png",
        ]
        label = session.result("car1.png")
        assert np.array_equal(label, plain.segment(session.pixels_of(session.photos["car1.png"])))
        hidden, seen = (session.overlay("car1.png", names, 1.0) for names in ([], session.classes[1:]))
        assert (hidden == seen) == (not label.any())
        with zipfile.ZipFile(io.BytesIO(archive(session))) as made:
            names = set(made.namelist())
            assert names == {
                "embeddings.safetensors", "classes.yaml", "areas.csv", "painted/car0.png", "labels/car1.png",
                "labels/car2.png", "overlays/car1.jpg", "overlays/car2.jpg",
            }  # fmt: skip
            assert np.array_equal(np.array(Image.open(made.open("labels/car1.png"))), label)
            everything = b"".join(made.read(name) for name in names)
            own = made.read("embeddings.safetensors")
        assert str(session.place).encode() not in everything
        (tmp_path / "car.safetensors").write_bytes(own)
        other = Session()
        other.take_example()
        assert "slime, preset mini" in other.load(tmp_path / "car.safetensors")
        other._segment(other.photos["car1.png"], other.learned())
        assert np.array_equal(other.result("car1.png"), label)
        other.close()

    def test_a_correction_is_a_second_shot(self, session: Session, small: list[str]) -> None:
        session.take_example()
        session.open("car0.png")
        session.take_example_mask()
        method = [each for each in small if not each.startswith("method.")]
        ended(session.learn("feature_knn", "mini", method))
        for photo in [*session.photos.values()][2:]:
            session.photos.pop(photo.name)
        ended(session.segment())
        before = session.result("car1.png")
        session.correct("car1.png")
        session.open("car1.png")
        drawn(session, (slice(0, 63), slice(0, 63), 4))
        corrected = session.photos["car1.png"].label
        assert corrected is not None and (corrected[:10, :10] == 4).all()
        assert np.array_equal(corrected[10:], before[10:])
        assert session.support().names == ("car0.png", "car1.png") and not session.records
        with pytest.raises(ConfigError, match="no other pictures"):
            ended(session.segment())
        session.name_classes("a, b")
        with pytest.raises(ConfigError, match="no longer those of the result"):
            session.correct("car1.png")

    def test_stopping_keeps_what_was_learned_before(self, session: Session, small: list[str]) -> None:
        session.take_example()
        session.open("car0.png")
        session.take_example_mask()
        with pytest.raises(Stopped):
            for at in session.learn("slime", "mini", [*small, "method.max_steps=4000"]):
                if at.done:
                    session.stop.set()
        assert session.segmenter is None
        with pytest.raises(SlimeBenchError):
            ended(session.learn("slime", "mini", ["method.max_stebs=3"]))
        threads = torch.get_num_threads()
        assert threads == 1

    def test_a_file_that_holds_no_embeddings(self, session: Session, tmp_path: Path) -> None:
        (tmp_path / "x.safetensors").write_bytes(b"nothing")
        with pytest.raises(ResultError, match="not a readable state"):
            session.load(tmp_path / "x.safetensors")


class TestWords:
    def test_errors_are_those_of_the_command_line_without_folders(self) -> None:
        error = DataError(
            "cannot read <b>", path=f"{ROOT}home/me/photos of me/car.png",
            found=f"a & b in '{ROOT}tmp/x/y.png'",
            expected="images/ and labels/", remedy="see https://example.org/a/b",
        )  # fmt: skip
        text = html.failed(error)
        assert "&lt;b&gt;" in text and "a &amp; b" in text and 'role="alert"' in text
        assert "car.png" in text and "y.png" in text and "images/ and labels/" in text
        assert not re.search("/home|/tmp|photos of", text) and "https://example.org/a/b" in text
        assert [name for name in ("where", "found", "expected", "what to do") if f"<dt>{name}</dt>" in text]

    def test_what_nobody_has_foreseen_is_one_sentence(self) -> None:
        text = html.failed(KeyError(f"{ROOT}home/me/secret"))
        assert "KeyError" in text and "secret" not in text and "terminal" in text

    def test_bars_tables_and_curves(self) -> None:
        bar = html.progress(Progress("learning", 3, 10, 6.0, 14.0), "step")
        assert 'max="10" value="3"' in bar and "step 3 of 10, 6.0 s so far, about 14 s left" in bar
        assert "<progress aria-label" in html.progress(Progress("loading"), "step")
        assert html.curve([(1, 2.0)]) == "" and "2.000 at step 1, 1.000 at step 2" in html.curve([(1, 2.0), (2, 1.0)])
        table = html.areas(
            [Record("<x>.png", 0, 0, [10, 10], [50, 50], [None, 0.1])], ["background", "a<b"], class_colours(2)
        )
        assert "&lt;x&gt;.png" in table and "a&lt;b" in table and "50.0 % ?" in table
        assert "nothing here convinces" in table
        assert [duration(each) for each in (0.01, 3.14, 42.4, 250)] == ["0.1 s", "3.1 s", "42 s", "4 min"]


def test_the_example_has_its_pictures() -> None:
    session = Session()
    session.take_example()
    assert len(session.photos) == EXAMPLES and session.classes[1:] == ("body", "light", "plate", "wheel", "window")
    session.close()
