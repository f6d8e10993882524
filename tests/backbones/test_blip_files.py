"""Folders of BLIP: what is read from them, and what is said when something in them is not right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slime_bench.backbones.blip import BlipBackbone
from slime_bench.errors import BackboneError
from tests.fixtures.blip_toys import LIMIT, PROMPTS, save_blip, vocabulary


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip(tmp_path_factory.mktemp("blip") / "model")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


def config(folder: Path | str, **settings: Any) -> BlipBackbone.Config:
    return BlipBackbone.Config(**{"weights": str(folder), "image_size": 32, **settings})


def failure(call: Callable[[], Any]) -> BackboneError:
    with pytest.raises(BackboneError) as caught:
        call()
    assert caught.value.remedy and caught.value.path
    return caught.value


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def with_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    tensors = {**load_file(path), **{name.replace("__", "."): each for name, each in changes.items()}}
    save_file({name: each for name, each in tensors.items() if each is not None}, path)


class TestDescription:
    def test_facts_without_weights_being_read(self, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"torn")
        facts = BlipBackbone.describe(config(folder))
        assert facts.layers == ("layer.0", "layer.1", "layer.2") and facts.patch == 8
        assert facts.num_tokens == LIMIT and facts.image_size is None

    @pytest.mark.parametrize(("stated", "limit"), [(10, 10), (1e30, LIMIT), (None, LIMIT)])
    def test_the_shorter_limit_counts(self, folder: Path, stated: Any, limit: int) -> None:
        change(folder / "tokenizer_config.json", model_max_length=stated)
        assert BlipBackbone.describe(config(folder)).num_tokens == limit

    @pytest.mark.parametrize("size", [36, 4])
    def test_an_image_size_that_patches_do_not_divide(self, folder: Path, size: int) -> None:
        for call in (BlipBackbone.describe, BlipBackbone):
            assert "patch" in failure(lambda call=call: call(config(folder, image_size=size))).summary

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            ("{", "JSONDecodeError"),
            ("[1]", "no mapping"),
            ('{"model_type": "clip"}', "'clip'"),
            ('{"model_type": "blip", "text_config": {"hidden_size": "wide"}}', "hidden_size"),
        ],
    )
    def test_a_config_of_another_kind(self, folder: Path, content: str, found: str) -> None:
        (folder / "config.json").write_text(content)
        for call in (BlipBackbone.describe, BlipBackbone):
            assert found in str(failure(lambda call=call: call(config(folder))).found)


class TestFingerprint:
    def test_of_what_is_loaded_and_nothing_else(self, folder: Path, tmp_path: Path) -> None:
        first = BlipBackbone.content_hash_of(config(folder))
        (folder / "README.md").write_text("words")
        (folder / "sha256.json").write_text("{}")
        assert BlipBackbone.content_hash_of(config(shutil.copytree(folder, tmp_path / "elsewhere"))) == first
        seen = {first}
        for name in ("model.safetensors", "config.json", "vocab.txt", "tokenizer_config.json"):
            path = folder / name
            path.write_bytes(path.read_bytes() + b" ")
            seen.add(BlipBackbone.content_hash_of(config(folder)))
        assert len(seen) == 5

    def test_pixel_statistics_count(self, folder: Path) -> None:
        first = BlipBackbone.content_hash_of(config(folder))
        (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 2, 4]}')
        assert BlipBackbone.content_hash_of(config(folder)) != first
        own = BlipBackbone(config(folder, statistics="own"))
        assert own.mean.flatten().tolist() == [0.5] * 3 and own.std.flatten().tolist() == [1, 2, 4]
        for content in ('{"image_mean": [0.5]}', '{"image_std": [1, 0, 1]}', '{"image_std": "wide"}'):
            (folder / "preprocessor_config.json").write_text(content)
            failure(lambda: BlipBackbone(config(folder, statistics="own")))


class TestWeights:
    def test_what_older_libraries_stored_is_left_out(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with_tensors(folder, text_encoder__embeddings__position_ids=torch.arange(LIMIT)[None])
        blip = BlipBackbone(config(folder))
        assert blip.tokenize(PROMPTS).ids.shape == (3, 7)
        assert blip.text_encoder.embeddings.position_ids.tolist() == [list(range(LIMIT))]
        assert capsys.readouterr() == ("", "")

    def test_spread_over_several_files(self, folder: Path, sound: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        names = sorted(tensors)
        halves = {f"model-{n}-of-2.safetensors": names[n - 1 :: 2] for n in (1, 2)}
        for file, part in halves.items():
            save_file({name: tensors[name] for name in part}, folder / file)
        (folder / "model.safetensors").unlink()
        index = {name: file for file, part in halves.items() for name in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        whole, spread = BlipBackbone(config(sound)), BlipBackbone(config(folder))
        assert all(torch.equal(each, spread.state_dict()[name]) for name, each in whole.state_dict().items())
        first = BlipBackbone.content_hash_of(config(folder))
        tensors[names[1]] += 1
        save_file({name: tensors[name] for name in names[1::2]}, folder / "model-2-of-2.safetensors")
        assert BlipBackbone.content_hash_of(config(folder)) != first
        (folder / "model-2-of-2.safetensors").unlink()
        assert "model-2-of-2" in str(failure(lambda: BlipBackbone.describe(config(folder))).found)
        (folder / "model.safetensors.index.json").write_text("{}")
        assert "weight_map" in str(failure(lambda: BlipBackbone(config(folder))).found)

    def test_missing_and_foreign_tensors(self, folder: Path) -> None:
        with_tensors(folder, itm_head__bias=None, vision_model__queue=torch.zeros(3))
        error = failure(lambda: BlipBackbone(config(folder)))
        assert "1 tensors" in str(error.found) and "itm_head.bias" in str(error.found)
        with_tensors(folder, itm_head__bias=torch.zeros(3))
        assert "itm_head.bias" in str(failure(lambda: BlipBackbone(config(folder))).found)

    @pytest.mark.parametrize("keep", [0, 300, -1])
    def test_torn(self, folder: Path, keep: int) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:keep])
        assert failure(lambda: BlipBackbone(config(folder))).path == folder


def test_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    error = failure(lambda: BlipBackbone(config(folder)))
    assert "pickled" in error.summary and "pytorch_model.bin" in str(error.found)
    assert "convert_albef" in str(error.remedy)


class TestWrongPlaces:
    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt"])
    def test_a_file_is_missing(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        for call in (BlipBackbone, BlipBackbone.describe, BlipBackbone.content_hash_of):
            error = failure(lambda call=call: call(config(folder)))
            assert name in f"{error.found} {error.expected}"


class TestVocabulary:
    def test_more_words_than_the_model_has(self, folder: Path) -> None:
        (folder / "vocab.txt").write_text("\n".join([*vocabulary(), "more"]) + "\n")
        error = failure(lambda: BlipBackbone(config(folder)))
        assert error.path == folder and str(len(vocabulary())) in str(error.found)

    def test_the_librarys_own_way_of_writing_it(self, folder: Path) -> None:
        before = BlipBackbone(config(folder))
        (folder / "vocab.txt").unlink()
        before.tokenizer.save_pretrained(folder)
        after = BlipBackbone(config(folder))
        assert torch.equal(before.tokenize(PROMPTS).ids, after.tokenize(PROMPTS).ids)
