"""The LLaVA backbone against the library's own model on small random weights, and what it says of bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from slime_bench.backbones.llava import LlavaBackbone
from slime_bench.backbones.llava_attention import pack
from slime_bench.backbones.llava_text import Templates, read_geometry
from slime_bench.backbones.weights import LLAVA
from slime_bench.config.compose import plan
from slime_bench.errors import BackboneError, ConfigError
from tests.fixtures.llava_toys import HEADS, LAYERS, PATCH, PATCHES, SIDE, Stock, save_tiny_llava
from tests.fixtures.rounding import TOY, rounding
from tests.parity.table import Checks

PROMPTS = ["Image of wheel.", "Image of a car body, seen from the side.", "sky"]
TOLERANCE = rounding(magnitude=4.0, **TOY)
"""Scores reach 4 or so; softmax and logits are no larger."""
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed, copy it first."""
    return save_tiny_llava(tmp_path_factory.mktemp("llava") / "tiny")


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def load(folder: Path | str, **changed: Any) -> LlavaBackbone:
    return LlavaBackbone(LlavaBackbone.Config(weights=str(folder), **({"dtype": "fp32", "image_size": SIDE} | changed)))


@pytest.fixture(scope="module")
def backbone(tiny: Path) -> LlavaBackbone:
    return load(tiny)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """uint8 [2,SIDE,SIDE,3]."""
    return np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def images(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def failure(call: Callable[[], Any]) -> BackboneError:
    with pytest.raises(BackboneError) as caught:
        call()
    assert caught.value.remedy
    return caught.value


def raw(scores: torch.Tensor) -> torch.Tensor:
    return scores


@pytest.fixture(scope="module")
def stock(tiny: Path) -> Stock:
    return Stock(tiny)


def text_rows(ids: list[int], phrase: list[int], image_token: int) -> list[int]:
    """Where the phrase stands after the image."""
    start = len(ids) - ids[::-1].index(image_token)
    places = [at for at in range(start, len(ids)) if ids[at : at + len(phrase)] == phrase]
    assert len(places) == 1
    return list(range(places[0], places[0] + len(phrase)))


class TestAgainstTheStockModel:
    """Acceptance point 2 of the issue: the scores are those of the stock model's own attentions."""

    @torch.no_grad()
    def test_scores_and_match(
        self,
        backbone: LlavaBackbone,
        stock: Stock,
        pictures: np.ndarray,
        images: torch.Tensor,
        record_property: Callable[[str, object], None],
    ) -> None:
        prompts = backbone.tokenize(PROMPTS)
        found = backbone.read(backbone.encode_images(images), prompts, raw)
        yes, no = (stock.tokenizer(f"x{answer}")["input_ids"][2] for answer in (" Yes", " No"))
        assert stock.tokenizer.convert_ids_to_tokens([yes, no]) == ["▁Yes", "▁No"]
        image_token = stock.model.config.image_token_id
        with Checks(record_property, "LLaVA, random weights", "stock attentions") as checks:
            for b, picture in enumerate(pictures):
                for p, prompt in enumerate(PROMPTS):
                    ids, output, projected = stock.run(picture, prompt)
                    phrase = prompts.ids[p, prompts.mask[p]].tolist()
                    assert stock.tokenizer.decode(phrase) == prompt
                    rows = text_rows(ids, phrase, image_token)
                    columns = [index for index, each in enumerate(ids) if each == image_token]
                    assert len(columns) == PATCHES
                    for index in range(LAYERS):
                        ours = found.maps[f"layer.{index}"][b, p, :, : len(rows)]
                        theirs = output.attentions[index][0][:, rows][:, :, columns]
                        # Over the image alone: what the softmax shares out among it.
                        checks.absolute(
                            f"softmax of scores, layer.{index}",
                            ours.softmax(-1),
                            theirs / theirs.sum(-1, keepdim=True),
                            TOLERANCE,
                        )
                        # And the scores themselves, whose softmax over everything before is the model's attention.
                        whole = stock.scores(*projected[index])
                        causal = whole.masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf)
                        attention = output.attentions[index][0]
                        checks.absolute("the oracle's own softmax", causal.softmax(-1), attention.double(), TOLERANCE)
                        checks.absolute(f"scores, layer.{index}", ours, whole[:, rows][:, :, columns], TOLERANCE)
                    answers = output.logits[0, -1, [yes, no]].softmax(-1)
                    checks.absolute("match", found.match[b, p, 0], answers[0], TOLERANCE)

    def test_ids_are_the_stock_processors(self, backbone: LlavaBackbone, stock: Stock, pictures: np.ndarray) -> None:
        talk = backbone._conversation
        for prompt in PROMPTS:
            ids = stock.inputs(pictures[0], prompt)["input_ids"][0].tolist()
            image = [stock.model.config.image_token_id] * PATCHES
            assert [*talk.before, *image, *talk.lead, *talk.ids_of(prompt), *talk.question] == ids


