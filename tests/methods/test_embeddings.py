"""Embeddings in the authors' form: read safely, written whole, exchanged without a changed bit."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from slime_bench.errors import BackboneError, ConfigError, ResultError, SlimeBenchError, StorageError
from slime_bench.methods.slime.embeddings import read_authors_folder, read_embeddings, write_authors_folder
from slime_bench.results.state import read_state, write_state
from slime_bench.segment import command, embeddings_command

WIDTH = 32


def numbers(rows: int = 3, width: int = WIDTH, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def save_as_authors(folder: Path, embeddings: torch.Tensor) -> Path:
    """What the authors' training writes: leaf tensors [1,1,D] that require a gradient."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, row in enumerate(embeddings):
        torch.save(row[None, None].clone().requires_grad_(True), folder / f"embedding_{index}.pth")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


# --- reading


@pytest.mark.parametrize("rows", [1, 3, 12])
def test_the_authors_files_in_natural_order(tmp_path: Path, rows: int) -> None:
    expected = numbers(rows)  # with twelve rows, embedding_10 must not come after embedding_1
    found = read_authors_folder(save_as_authors(tmp_path, expected))
    assert torch.equal(found, expected)
    assert found.dtype == torch.float32 and not found.requires_grad and found.shape == (rows, WIDTH)
    assert torch.equal(read_embeddings(tmp_path), expected)


@pytest.mark.parametrize("form", ["parameter", "old format", "view of the prompt", "half", "bfloat16", "double"])
def test_other_forms_of_the_same_tensor(tmp_path: Path, form: str) -> None:
    row = numbers(1)
    value, arguments = row[None].clone(), {}
    if form == "parameter":
        value = torch.nn.Parameter(value)
    elif form == "old format":
        arguments = {"_use_new_zipfile_serialization": False}
    elif form == "view of the prompt":
        value = torch.cat([torch.ones(1, 1, WIDTH), value, torch.ones(1, 75, WIDTH)], 1)[:, 1:2]
    else:
        dtype = {"half": torch.half, "bfloat16": torch.bfloat16, "double": torch.double}[form]
        value, row = value.to(dtype), row.to(dtype).float()
    torch.save(value, tmp_path / "embedding_0.pth", **arguments)
    found = read_authors_folder(tmp_path)
    assert torch.equal(found, row) and type(found) is torch.Tensor and found.dtype == torch.float32


def test_other_files_beside_them_do_not_matter(tmp_path: Path) -> None:
    save_as_authors(tmp_path, numbers())
    for name in ("README.md", "hparams.yaml", "._embedding_0.pth", "embedding_0.pt"):
        (tmp_path / name).write_text("not a tensor")
    assert torch.equal(read_authors_folder(tmp_path), numbers())


Damage = Callable[[Path], object]
BROKEN: dict[str, tuple[Damage, str]] = {
    # what is wrong -> how it comes about, the file at fault
    "no folder": (shutil.rmtree, ""),
    "no files": (lambda f: [each.unlink() for each in f.iterdir()], ""),
    "a gap": (lambda f: (f / "embedding_1.pth").unlink(), ""),
    "another .pth": (lambda f: (f / "model.pth").write_bytes(b""), ""),
    "a padded number": (lambda f: (f / "embedding_2.pth").rename(f / "embedding_02.pth"), ""),
    "text": (lambda f: (f / "embedding_1.pth").write_text("hello"), "embedding_1.pth"),
}
WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a dictionary": (lambda: {"embedding": numbers()[:1][None]}, "no embedding"),
    "a row": (lambda: numbers()[0], "no embedding"),
    "two tokens": (lambda: numbers(2)[None], "no embedding"),
    "nothing": (lambda: torch.zeros(1, 1, 0), "no embedding"),
    "whole numbers": (lambda: torch.zeros(1, 1, WIDTH, dtype=torch.int64), "no embedding"),
    "a sparse tensor": (lambda: numbers(1)[None].to_sparse(), "no embedding"),
    "one number that fills the memory": (lambda: torch.zeros(1).expand(1, 1, 10**12), "no embedding"),
    "another width": (lambda: torch.zeros(1, 1, WIDTH + 1), "different widths"),
    "NaN": (lambda: torch.full((1, 1, WIDTH), torch.nan), "not finite"),
    "more than float32 holds": (lambda: torch.full((1, 1, WIDTH), 1e300, dtype=torch.double), "not finite"),
}


