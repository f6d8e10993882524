"""ALBEF: the converted checkpoint against an independent ALBEF, and what is said of checkpoints that are none."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from data_prep import convert_albef
from data_prep.convert_albef import architecture, convert
from slime_bench.backbones.blip import AlbefBackbone
from slime_bench.backbones.blip_text import fuse, image_free
from slime_bench.errors import BackboneError, StorageError
from tests.fixtures.blip_toys import PROMPTS, randomise, vocabulary
from tests.fixtures.oracle_albef import HEAD, POSITIONS, Albef, shapes
from tests.fixtures.rounding import TOY, rounding

CLIP = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])[:, None, :, None, None]


def random_state(seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    """A state dict as the pre-training script stores it."""
    made = randomise({name: torch.empty(shape) for name, shape in shapes(len(vocabulary()), **sizes).items()}, seed)
    made["text_encoder.bert.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    made["queue_ptr"] = torch.zeros(1, dtype=torch.int64)
    return made


def stripped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the fine-tuning scripts store it: no `bert.`, no language modelling, an extra queue."""
    kept = {name.replace(".bert.", "."): each for name, each in state.items() if ".cls." not in name}
    return {**kept, "idx_queue": torch.zeros(1, 8)}


def save(path: Path, state: dict[str, Tensor], **extra: Any) -> Path:
    torch.save({"model": state, **extra}, path)
    return path


def vocab(folder: Path) -> Path:
    path = folder / "words.txt"
    path.write_text("\n".join(vocabulary()) + "\n")
    return path


def run(folder: Path, checkpoint: Path, *more: str, vocab_file: Path | None = None) -> Path:
    """The command; returns the folder that it writes."""
    out = folder / "albef"
    words = vocab_file or vocab(folder)
    convert_albef.main(
        ["--checkpoint", str(checkpoint), "--out", str(out), "--vocab", str(words), "--head-width", str(HEAD), *more]
    )
    return out


def load(folder: Path, **settings: Any) -> AlbefBackbone:
    return AlbefBackbone(AlbefBackbone.Config(**{"weights": str(folder), "image_size": 32, **settings}))


def failure(call: Callable[[], Any]) -> BackboneError:
    with pytest.raises(BackboneError) as caught:
        call()
    assert caught.value.remedy and caught.value.path
    return caught.value


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state()


@pytest.fixture(scope="module")
def converted(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("albef")
    rest = {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-5}]}, "lr_scheduler": {"t": 3}, "epoch": 9}
    return run(
        folder, save(folder / "refcoco.pth", state, **rest, config={"image_res": 384, "schedular": {"lr": 1e-5}})
    )


@pytest.fixture(scope="module")
def albef(converted: Path) -> AlbefBackbone:
    return load(converted)