class TestSharing:
    @pytest.mark.parametrize("group", [1, 2, 3, 8])
    @torch.no_grad()
    def test_many_prompts_are_one_by_one(self, tiny: Path, images: torch.Tensor, group: int) -> None:
        """Whatever the order and the length of the others, and however many go together."""
        together, alone = load(tiny, prompts_per_call=group), load(tiny, prompts_per_call=1)
        states = together.encode_images(images)
        prompts = [*PROMPTS, PROMPTS[0], "Image of wheel. Image of wheel."]
        whole = together.tokenize(prompts)
        found = together.read(states, whole, raw)
        for p, prompt in enumerate(prompts):
            for b in range(2):
                single = alone.read(states[b : b + 1], alone.tokenize([prompt]), raw)
                count = int(whole.mask[p].sum())
                torch.testing.assert_close(found.match[b, p], single.match[0, 0], rtol=0, atol=TOLERANCE)
                for name in alone.layers:
                    ours = found.maps[name][b, p, :, :count]
                    torch.testing.assert_close(ours, single.maps[name][0, 0], rtol=0, atol=TOLERANCE)

    @torch.no_grad()
    def test_the_prefix_runs_once_per_image(self, backbone: LlavaBackbone, images: torch.Tensor) -> None:
        """Rows that pass through the language model: those up to the image once, and the prompts'."""
        seen: list[tuple[int, ...]] = []
        norm = backbone.model.model.language_model.layers[0].input_layernorm
        hook = norm.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape[:2])))
        talk = backbone._conversation
        prompts = backbone.tokenize(PROMPTS)
        backbone.read(backbone.encode_images(images), prompts, raw)
        hook.remove()
        rest = len(PROMPTS) * (len(talk.lead) + len(talk.question)) + int(prompts.mask.sum())
        assert seen == [(2, len(talk.before) + PATCHES), (2, rest)]

    @given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 3), st.integers(1, 4), st.integers(1, 7))
    @settings(max_examples=60, deadline=None)
    def test_packing(self, lengths: list[int], lead: int, question: int, group: int) -> None:
        """Against a loop: ids in a row, positions of each conversation from the image on, causal within its own."""
        longest, shared = max(lengths), 11
        mask = torch.tensor([[index < each for index in range(longest)] for each in lengths])
        ids = torch.randint(100, 200, mask.shape)
        packed = pack(range(lead), ids, mask, range(50, 50 + question), shared, group)
        expected, positions, owner = [], [], []
        for p, length in enumerate(lengths):
            row = len(expected)
            expected += [*range(lead), *ids[p, :length].tolist(), *range(50, 50 + question)]
            positions += range(shared, shared + lead + length + question)
            owner += [p] * (lead + length + question)
            assert packed.prompt[p, :length].tolist() == list(range(row + lead, row + lead + length))
            assert packed.prompt[p, length:].tolist() == [row + lead + length - 1] * (longest - length)
            assert packed.last[p] == len(expected) - 1
        assert packed.ids.tolist() == [expected] and packed.positions.tolist() == [positions]
        assert len(packed.masks) == -(-len(lengths) // group)
        for (start, end), attends in zip(pairwise(packed.bounds), packed.masks, strict=True):
            assert attends[:, :shared].all()
            for row in range(start, end):
                own = [column for column in range(start, end) if owner[column] == owner[row] and column <= row]
                assert attends[row - start, shared:].nonzero().flatten().tolist() == [each - start for each in own]
        assert (packed.bounds[0], packed.bounds[-1]) == (0, len(expected))


class TestReading:
    @torch.no_grad()
    def test_shapes_and_layers(self, backbone: LlavaBackbone, images: torch.Tensor) -> None:
        assert backbone.layers == ("layer.0", "layer.1", "layer.2")
        prompts = backbone.tokenize(PROMPTS)
        assert prompts.texts == tuple(PROMPTS) and prompts.ids.shape == prompts.mask.shape
        assert prompts.ids.dtype == torch.int64 and not prompts.special.any()
        assert prompts.mask.any(1).all() and prompts.mask.all(1).sum() == 1
        called: list[tuple[int, ...]] = []
        states = backbone.encode_images(images)
        found = backbone.read(
            states, prompts, lambda scores: called.append(tuple(scores.shape)) or scores.mean(), ["layer.2", "layer.0"]
        )
        assert list(found.maps) == ["layer.0", "layer.2"]
        assert called == [(2, 3, HEADS, prompts.ids.shape[1], PATCHES)] * 2
        assert found.match.shape == (2, 3, 1) and found.match.dtype == torch.float32
        assert ((found.match > 0) & (found.match < 1)).all()

    @pytest.mark.parametrize("error", [RuntimeError("the caller's own"), KeyboardInterrupt()])
    @torch.no_grad()
    def test_nothing_stays_behind_after_an_exception(
        self, backbone: LlavaBackbone, images: torch.Tensor, error: BaseException
    ) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        states, prompts = backbone.encode_images(images), backbone.tokenize(PROMPTS)
        before = backbone.read(states, prompts, raw).match
        names = set(ALL_ATTENTION_FUNCTIONS)

        def hooks() -> list[tuple[int, ...]]:  # the library keeps some of its own
            return [(*each._forward_hooks, *each._forward_pre_hooks) for each in backbone.modules()]

        kept = hooks()

        def fail(_: torch.Tensor) -> None:
            assert set(ALL_ATTENTION_FUNCTIONS) != names  # so the check below can fail
            raise error

        with pytest.raises(type(error)):
            backbone.read(states, prompts, fail)
        assert set(ALL_ATTENTION_FUNCTIONS) == names
        assert {each.config._attn_implementation for each in backbone.model.modules() if hasattr(each, "config")} == {
            "sdpa"
        }
        assert hooks() == kept
        assert torch.equal(backbone.read(states, prompts, raw).match, before)

    @pytest.mark.parametrize("dtype", ["bf16", "fp16"])
    @torch.no_grad()
    def test_half_precision_gives_float32(
        self, tiny: Path, backbone: LlavaBackbone, images: torch.Tensor, dtype: str
    ) -> None:
        half = load(tiny, dtype=dtype)
        assert {each.dtype for each in half.parameters()} == {half.model.dtype} != {torch.float32}
        found = half.read(half.encode_images(images), half.tokenize(PROMPTS), raw)
        exact = backbone.read(backbone.encode_images(images), backbone.tokenize(PROMPTS), raw)
        assert found.match.dtype == torch.float32
        for name in half.layers:
            assert found.maps[name].dtype == torch.float32
            error = (found.maps[name] - exact.maps[name]).norm() / exact.maps[name].norm()
            assert error < (0.05 if dtype == "bf16" else 0.01)

    @torch.no_grad()
    def test_images_are_resized_as_a_whole(self, backbone: LlavaBackbone) -> None:
        """A wide image whose left half is dark keeps its halves: nothing is cut away."""
        wide = torch.zeros(1, 3, 2 * SIDE, 4 * SIDE)
        wide[..., 2 * SIDE :] = 1
        square = torch.zeros(1, 3, SIDE, SIDE)
        square[..., SIDE // 2 :] = 1
        assert backbone.grid((2 * SIDE, 4 * SIDE)) == backbone.grid((SIDE, SIDE)) == (4, 4)
        resized = torch.nn.functional.interpolate(wide, (SIDE, SIDE), mode="bilinear", antialias=True)
        torch.testing.assert_close(
            backbone.encode_images(wide), backbone.encode_images(resized), rtol=0, atol=TOLERANCE
        )
        assert (resized - square).abs()[..., [0, -1]].max() < 1e-6


class TestTuning:
    def test_gradients_reach_them_and_agree_with_differences(self, tiny: Path, images: torch.Tensor) -> None:
        """Also through the keys of the image, which all prompts share."""
        tuned = load(tiny).double()
        states, prompts = tuned.encode_images(images.double()), tuned.tokenize(PROMPTS)
        parameters = tuned.tuned(["layer.1"])
        assert not states.requires_grad
        for each in parameters.values():
            each.requires_grad_(True)

        def loss() -> torch.Tensor:
            found = tuned.read(states, prompts, lambda scores: scores.double().square().mean(), ["layer.1", "layer.2"])
            return torch.stack(list(found.maps.values())).sum() + found.match.double().mean()

        value = loss()
        gradients = dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))
        generator = torch.Generator().manual_seed(0)
        for name, each in parameters.items():
            assert gradients[name].abs().max() > 0
            direction = torch.randn(each.shape, generator=generator, dtype=each.dtype)
            step = 1e-2
            with torch.no_grad():
                sides = []
                for sign in (1, -1):
                    each += sign * step * direction
                    sides.append(loss())
                    each -= sign * step * direction
            slope = float((sides[0] - sides[1]) / (2 * step))
            assert slope == pytest.approx(float((gradients[name] * direction).sum()), rel=2e-2, abs=1e-4)