def assert_typed(error: SlimeBenchError, path: Path, words: str) -> None:
    assert error.path == path and words in error.summary, error
    assert error.found and error.expected and error.remedy
    assert "weights_only=False" not in str(error) and "add_safe_globals" not in str(error)  # torch's own advice


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_folders(tmp_path: Path, kind: str) -> None:
    folder = save_as_authors(tmp_path / "car", numbers())
    damage, name = BROKEN[kind]
    damage(folder)
    with pytest.raises(ResultError) as caught:
        read_authors_folder(folder)
    assert_typed(caught.value, folder / name, "")


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_tensors(tmp_path: Path, kind: str) -> None:
    folder = save_as_authors(tmp_path, numbers())
    make, words = WRONG[kind]
    torch.save(make(), folder / "embedding_1.pth")
    with pytest.raises(ResultError) as caught:
        read_authors_folder(folder)
    assert_typed(caught.value, folder / "embedding_1.pth", words)


@pytest.mark.parametrize("old_format", [False, True])
def test_files_that_are_cut_short(tmp_path: Path, old_format: bool) -> None:
    folder = save_as_authors(tmp_path, numbers())
    path = folder / "embedding_2.pth"
    torch.save(numbers(1)[None], path, _use_new_zipfile_serialization=not old_format)
    content = path.read_bytes()
    for length in (*range(0, len(content), 197), len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ResultError) as caught:
            read_authors_folder(folder)
        assert caught.value.path == path and caught.value.found and caught.value.remedy


class Payload:
    """When unpickled as an ordinary pickle, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["zip", "zip in a list", "old format", "bare pickle"])
def test_code_in_a_file_is_never_run(tmp_path: Path, form: str) -> None:
    marker, folder = tmp_path / "marker", save_as_authors(tmp_path / "car", numbers())
    path, payload = folder / "embedding_1.pth", Payload(marker)
    if form.startswith("bare"):
        path.write_bytes(pickle.dumps(payload))
    else:
        content = [numbers(1)[None], payload] if "list" in form else payload
        torch.save(content, path, _use_new_zipfile_serialization="zip" in form)
    with pytest.raises(ResultError) as caught:
        read_authors_folder(folder)
    assert not marker.exists()
    assert_typed(caught.value, path, "was not opened")
    # The same file does harm where it is trusted, so that the check above is one.
    try:
        torch.load(path, weights_only=False)
    except Exception:  # a bare pickle fails afterwards
        assert form.startswith("bare")
    assert marker.is_dir()


def test_the_environment_cannot_switch_the_protection_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Payload(tmp_path / "marker"), tmp_path / "embedding_0.pth")
    with pytest.raises(ResultError):
        read_authors_folder(tmp_path)
    assert not (tmp_path / "marker").exists()


# --- writing


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 20), st.integers(1, 40), st.integers(0, 1000))
def test_writing_and_reading_changes_no_bit(
    tmp_path_factory: pytest.TempPathFactory, rows: int, width: int, seed: int
) -> None:
    folder, expected = tmp_path_factory.mktemp("out") / "car", numbers(rows, width, seed) * 1e3
    paths = write_authors_folder(folder, expected)
    assert [path.name for path in paths] == [f"embedding_{index}.pth" for index in range(rows)]
    assert sorted(os.listdir(folder)) == sorted(path.name for path in paths)
    assert torch.equal(read_authors_folder(folder), expected)


def test_the_authors_code_can_load_what_is_written(tmp_path: Path) -> None:
    """Its test run: count the .pth files, load each, and put them between the prompt's first and last tokens."""
    expected = numbers()
    write_authors_folder(tmp_path / "car", expected)
    count = len([name for name in os.listdir(tmp_path / "car") if name.endswith(".pth")]) + 1
    loaded = [torch.load(tmp_path / "car" / f"embedding_{index}.pth") for index in range(count - 1)]
    prompt = torch.zeros(1, 77, WIDTH)
    text = torch.cat([prompt[:, 0:1], *loaded, prompt[:, 1 + len(loaded) :]], dim=1)
    assert text.shape == prompt.shape and torch.equal(text[0, 1:count], expected)
    (one, *_) = write_authors_folder(tmp_path / "large", numbers(60, 512))
    assert one.stat().st_size < 2 * 4 * 512  # its row of 512 numbers, and not the other 59


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    first, folder = numbers(), tmp_path / "car"
    folder.mkdir()
    write_authors_folder(folder, first)  # an empty one is not in use
    before = files(folder)
    with pytest.raises(ResultError, match="in use"):
        write_authors_folder(folder, numbers(2, seed=1))
    assert files(folder) == before
    write_authors_folder(folder, numbers(2, seed=1), force=True)
    assert torch.equal(read_authors_folder(folder), numbers(2, seed=1))  # the third file of before is gone
    (folder / "thesis.tex").write_text("the only copy")
    before = files(folder)
    with pytest.raises(ResultError, match="in use") as caught:
        write_authors_folder(folder, first, force=True)
    assert caught.value.found == "thesis.tex" and "--force" not in str(caught.value.remedy)
    assert files(folder) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="in use"):
        write_authors_folder(tmp_path / "file", first, force=True)
    assert sorted(os.listdir(tmp_path)) == ["car", "file"]


