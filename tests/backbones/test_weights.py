"""Where weights are found: files of several kinds, the hub's cache before the network; remembered hashes."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slime_bench.backbones import hashes
from slime_bench.backbones.hashes import cache_file, sha256
from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone
from slime_bench.backbones.weights import DIFFUSION, NETWORKS, find, part_weights
from slime_bench.errors import BackboneError

NAME, COMMIT = "somebody/model", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tiny_sd: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copytree(tiny_sd, tmp_path / "model"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A machine without a network; what was asked for."""
    asked: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        asked.append(arguments[:2])
        raise OSError("no route to the hub")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def snapshot(tiny_sd: Path, hub_cache: Path) -> Path:
    """The tiny model in a cache of the hub's layout, its main branch at `COMMIT`."""
    place = hub_cache / "models--somebody--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(COMMIT)
    return Path(shutil.copytree(tiny_sd, place / "snapshots" / COMMIT))


def halve(folder: Path, keep_full: bool = False) -> None:
    """Half-precision copies, as the hub names them; the full-precision files go unless they are to stay."""
    for part in NETWORKS:
        for path in part_weights(folder, part)[0]:
            half = {name: value.half() for name, value in load_file(path).items()}
            save_file(half, path.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
            if not keep_full:
                path.unlink()


class TestHub:
    @pytest.mark.parametrize("revision", [None, COMMIT])
    def test_what_is_cached_is_used_without_a_network(
        self, snapshot: Path, no_network: list[Any], revision: str | None
    ) -> None:
        config = StableDiffusionBackbone.Config(weights=NAME, revision=revision)
        assert find(NAME, revision, DIFFUSION) == snapshot
        assert StableDiffusionBackbone.content_hash_of(config) == DIFFUSION.fingerprint(snapshot)
        assert StableDiffusionBackbone(config).num_tokens == 77
        assert no_network == []

    @pytest.mark.parametrize("gone", ["unet/diffusion_pytorch_model.safetensors", "vae/config.json", "scheduler"])
    def test_half_a_download_is_not_enough(self, snapshot: Path, no_network: list[Any], gone: str) -> None:
        path = snapshot / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(BackboneError, match=Path(gone).parts[0]) as caught:
            find(NAME, COMMIT, DIFFUSION)
        assert DIFFUSION.command(NAME, COMMIT) in str(caught.value.remedy) and no_network

    def test_without_a_network(self, hub_cache: Path, no_network: list[Any]) -> None:
        with pytest.raises(BackboneError) as caught:
            find(NAME, COMMIT, DIFFUSION)
        error = caught.value
        assert error.path == NAME and "no route to the hub" in str(error.found)
        assert DIFFUSION.command(NAME, COMMIT) in str(error.remedy) and "backbone.weights=<folder>" in str(error.remedy)
        assert "backbone.revision" in str(error.remedy)
        assert error.__cause__ is not None

    def test_half_precision_is_asked_for_when_there_is_nothing_else(
        self, hub_cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        halve(folder)
        unwanted: list[list[str]] = []
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)

        def answer(*_: Any, ignore_patterns: list[str], **__: Any) -> str:
            unwanted.append(ignore_patterns)
            bare = folder.parent / "bare"
            if "*.fp16.*" not in ignore_patterns:
                return str(folder)
            return str(shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*.safetensors")))

        monkeypatch.setattr("huggingface_hub.snapshot_download", answer)
        assert find(NAME, None, DIFFUSION) == folder and len(unwanted) == 2

    def test_patterns_are_the_files_that_are_loaded(self, folder: Path) -> None:
        """The command and the client filter alike; a repository holds more than the five parts."""
        from huggingface_hub.utils import filter_repo_objects

        halve(folder, keep_full=True)
        for extra in ("safety_checker/model.safetensors", "v1-5.safetensors", "unet/diffusion.non_ema.safetensors"):
            (folder / extra).parent.mkdir(exist_ok=True)
            (folder / extra).write_bytes(b"")
        words = shlex.split(DIFFUSION.command(NAME, COMMIT))
        options = {
            kind: [value for key, value in itertools.pairwise(words) if key == f"--{kind}"]
            for kind in ("include", "exclude", "revision")
        }
        present = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        wanted = set(
            filter_repo_objects(present, allow_patterns=options["include"], ignore_patterns=options["exclude"])
        )
        loaded = set(DIFFUSION.files(folder))
        assert wanted == loaded | {"model_index.json"}
        assert words[:3] == ["hf", "download", NAME] and options["revision"] == [COMMIT]

    def test_the_command_is_one_that_the_client_understands(self, tmp_path: Path) -> None:
        """It parses: what it then lacks here is the hub, not an option."""
        words = shlex.split(DIFFUSION.command(NAME, COMMIT))
        program = Path(sys.executable).parent / words[0]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "NO_COLOR": "1"}
        done = subprocess.run([str(program), *words[1:]], env=environment, capture_output=True, text=True)
        assert done.returncode == 1  # 2: a command line that is not understood
        assert "offline" in (done.stdout + done.stderr).lower() or "cached snapshot" in done.stdout + done.stderr


class TestFiles:
    @pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".bin"])
    def test_pickles_are_refused(self, tmp_path: Path, suffix: str) -> None:
        with pytest.raises(BackboneError, match="pickle") as caught:
            find(str(tmp_path / f"model{suffix}"), None, DIFFUSION)
        assert "safetensors" in str(caught.value.remedy)

    @pytest.mark.parametrize("name", ["", "models/v2-1.safetensors", "notes.txt", "./a/b", "a/b/c"])
    def test_no_such_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[Any], name: str
    ) -> None:
        """A path is never taken for the name of a model on the hub."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "notes.txt").write_text("")
        with pytest.raises(BackboneError) as caught:
            find(name, None, DIFFUSION)
        assert caught.value.summary == "no such backbone" and no_network == []

    def test_pickled_weights_in_a_folder_are_named(self, folder: Path) -> None:
        path = folder / "unet/diffusion_pytorch_model.safetensors"
        path.rename(path.with_suffix(".bin"))
        with pytest.raises(BackboneError) as caught:
            StableDiffusionBackbone.content_hash_of(StableDiffusionBackbone.Config(weights=str(folder)))
        assert "diffusion_pytorch_model.bin" in str(caught.value.found)


SDXL_KEY = "conditioner.embedders.1.model.ln_final.weight"


class TestOtherModels:
    """What is no Stable Diffusion 1.x or 2.x is named in a sentence, before anything is loaded."""

    @pytest.mark.parametrize(
        ("pipeline", "parts", "unet", "said"),
        [
            ("StableDiffusionXLPipeline", ["text_encoder_2"], {}, "Stable Diffusion XL (StableDiffusionXLPipeline)"),
            ("StableDiffusion3Pipeline", ["transformer"], None, "Stable Diffusion 3 (StableDiffusion3Pipeline)"),
            ("FluxPipeline", ["transformer"], None, "Flux (FluxPipeline)"),
            ("PixArtAlphaPipeline", ["transformer"], None, "PixArt (PixArtAlphaPipeline)"),
            ("WuerstchenDecoderPipeline", ["decoder"], None, "Würstchen"),
            ("KandinskyV22Pipeline", ["movq"], {}, "Kandinsky (KandinskyV22Pipeline)"),
            ("CogVideoXPipeline", ["transformer"], None, "a diffusion transformer"),
            (None, ["transformer"], None, "a diffusion transformer"),
            (None, ["text_encoder_2"], {}, "two text encoders"),
            (None, [], {"addition_embed_type": "text_time"}, "Stable Diffusion XL"),
            (None, [], {"cross_attention_dim": 2048}, "Stable Diffusion XL"),
        ],
    )
    def test_a_folder(
        self, folder: Path, pipeline: str | None, parts: list[str], unet: dict[str, Any] | None, said: str
    ) -> None:
        (folder / "model_index.json").unlink()
        if pipeline is not None:
            (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
        for part in parts:
            (folder / part).mkdir()
        if unet is None:
            shutil.rmtree(folder / "unet")
        else:
            file = folder / "unet" / "config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | unet))
        with pytest.raises(BackboneError, match=r"no Stable Diffusion 1\.x or 2\.x") as caught:
            find(str(folder), None, DIFFUSION)
        assert said in str(caught.value.found) and caught.value.path == folder

    @pytest.mark.parametrize(
        ("key", "width", "said"),
        [
            (SDXL_KEY, 4, "Stable Diffusion XL"),
            ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", 4, "Stable Diffusion 3"),
            ("double_blocks.0.img_attn.qkv.weight", 4, "Flux"),
            ("clip_txt_pooled_mapper.weight", 4, "Stable Cascade"),
            ("model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", 2048, "Diffusion XL"),
            ("lora_unet_down_blocks_0.lora_up.weight", 4, "a LoRA"),
        ],
    )
    def test_a_single_file(self, tmp_path: Path, key: str, width: int, said: str) -> None:
        file = tmp_path / "model.safetensors"
        save_file({key: torch.zeros(2, width), "first_stage_model.x": torch.zeros(1)}, file)
        with pytest.raises(BackboneError, match=r"no Stable Diffusion 1\.x or 2\.x") as caught:
            find(str(file), None, DIFFUSION)
        assert said in str(caught.value.found)

    def test_a_model_of_the_hub(self, snapshot: Path, no_network: list[Any]) -> None:
        index = snapshot / "model_index.json"
        index.unlink()
        index.write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
        with pytest.raises(BackboneError, match=r"no Stable Diffusion 1\.x or 2\.x"):
            find(NAME, None, DIFFUSION)
        assert no_network == []


class TestHalfPrecisionFiles:
    def test_they_are_loaded_when_there_is_nothing_else(self, folder: Path) -> None:
        full = StableDiffusionBackbone(StableDiffusionBackbone.Config(weights=str(folder)))
        before = DIFFUSION.fingerprint(folder)
        halve(folder)
        assert part_weights(folder, "unet")[1] == "fp16" and DIFFUSION.fingerprint(folder) != before
        half = StableDiffusionBackbone(StableDiffusionBackbone.Config(weights=str(folder)))
        for one, other in zip(half.parameters(), full.parameters(), strict=True):
            assert one.dtype == torch.float32 and torch.equal(one, other.half().float())

    def test_full_precision_goes_first(self, folder: Path) -> None:
        before = DIFFUSION.fingerprint(folder)
        halve(folder, keep_full=True)
        assert part_weights(folder, "unet")[1] is None and DIFFUSION.fingerprint(folder) == before
        for part in NETWORKS:
            (folder / part / "other.non_ema.safetensors").write_bytes(b"")
        assert DIFFUSION.fingerprint(folder) == before


class TestRememberedHashes:
    @pytest.fixture(autouse=True)
    def fresh(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(hashes, "REMEMBERED", 10)
        hashes._remembered.cache_clear()
        yield

    @pytest.fixture
    def reads(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """Files that were read to be hashed."""
        seen: list[Path] = []
        compute = hashes._computed
        monkeypatch.setattr(hashes, "_computed", lambda path: (seen.append(path), compute(path))[1])
        return seen

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "weights"
        path.write_bytes(b"0123456789")
        return path

    KNOWN = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"  # printf 0123456789 | sha256sum

    def test_through_a_link(self, file: Path, reads: list[Path]) -> None:
        """The hub's snapshots are links to its blobs."""
        sha256(file)
        link = file.with_name("link")
        link.symlink_to(file)
        assert sha256(link) == self.KNOWN and len(reads) == 1

    def test_small_files_are_read_each_time(self, tmp_path: Path, reads: list[Path]) -> None:
        """A change that keeps size and time is found in them: the bundled backbones are such files."""
        path = tmp_path / "small"
        path.write_bytes(b"a")
        before, status = sha256(path), path.stat()
        path.write_bytes(b"b")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert sha256(path) != before and len(reads) == 2 and not cache_file().exists()

    @pytest.mark.parametrize("restarted", [False, True])
    def test_a_changed_file_is_read_again(self, file: Path, reads: list[Path], restarted: bool) -> None:
        before = sha256(file)
        if restarted:
            hashes._remembered.cache_clear()
        file.write_bytes(b"0123456780")
        os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 1))
        assert sha256(file) != before and len(reads) == 2
        assert len(json.loads(cache_file().read_text())) == 1

    @pytest.mark.parametrize("text", ["", "{", "\x00\xff"])
    def test_a_spoiled_cache_is_as_good_as_none(self, file: Path, reads: list[Path], text: str) -> None:
        cache_file().parent.mkdir(parents=True)
        cache_file().write_bytes(text.encode("latin-1"))
        assert sha256(file) == self.KNOWN
        hashes._remembered.cache_clear()
        assert sha256(file) == self.KNOWN and len(reads) == 1

    def test_a_cache_file_that_cannot_be_replaced(self, file: Path) -> None:
        cache_file().mkdir(parents=True)
        assert sha256(file) == self.KNOWN
        assert list(cache_file().parent.iterdir()) == [cache_file()]