def pictures(count: int = 2, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


LARGEST = 9.0
"""Scores before the softmax reach this; states and matches are smaller."""


@torch.no_grad()
def compare(backbone: AlbefBackbone, oracle: Albef, size: tuple[int, int] = (32, 32)) -> dict[str, float]:
    """Largest differences of everything that a pass gives; two images, padded prompts."""
    images, prompts = pictures(2, size), backbone.tokenize(PROMPTS)
    assert not bool(prompts.mask.all())
    states = backbone.encode_images(images)
    found = backbone.read(states, prompts, lambda scores: scores)
    hidden = fuse(
        backbone.text_encoder,
        image_free(backbone.text_encoder, prompts.ids, prompts.mask, 2),
        prompts.mask,
        states,
        first=2,
    )
    seen = oracle.look((images - CLIP[0]) / CLIP[1])
    errors = {"vision": [], "scores": [], "text": [], "match": []}
    errors["vision"].append(states - seen)
    for index in range(2):
        expected = oracle.fuse(prompts.ids, prompts.mask, seen[index : index + 1])
        assert [f"layer.{layer}" for layer in expected.scores] == list(found.maps) == list(backbone.layers)
        for layer, scores in expected.scores.items():
            assert float(scores.std(-1).mean()) > 0.1, "the layer prefers some keys"
            errors["scores"].append(found.maps[f"layer.{layer}"][index] - scores)
        errors["text"].append(hidden[index] - expected.hidden)
        errors["match"].append(found.match[index] - expected.match)
        assert float(expected.match.std()) > 0.01
    return {name: max(float(each.abs().max()) for each in values) for name, values in errors.items()}


class TestAgainstTheOracle:
    @pytest.mark.parametrize("size", [(32, 32), (48, 24)])
    def test_vision_text_scores_and_match(
        self, albef: AlbefBackbone, state: dict[str, Tensor], size: tuple[int, int]
    ) -> None:
        assert albef.layers == ("layer.2", "layer.3")
        for name, error in compare(albef, Albef(state), size).items():
            assert error < rounding(LARGEST, **TOY), (name, error)

    def test_names_of_the_fine_tuning_scripts(self, state: dict[str, Tensor], converted: Path, tmp_path: Path) -> None:
        out = run(tmp_path, save(tmp_path / "retrieval.pth", stripped(state)))
        one, other = ((folder / "model.safetensors").read_bytes() for folder in (converted, out))
        assert one == other

    def test_tensors_alone_and_half_precision_ones(self, state: dict[str, Tensor], tmp_path: Path) -> None:
        halves = {name: each.half() if each.is_floating_point() else each for name, each in state.items()}
        torch.save(halves, tmp_path / "halves.pth")
        backbone = load(run(tmp_path, tmp_path / "halves.pth"))
        for name, error in compare(backbone, Albef(halves)).items():
            assert error < rounding(LARGEST, **TOY), (name, error)


class TestTheFolder:
    def test_every_tensor_is_accounted_for(self, state: dict[str, Tensor], converted: Path) -> None:
        manifest = json.loads((converted / "conversion.json").read_text())
        assert manifest["checkpoint"] == "refcoco.pth" and len(manifest["checkpoint_sha256"]) == 64
        used, dropped = set(manifest["used"]), set(manifest["dropped"])
        assert used | dropped == set(state) and not used & dropped
        assert not any("_m." in name or "queue" in name or ".cls." in name or "_proj." in name for name in used)
        with safe_open(converted / "model.safetensors", framework="pt") as file:
            names = set(file.keys())
        assert {name.split(" ")[0] for name in manifest["used"].values()} == names
        assert not any("layer.0.crossattention" in name or "token_type" in name for name in names)

    def test_twice_the_same_bytes(self, state: dict[str, Tensor], converted: Path, tmp_path: Path) -> None:
        out = run(tmp_path, save(tmp_path / "refcoco.pth", dict(reversed(state.items()))))
        for name in ("model.safetensors", "config.json", "vocab.txt", "tokenizer_config.json"):
            assert (out / name).read_bytes() == (converted / name).read_bytes(), name

    def test_refused_where_something_lies(self, converted: Path, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="not empty"):
            run(converted.parent, converted.parent / "refcoco.pth")

    def test_spoilt_afterwards(self, converted: Path, tmp_path: Path) -> None:
        import shutil

        folder = Path(shutil.copytree(converted, tmp_path / "albef"))
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-8])
        assert "corrupt" in failure(lambda: load(folder)).summary
        (folder / "sha256.json").unlink()
        assert "cannot be loaded" in failure(lambda: load(folder)).summary
        for first in (None, -1, 4, True):
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "fusion_layer": first}))
            assert "fusion_layer" in str(failure(lambda: load(folder)).found)
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "blip", "fusion_layer": 2}))
        error = failure(lambda: load(folder))
        assert "'blip'" in str(error.found) and error.expected == "albef"

    @pytest.mark.parametrize("weights", ["albef", "refcoco.pth"])
    def test_not_converted_yet(self, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert "data_prep.convert_albef" in str(failure(lambda: load(Path(weights))).remedy)


class TestTheBackbone:
    def test_tuned(self, converted: Path) -> None:
        backbone = load(converted)
        assert not any(each.requires_grad for each in backbone.parameters())
        tuned = backbone.tuned(["layer.3"])
        assert len(tuned) == 11 and all(".layer.3.crossattention." in name for name in list(tuned)[1:])
        for value in tuned.values():
            value.requires_grad_()
        states, prompts = backbone.encode_images(pictures()), backbone.tokenize(PROMPTS)
        found = backbone.read(states, prompts, lambda scores: scores.softmax(-1).square().sum())
        (found.match.sum() + sum(found.maps.values())).backward()
        assert all(value.grad is not None and float(value.grad.abs().sum()) > 0 for value in tuned.values())
        assert sum(value.grad is not None for value in backbone.parameters()) == len(tuned)


class TestTextStatesAreKept:
    @staticmethod
    def calls(backbone: AlbefBackbone) -> list[int]:
        """Counts the runs of the first text-only layer."""
        seen: list[int] = []
        backbone.text_encoder.encoder.layer[0].attention.register_forward_hook(lambda *_: seen.append(1))
        return seen

    @torch.no_grad()
    def test_once_per_list_of_prompts(self, converted: Path) -> None:
        backbone = load(converted)
        seen, states, prompts = self.calls(backbone), backbone.encode_images(pictures(3)), backbone.tokenize(PROMPTS)
        results = [backbone.read(states[index : index + 1], prompts, lambda scores: scores) for index in range(3)]
        assert len(seen) == 1
        for index in range(3):
            plain = load(converted).read(states[index : index + 1], prompts, lambda scores: scores)
            assert torch.equal(results[index].match, plain.match)
        backbone.read(states, backbone.tokenize(PROMPTS[:2]), lambda scores: scores)
        assert len(seen) == 2

    def test_not_beyond_a_change_of_weights(self, converted: Path) -> None:
        backbone = load(converted)
        seen, states, prompts = self.calls(backbone), backbone.encode_images(pictures()), backbone.tokenize(PROMPTS)
        text = backbone.text_encoder

        def agree(runs: int) -> None:
            with torch.no_grad():
                found = backbone.read(states, prompts, lambda scores: scores.sum()).match
                assert len(seen) == runs
                fresh = load(converted)
                fresh.load_state_dict(backbone.state_dict())
                assert torch.equal(found, fresh.read(states, prompts, lambda scores: scores.sum()).match)

        agree(1)
        for runs, weight in enumerate((text.embeddings.word_embeddings, text.encoder.layer[1].output.dense), start=2):
            with torch.no_grad():
                weight.weight.add_(0.1)
            agree(runs)

    def test_gradients_pass_it_by(self, converted: Path) -> None:
        backbone = load(converted)
        states, prompts = backbone.encode_images(pictures(1)), backbone.tokenize(PROMPTS)
        with torch.inference_mode():
            before = backbone.read(states, prompts, lambda scores: scores.sum()).match.clone()
        cross = backbone.text_encoder.encoder.layer[2].crossattention
        cross.requires_grad_()  # no gradient reaches the kept states, but they enter the graph
        found = backbone.read(states, prompts, lambda scores: scores.sum())
        assert torch.equal(found.match.detach(), before)
        found.match.sum().backward()
        assert cross.self.query.weight.grad is not None
        words = backbone.text_encoder.embeddings.word_embeddings
        words.requires_grad_()
        backbone.read(states, prompts, lambda scores: scores.sum()).match.sum().backward()
        assert words.weight.grad is not None and float(words.weight.grad.abs().sum()) > 0


class Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("evil"),))