@pytest.mark.parametrize("when", ["writing", "replacing"])
@pytest.mark.parametrize("there", [False, True])
def test_a_failure_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, there: bool
) -> None:
    from slime_bench.methods.slime import embeddings

    folder = tmp_path / "car"
    if there:
        write_authors_folder(folder, numbers(2, seed=1))
    before, real_write, real_rename = files(tmp_path), embeddings.write_atomic, os.rename

    def full_disk(path: Path, content: bytes) -> None:
        if path.name == "embedding_2.pth":
            raise StorageError("The file could not be written.", path=path, found="No space left on device")
        real_write(path, content)

    def stubborn(source: Path, target: Path) -> None:
        if str(source).endswith(".tmp"):
            raise OSError(16, "Device or resource busy")
        real_rename(source, target)

    if when == "writing":
        monkeypatch.setattr(embeddings, "write_atomic", full_disk)
    else:
        monkeypatch.setattr(os, "rename", stubborn)
    with pytest.raises(StorageError) as caught:
        write_authors_folder(folder, numbers(), force=True)
    assert caught.value.path == folder and caught.value.found and caught.value.remedy
    assert files(tmp_path) == before and os.listdir(tmp_path) == (["car"] if there else [])


@pytest.mark.parametrize(
    "value", [torch.zeros(0, 4), torch.zeros(4), torch.zeros(2, 4).long(), torch.full((2, 4), torch.nan)]
)
def test_what_is_no_embedding_is_not_written(tmp_path: Path, value: torch.Tensor) -> None:
    with pytest.raises(ResultError):
        write_authors_folder(tmp_path / "car", value)
    assert os.listdir(tmp_path) == []


# --- states