class TestWhatIsKnownBefore:
    def test_facts(self, tiny: Path, backbone: LlavaBackbone, tmp_path: Path) -> None:
        facts = LlavaBackbone.describe(backbone.config)
        assert facts.layers == backbone.layers and facts.patch == PATCH and facts.image_size == SIDE
        assert facts.num_tokens == backbone.num_tokens == 256 - PATCHES - len(backbone._conversation)
        copy = Path(shutil.copytree(tiny, tmp_path / "model"))
        (copy / "model.safetensors").write_bytes(b"")  # no weights are read
        assert LlavaBackbone.describe(LlavaBackbone.Config(weights=str(copy))) == facts

    def test_the_published_configuration(self, folder: Path) -> None:
        """What llava-1.5-7b-hf writes down, and the library's defaults for what it does not: 32 layers, 24x24."""
        published = {
            "model_type": "llava",
            "image_token_index": 32000,
            "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064},
            "vision_config": {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
        }
        (folder / "config.json").write_text(json.dumps(published))
        geometry = read_geometry(folder)
        assert (geometry.grid, geometry.image_tokens, geometry.layers, geometry.positions) == ((24, 24), 576, 32, 4096)
        assert geometry.prefix == 0 and geometry.image_token == 32000
        (folder / "config.json").write_text(json.dumps(published | {"vision_feature_select_strategy": "full"}))
        assert read_geometry(folder).prefix == 1 and read_geometry(folder).image_tokens == 577

    def test_statistics_of_either_file(self, folder: Path) -> None:
        assert read_geometry(folder).mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
        (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.4, 0], "image_std": [1, 0.5, 0.25]}')
        geometry = read_geometry(folder)
        assert (geometry.mean, geometry.std) == ((0.5, 0.4, 0.0), (1.0, 0.5, 0.25))

    @pytest.mark.parametrize(
        ("wrong", "key"),
        [
            ("backbone.templates.conversation=nothing", "templates"),
            ("+backbone.templates.positiv=Yes", "positive"),
        ],
    )
    def test_wrong_settings_are_found_when_composed(self, wrong: str, key: str) -> None:
        with pytest.raises(ConfigError, match=key):
            plan(["backbone=llava15_7b", wrong])

    @torch.no_grad()
    def test_the_class_token_can_be_kept(self, folder: Path, images: torch.Tensor) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"vision_feature_select_strategy": "full"}))
        whole = load(folder)
        states = whole.encode_images(images)
        assert whole.num_prefix_keys == 1 and states.shape[1] == PATCHES + 1
        assert whole.read(states, whole.tokenize(["sky"]), raw).maps["layer.0"].shape[-1] == PATCHES + 1