class TestBadCheckpoints:
    def test_no_code_is_run(self, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        path = save(tmp_path / "evil.pth", state, config=Evil())
        error = failure(lambda: run(tmp_path, path))
        assert "safely" in error.summary and "pathlib" in str(error.found)
        (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Evil()))
        failure(lambda: run(tmp_path, tmp_path / "plain.pkl"))
        assert not (tmp_path / "evil").exists() and not (tmp_path / "albef").exists()

    def test_torn(self, state: dict[str, Tensor], tmp_path: Path, keep: int = 5000) -> None:
        path = save(tmp_path / "torn.pth", state)
        path.write_bytes(path.read_bytes()[:keep])
        assert failure(lambda: run(tmp_path, path)).path == path

    @pytest.mark.parametrize("content", [{}, {"model": 3, "x": torch.ones(1)}, torch.ones(2)])
    def test_without_tensors(self, tmp_path: Path, content: Any) -> None:
        torch.save(content, tmp_path / "x.pth")
        assert "no tensors" in str(failure(lambda: run(tmp_path, tmp_path / "x.pth")).found)
        assert "No such file" in str(failure(lambda: run(tmp_path, tmp_path / "y.pth")).found)

    @pytest.mark.parametrize(
        ("changes", "found"),
        [
            ({"itm_head.bias": None}, 'Missing key(s) in state_dict: "itm_head.bias"'),
            ({"itm_head.bias": torch.zeros(3)}, "size mismatch for itm_head.bias"),
            ({"itm_head.scale": torch.zeros(3)}, 'Unexpected key(s) in state_dict: "itm_head.scale"'),
            ({"visual_encoder.pos_embed": torch.zeros(1, 18, 24)}, "18 positions"),
            ({"visual_encoder.dist_token": torch.zeros(1, 1, 24)}, "does not have"),
            ({"text_encoder.bert.encoder.layer.0.crossattention.self.key.bias": torch.zeros(32)}, "missing"),
            ({"text_encoder.bert.embeddings.token_type_embeddings.weight": None}, "token type"),
            ({"text_encoder.embeddings.LayerNorm.bias": torch.zeros(32)}, "two tensors"),
        ],
    )
    def test_of_another_model(
        self, state: dict[str, Tensor], tmp_path: Path, changes: dict[str, Tensor | None], found: str
    ) -> None:
        spoilt = {name: each for name, each in {**state, **changes}.items() if each is not None}
        error = failure(lambda: run(tmp_path, save(tmp_path / "x.pth", spoilt)))
        assert found in str(error.found) and not (tmp_path / "albef").exists()

    def test_a_head_width_that_does_not_divide(self, state: dict[str, Tensor]) -> None:
        assert "--head-width" in str(failure(lambda: architecture(convert(state).tensors, 64)).found)

    @pytest.mark.parametrize("change", [lambda w: w[:-1], lambda w: ["x", *w[1:]], lambda w: [*w[:-1], w[-2]]])
    def test_a_vocabulary_of_another_model(
        self, state: dict[str, Tensor], tmp_path: Path, change: Callable[[list[str]], list[str]]
    ) -> None:
        path = tmp_path / "wrong.txt"
        path.write_text("\n".join(change(vocabulary())) + "\n")
        error = failure(lambda: run(tmp_path, save(tmp_path / "x.pth", state), vocab_file=path))
        assert error.path == path and not (tmp_path / "albef").exists()

    def test_the_vocabulary_in_the_hubs_cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
        error = failure(lambda: convert_albef.read_vocabulary(convert_albef.cached_vocabulary(), 9))
        assert "hf download" in str(error.remedy)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, _: str(tmp_path / name))
        assert convert_albef.cached_vocabulary() == tmp_path / "google-bert/bert-base-uncased"


def test_released_names_are_all_known() -> None:
    """Twelve layers and blocks, as released; on no memory."""
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in shapes(50, layers=12, fusion=6, blocks=12).items()}
        made = convert({**state, "text_encoder.bert.embeddings.position_ids": torch.empty(1, 512)})
        config = architecture(made.tensors, HEAD)
    assert config["fusion_layer"] == 6 and config["text_config"]["num_hidden_layers"] == 12
    assert config["vision_config"]["num_hidden_layers"] == 12
    assert "nothing that maps need" not in made.dropped.values()