def save_state(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    from safetensors.torch import save_file

    save_file(tensors, path)
    return path


def test_embeddings_of_a_state(tmp_path: Path) -> None:
    path = save_state(tmp_path / "state.safetensors", {"embeddings": numbers()})
    assert torch.equal(read_embeddings(path), numbers()) and torch.equal(read_embeddings(str(path)), numbers())


@pytest.mark.parametrize("kind", ["absent", "no safetensors", "other tensors", "other shape"])
def test_bad_states(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "state.safetensors"
    if kind == "no safetensors":
        torch.save(numbers(), path)
    elif kind != "absent":
        save_state(path, {"weight": numbers()} if kind == "other tensors" else {"embeddings": numbers()[None]})
    with pytest.raises(ResultError) as caught:
        read_embeddings(path)
    assert caught.value.path == path and caught.value.found and caught.value.expected and caught.value.remedy


# --- the command


class Exchange:
    """The command on the tiny backbone, and a state as a trial on it would write one."""

    def __init__(self, folder: Path, sd: Path) -> None:
        from slime_bench.config.compose import plan

        self.folder, self.state = folder, folder / "state.safetensors"
        self.overrides = [
            "data=pascal_part_car", "data.image_size=64", "backbone=mini_sd", f"backbone.weights={sd}",
            "backbone.image_size=64", "method.train_map_size=16", "method.lr=0.05", "seed=7", "trainer=cpu",
            "protocol.token_gate=0",
        ]  # fmt: skip
        cfg = plan(self.overrides).trials[0]
        parts = {name: cfg.build(name) for name in ("protocol", "backbone")}
        self.method = cfg.build("method", **parts, classes=cfg.data.classes, seed=7)
        with torch.no_grad():
            self.method.embeddings.add_(numbers(5), alpha=0.5)
        write_state(self.state, self.method.learned_state(), cfg.plain, cfg.data.classes)

    def export(self, name: str, *arguments: str) -> Path:
        out = self.folder / name
        embeddings_command.main(["export", "--state", str(self.state), "--out", str(out), *arguments])
        return out

    def load(self, source: Path, name: str, *more: str) -> Path:
        out = self.folder / name
        embeddings_command.main(["import", "--from", str(source), "--out", str(out), *self.overrides, *more])
        return out


@pytest.fixture(scope="module")
def exchange(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    return Exchange(tmp_path_factory.mktemp("exchange"), tiny_sd)


def segment(state: Path, images: Path, out: Path) -> dict[str, bytes]:
    command.main(["--state", str(state), "--images", str(images), "--out", str(out), "--device", "cpu"])
    return files(out)


def test_there_and_back_gives_the_same_label_maps(exchange: Exchange, tmp_path: Path) -> None:
    folder = exchange.export("car")
    back = exchange.load(folder, "back.safetensors")
    assert read_state(back)[1] == read_state(exchange.state)[1]  # classes, method, protocol, backbone, data, seed
    assert torch.equal(read_embeddings(back), exchange.method.embeddings.detach())
    (tmp_path / "images").mkdir()
    for index, size in enumerate([(64, 64), (50, 30)]):
        noise = np.random.default_rng(index).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{index}.png")
    first, second = (segment(path, tmp_path / "images", tmp_path / path.stem) for path in (exchange.state, back))
    assert first == second and {"labels/0.png", "labels/1.png", "overlays/0.jpg", "overlays/1.jpg"} < set(first)
    # Other embeddings give other maps, so that equality says something.
    other = exchange.load(save_as_authors(tmp_path / "other", numbers(5, seed=3)), "other.safetensors")
    assert segment(other, tmp_path / "images", tmp_path / "third") != first


def test_the_command_names_every_class(exchange: Exchange, capsys: pytest.CaptureFixture[str]) -> None:
    folder = exchange.export("named")
    exchange.load(folder, "named.safetensors")
    for text in capsys.readouterr().err.split("named.safetensors"):
        rows = [line.split() for line in text.splitlines() if line.startswith("  ")]
        expected = ["body", "light", "plate", "wheel", "window"]
        assert rows == [[f"embedding_{index}.pth", name] for index, name in enumerate(expected)]


def test_nothing_is_overwritten_unasked(exchange: Exchange) -> None:
    folder = exchange.export("kept")
    state = exchange.load(folder, "kept.safetensors")
    before = files(exchange.folder)
    for repeat in (
        lambda: exchange.export("kept"),
        lambda: exchange.load(folder, state.name),
        lambda: exchange.load(folder, "kept", "--force"),
    ):
        with pytest.raises(ResultError) as caught:
            repeat()
        assert caught.value.path in (folder, state)
        assert files(exchange.folder) == before
    exchange.export("kept", "--force")
    assert files(exchange.folder) == before
    save_as_authors(folder, numbers(5))
    exchange.load(folder, state.name, "--force")
    assert torch.equal(read_embeddings(state), numbers(5))


@pytest.mark.parametrize(
    ("override", "kind", "words"),
    [
        ("data=pascal_part_horse", ConfigError, "another class list"),
        ("backbone.weights=mini_sd", ConfigError, "another backbone"),
        ("backbone.cross_layers=[up_blocks.9.attentions.0]", BackboneError, "layer"),
        ("method.t_test=5000", ConfigError, "timestep"),
        ("method.lrr=1", ConfigError, "lrr"),
        ("seed=1,2", ConfigError, "several values"),
    ],
)
def test_a_configuration_that_does_not_fit(
    exchange: Exchange, tmp_path: Path, override: str, kind: type[SlimeBenchError], words: str
) -> None:
    folder = save_as_authors(tmp_path / "car", numbers(5))
    with pytest.raises(kind) as caught:
        exchange.load(folder, "misfit.safetensors", override)
    assert words in caught.value.summary and caught.value.path and caught.value.remedy
    assert not (exchange.folder / "misfit.safetensors").exists()


def test_the_backbone_need_not_be_there(exchange: Exchange, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_as_authors(tmp_path / "car", numbers(5, width=768))
    state = exchange.load(folder, "elsewhere.safetensors", f"backbone.weights={tmp_path / 'elsewhere'}")
    assert torch.equal(read_embeddings(state), numbers(5, width=768))
    assert "not checked" in capsys.readouterr().err


def test_no_state_to_export(tmp_path: Path) -> None:
    for missing in (tmp_path, tmp_path / "no.safetensors"):
        with pytest.raises(ResultError, match="not a readable state"):
            embeddings_command.export_state(missing, tmp_path / "car")