class TestPublishedLayout:
    def test_names_of_the_published_files(self, folder: Path, backbone: LlavaBackbone) -> None:
        """`language_model.model...` and `vision_tower.vision_model...`, and buffers that newer libraries compute."""
        tensors = {
            name.replace("vision_tower.", "vision_tower.vision_model."): value
            for name, value in load_file(folder / "model.safetensors").items()
        }
        assert any(name.startswith("language_model.model.layers.0.") for name in tensors)
        tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(PATCHES + 1)[None]
        tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        expected = backbone.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in load(folder).state_dict().items())


class TestShards:
    @pytest.fixture
    def sharded(self, tmp_path: Path) -> Path:
        return save_tiny_llava(tmp_path / "sharded", max_shard_size="40KB")

    def test_load_and_hash(self, sharded: Path, backbone: LlavaBackbone) -> None:
        assert len(list(sharded.glob("*.safetensors"))) > 2
        loaded = load(sharded)
        expected = backbone.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
        first = LlavaBackbone.content_hash_of(loaded.config)
        (sharded / "README.md").write_text("words decide nothing")
        assert LLAVA.fingerprint(sharded) == first
        seen = {first}
        names = ["config.json", "tokenizer.json", "processor_config.json", INDEX]
        names += [path.name for path in sharded.glob("*.safetensors")]
        for name in names:
            (sharded / name).write_bytes((sharded / name).read_bytes() + b" ")
            seen.add(LLAVA.fingerprint(sharded))
        assert len(seen) == 1 + len(names)

    def test_a_missing_shard(self, sharded: Path) -> None:
        gone = sorted(sharded.glob("*.safetensors"))[1]
        gone.unlink()
        error = failure(lambda: load(sharded))
        assert gone.name in str(error) and str(sharded) in str(error.path)


