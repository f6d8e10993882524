"""Folders of BLIP: what is read from them, and what is said when something in them is not right."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slime_bench.backbones.blip import BlipBackbone
from slime_bench.backbones.weights import ASSETS
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

    def test_keys_left_out_are_the_librarys_defaults(self, folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        del content["vision_config"]["patch_size"]
        (folder / "config.json").write_text(json.dumps(content))
        assert BlipBackbone.describe(config(folder)).patch == 16

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

    def test_heads_that_do_not_divide_the_width(self, folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        content["text_config"]["num_attention_heads"] = 5
        (folder / "config.json").write_text(json.dumps(content))
        assert "architecture" in failure(lambda: BlipBackbone(config(folder))).summary


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
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
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
        assert "1 tensors" in str(error.found) and "itm_head.bias is missing" in str(error.found)
        with_tensors(folder, itm_head__bias=torch.zeros(3))
        assert "[3], not [2]" in str(failure(lambda: BlipBackbone(config(folder))).found)

    def test_of_another_architecture(self, folder: Path, tmp_path: Path) -> None:
        deeper = save_blip(tmp_path / "deeper", num_hidden_layers=4)
        shutil.copy(deeper / "config.json", folder / "config.json")
        assert "layer.3" in str(failure(lambda: BlipBackbone(config(folder))).found)

    @pytest.mark.parametrize("keep", [0, 5, 300, -1])
    def test_torn(self, folder: Path, keep: int) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:keep])
        assert failure(lambda: BlipBackbone(config(folder))).path == path

    def test_not_finite_or_too_large_for_the_precision(self, folder: Path) -> None:
        with_tensors(folder, itm_head__weight=torch.full((2, 32), 1e6))
        BlipBackbone(config(folder))
        error = failure(lambda: BlipBackbone(config(folder, dtype="fp16")))
        assert "itm_head.weight" in str(error.found) and "precision=fp32" in str(error.remedy)
        with_tensors(folder, itm_head__weight=torch.full((2, 32), float("nan")))
        assert "restore" in str(failure(lambda: BlipBackbone(config(folder))).remedy)

    def test_hashes_beside_them(self, folder: Path) -> None:
        hashes = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in folder.iterdir()}
        (folder / "sha256.json").write_text(json.dumps(hashes))
        BlipBackbone(config(folder))
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        assert "corrupt" in failure(lambda: BlipBackbone(config(folder))).summary


class TestPickles:
    def test_refused_with_a_command_that_converts_them(self, folder: Path, sound: Path) -> None:
        path = folder / "model.safetensors"
        torch.save(load_file(path), folder / "pytorch_model.bin")
        path.unlink()
        error = failure(lambda: BlipBackbone(config(folder)))
        assert "pickled" in error.summary and "pytorch_model.bin" in str(error.found)
        command = re.search(r'python -c "(.*)"', str(error.remedy))
        assert command and "weights_only=True" in command[1]
        exec(command[1], {})
        assert BlipBackbone(config(folder)).state_dict().keys() == BlipBackbone(config(sound)).state_dict().keys()

    def test_named_itself(self, tmp_path: Path) -> None:
        (tmp_path / "refcoco.pth").touch()
        error = failure(lambda: BlipBackbone(config(tmp_path / "refcoco.pth")))
        assert "pickled" in error.summary and "convert_albef" in str(error.remedy)


class TestWrongPlaces:
    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt"])
    def test_a_file_is_missing(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        for call in (BlipBackbone, BlipBackbone.describe, BlipBackbone.content_hash_of):
            error = failure(lambda call=call: call(config(folder)))
            assert name in f"{error.found} {error.expected}"

    def test_a_folder_of_another_kind(self) -> None:
        assert "config.json" in str(failure(lambda: BlipBackbone(config(ASSETS / "mini_sd"))).found)

    @pytest.mark.parametrize("name", ["", "nothing", "./owner/name", "models/blip.safetensors", "a/b/c"])
    def test_nothing_there(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert failure(lambda: BlipBackbone(config(name))).summary == "no such backbone"

    def test_a_file_instead_of_a_folder(self, folder: Path) -> None:
        assert "folder" in str(failure(lambda: BlipBackbone(config(folder / "model.safetensors"))).expected)

    def test_a_hub_that_does_not_answer(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        from huggingface_hub import HfApi, constants

        def silent(*_: Any, **__: Any) -> None:
            raise OSError("no network")

        monkeypatch.setattr(HfApi, "model_info", silent)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        error = failure(lambda: BlipBackbone.describe(config("some/blip", revision="0" * 40)))
        assert "no network" in str(error.found) and f"hf download some/blip --revision {'0' * 40}" in str(error.remedy)

    def test_the_hubs_cache_needs_no_network(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import huggingface_hub
        from huggingface_hub import HfApi

        def asked(*_: Any, **__: Any) -> None:
            raise AssertionError("the hub was asked")

        monkeypatch.setattr(HfApi, "model_info", asked)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(folder / "config.json"))
        assert BlipBackbone.describe(config("some/blip")).patch == 8

    def test_a_download_without_safetensors(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub
        from huggingface_hub import HfApi

        (folder / "model.safetensors").unlink()
        monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: None)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
        error = failure(lambda: BlipBackbone(config("some/blip")))
        assert "no model.safetensors" in str(error.found) and "backbone.revision" in str(error.remedy)


class TestVocabulary:
    def test_more_words_than_the_model_has(self, folder: Path) -> None:
        (folder / "vocab.txt").write_text("\n".join([*vocabulary(), "more"]) + "\n")
        error = failure(lambda: BlipBackbone(config(folder)))
        assert error.path == folder / "vocab.txt" and str(len(vocabulary())) in str(error.found)

    def test_fewer_will_do(self, folder: Path) -> None:
        (folder / "vocab.txt").write_text("\n".join(vocabulary()[:-1]) + "\n")
        assert BlipBackbone(config(folder)).tokenize(["sky"]).ids.shape == (1, 3)

    def test_a_vocabulary_of_another_kind(self, folder: Path) -> None:
        (folder / "vocab.txt").unlink()
        shutil.copy(ASSETS / "mini_sd" / "tokenizer" / "tokenizer.json", folder / "tokenizer.json")
        failure(lambda: BlipBackbone(config(folder)))

    def test_the_librarys_own_way_of_writing_it(self, folder: Path) -> None:
        before = BlipBackbone(config(folder))
        (folder / "vocab.txt").unlink()
        before.tokenizer.save_pretrained(folder)
        after = BlipBackbone(config(folder))
        assert torch.equal(before.tokenize(PROMPTS).ids, after.tokenize(PROMPTS).ids)