class TestBadFolders:
    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "processor_config.json", "model.safetensors"])
    def test_a_missing_file(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        error = failure(lambda: load(folder))
        assert error.path == folder.resolve()

    def test_a_tensor_of_another_model(self, folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        name = next(each for each in sorted(tensors) if "language" in each and "layers.1.self_attn.q_proj" in each)
        tensors[name.replace("layers.1", "layers.9")] = tensors[name].clone()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        assert "layers.9" in str(failure(lambda: load(folder)).found)

    @pytest.mark.parametrize(
        "content",
        [
            "{",
            '{"model_type": "blip"}',
            '{"model_type": "llava", "vision_config": {"model_type": "siglip_vision_model"}}',
            '{"model_type": "llava", "text_config": {"model_type": "llama", "num_hidden_layers": "many"}}',
        ],
    )
    def test_a_foreign_configuration(self, folder: Path, content: str) -> None:
        (folder / "config.json").write_text(content)
        assert failure(lambda: load(folder)).path == folder.resolve() / "config.json"


class TestBadInput:
    def test_a_prompt_that_is_too_long(self, backbone: LlavaBackbone) -> None:
        error = failure(lambda: backbone.tokenize(["sky", "z" * 300]))
        assert "zzz" in str(error.path) and str(backbone.num_tokens) in str(error.expected)
        longest = "z" * (backbone.num_tokens - 1)
        assert backbone.tokenize([longest]).ids.shape[1] <= backbone.num_tokens

    def test_a_conversation_that_leaves_no_room(self, tmp_path: Path) -> None:
        config = LlavaBackbone.Config(weights=str(save_tiny_llava(tmp_path / "short", positions=20)))
        assert failure(lambda: LlavaBackbone.describe(config)).path == "backbone.templates.conversation"

    @pytest.mark.parametrize("prompt", ["a <image> of a car", "<image>"])
    def test_a_prompt_with_an_image(self, backbone: LlavaBackbone, prompt: str) -> None:
        assert prompt in str(failure(lambda: backbone.tokenize([prompt])).path)

    @pytest.mark.parametrize("prompt", ["a 2 m² 車 🚗", "  wheel", "two  words"])
    def test_any_language(self, backbone: LlavaBackbone, stock: Stock, prompt: str) -> None:
        prompts = backbone.tokenize([prompt])
        assert stock.tokenizer.decode(prompts.ids[0]).strip() == prompt.strip()

    @torch.no_grad()
    def test_overflow_in_half_precision(self, tiny: Path, images: torch.Tensor) -> None:
        half = load(tiny, dtype="fp16")
        half.model.model.language_model.layers[1].self_attn.q_proj.weight.mul_(3e4)
        states, prompts = half.encode_images(images), half.tokenize(PROMPTS)
        error = failure(lambda: half.read(states, prompts, lambda scores: 0))
        assert error.path == "layer.1" and "bf16" in str(error.remedy)


class TestTemplates:
    @pytest.mark.parametrize(
        "conversation",
        [
            "USER: <image> ASSISTANT:",
            "{prompt} <image> yes?",
            "<image> {prompt}",
            "<image><image>{prompt} yes?",
        ],
    )
    def test_places(self, conversation: str) -> None:
        with pytest.raises(ValueError, match=r"templates\.conversation"):
            Templates(conversation=conversation)

    def test_answers_that_cannot_be_told_apart(self, tiny: Path) -> None:
        error = failure(lambda: load(tiny, templates=Templates(negative=" Yes, no")))
        assert error.path == "backbone.templates"

    @torch.no_grad()
    def test_the_question_changes_the_match_and_no_map(
        self, tiny: Path, backbone: LlavaBackbone, images: torch.Tensor
    ) -> None:
        other = load(tiny, templates=Templates(conversation="USER: <image>\n{prompt} Yes or no? ASSISTANT:"))
        states = backbone.encode_images(images)
        one, two = (each.read(states, each.tokenize(PROMPTS), raw) for each in (backbone, other))
        assert (one.match - two.match).abs().max() > 1e-4
        for name in backbone.layers:
            torch.testing.assert_close(one.maps[name], two.maps[name], rtol=0, atol=TOLERANCE)
