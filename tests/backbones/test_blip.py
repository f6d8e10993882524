"""BLIP as a backbone, against the library's own run of the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slime_bench.backbones.blip import BlipBackbone
from slime_bench.backbones.blip_text import captured
from slime_bench.errors import BackboneError
from tests.fixtures.blip_toys import LIMIT, PROMPTS, save_blip, stock_blip
from tests.fixtures.rounding import TOY, same

ALL = ("layer.0", "layer.1", "layer.2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip(tmp_path_factory.mktemp("blip") / "model")


def load(folder: Path, **settings: Any) -> BlipBackbone:
    return BlipBackbone(BlipBackbone.Config(**{"weights": str(folder), "image_size": 32, **settings}))


@pytest.fixture(scope="module")
def blip(folder: Path) -> BlipBackbone:
    return load(folder)


@pytest.fixture
def fresh(folder: Path) -> BlipBackbone:
    """One that a test may change."""
    return load(folder)


@pytest.fixture(scope="module")
def stock(folder: Path) -> Any:
    return stock_blip(folder)


EXPONENT = 4.0
"""Size of the two logits whose softmax a match is: their error is the match's, or more."""


def pictures(count: int = 2, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


def normalised(images: Tensor) -> Tensor:
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, :, None, None]
    return (images - mean) / std


def hooks(module: nn.Module) -> int:
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in module.modules())


class TestAgainstTheLibrary:
    @torch.no_grad()
    @pytest.mark.parametrize("size", [(32, 32), (64, 64), (40, 24)])
    def test_scores_states_and_match(self, blip: BlipBackbone, stock: Any, size: tuple[int, int]) -> None:
        images, prompts = pictures(2, size), blip.tokenize(PROMPTS)
        assert not bool(prompts.mask.all()), "some prompt is padded"
        states = blip.encode_images(images)
        found = blip.read(states, prompts, lambda scores: scores)
        height, width = blip.grid(size)
        assert list(found.maps) == list(ALL) and found.match.shape == (2, 3, prompts.ids.shape[1])
        for index in range(2):
            plain = stock(
                input_ids=prompts.ids,
                attention_mask=prompts.mask.long(),
                pixel_values=normalised(images[index : index + 1]),
                interpolate_pos_encoding=True,
            )
            same(states[index : index + 1], plain.last_hidden_state, **TOY)
            match = stock.itm_head(plain.question_embeds).softmax(-1)[..., 1]
            same(found.match[index], match, **TOY, magnitude=EXPONENT)
            same(found.match[index, :, 0], plain.itm_score.softmax(-1)[:, 1], **TOY, magnitude=EXPONENT)
            text = stock.text_encoder(
                prompts.ids,
                prompts.mask.long(),
                encoder_hidden_states=states[index : index + 1],
                output_attentions=True,
            )
            for name, attention in zip(ALL, text.cross_attentions, strict=True):
                scores = found.maps[name][index]
                assert scores.dtype == torch.float32 and scores.shape == (
                    3,
                    4,
                    prompts.ids.shape[1],
                    1 + height * width,
                )
                same(scores.softmax(-1), attention, **TOY, magnitude=scores)
                assert float(attention.amax(-1).max()) > 2 / scores.shape[-1], "the layer prefers some keys"

    @torch.no_grad()
    def test_scores_are_before_the_softmax(self, blip: BlipBackbone, stock: Any) -> None:
        """The softmax hides a constant: projections written out give it."""
        states, prompts = blip.encode_images(pictures(1)), blip.tokenize(PROMPTS)
        found = blip.read(states, prompts, lambda scores: scores, ["layer.0"]).maps["layer.0"]
        text, layer = stock.text_encoder, stock.text_encoder.encoder.layer[0]
        bias = (1 - prompts.mask.float())[:, None, None] * -1e4
        asked = layer.attention(text.embeddings(prompts.ids), attention_mask=bias)[0]
        query, key = (
            F.linear(x, module.weight.double(), module.bias.double()).view(len(x), -1, 4, 8)
            for x, module in (
                (asked.double(), layer.crossattention.self.query),
                (states.double(), layer.crossattention.self.key),
            )
        )
        expected = torch.einsum("pthd,bmhd->bphtm", query, key) / 8**0.5
        same(found.double(), expected, **TOY, dtype=torch.float32)

    @torch.no_grad()
    def test_a_batch_is_its_images_one_by_one(self, blip: BlipBackbone) -> None:
        states, prompts = blip.encode_images(pictures(3)), blip.tokenize(PROMPTS)
        together = blip.read(states, prompts, lambda scores: scores)
        for index in range(3):
            alone = blip.read(states[index : index + 1], prompts, lambda scores: scores)
            same(together.match[index], alone.match[0], **TOY, magnitude=EXPONENT)
            for name in ALL:
                same(together.maps[name][index], alone.maps[name][0], **TOY)


class TestCapturing:
    @torch.no_grad()
    def test_called_once_per_chosen_layer_in_running_order(self, blip: BlipBackbone) -> None:
        states, prompts = blip.encode_images(pictures()), blip.tokenize(PROMPTS)
        full = blip.read(states, prompts, lambda scores: scores).maps
        seen: list[Tensor] = []
        found = blip.read(states, prompts, lambda scores: seen.append(scores) or len(seen), ["layer.2", "layer.0"])
        assert found.maps == {"layer.0": 1, "layer.2": 2}
        assert torch.equal(seen[0], full["layer.0"]) and torch.equal(seen[1], full["layer.2"])

    @torch.no_grad()
    def test_no_hook_stays_whatever_happens(self, blip: BlipBackbone) -> None:
        states, prompts = blip.encode_images(pictures()), blip.tokenize(PROMPTS)
        before = hooks(blip)
        during: list[int] = []
        blip.read(states, prompts, lambda scores: during.append(hooks(blip)))
        assert min(during) > before and hooks(blip) == before

        def fail(scores: Tensor) -> None:
            raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine"):
            blip.read(states, prompts, fail)
        assert hooks(blip) == before
        with pytest.raises(RuntimeError):  # an image of another width fails inside the model
            blip.read(states[..., :7], prompts, fail)
        assert hooks(blip) == before
        with pytest.raises(BackboneError):
            blip.read(states, prompts, fail, ["layer.9"])
        assert hooks(blip) == before
        attention = blip.text_encoder.encoder.layer[0].crossattention.self
        with pytest.raises(AttributeError), captured({"one": attention, "no attention": nn.Identity()}, fail):
            pass
        assert hooks(blip) == before


class TestImages:
    def test_states_never_have_gradients(self, blip: BlipBackbone) -> None:
        states = blip.encode_images(pictures().requires_grad_())
        assert states.shape == (2, 17, 24) and not states.requires_grad

    def test_statistics(self, folder: Path, blip: BlipBackbone) -> None:
        own = load(folder, statistics="own")
        images = pictures()
        same(own.encode_images(images * own.std + own.mean), blip.vision_model(images)[0], **TOY)
        torch.testing.assert_close(own.mean.flatten(), torch.tensor([0.48145466, 0.4578275, 0.40821073]))
        same(blip.encode_images(images), blip.vision_model(normalised(images))[0], **TOY)


class TestPrompts:
    def test_tokens(self, blip: BlipBackbone) -> None:
        prompts = blip.tokenize(["Image of sky.", "wheel"])
        names = [blip.tokenizer.convert_ids_to_tokens(row) for row in prompts.ids.tolist()]
        assert names == [["[CLS]", "image", "of", "sky", ".", "[SEP]"], ["[CLS]", "wheel", "[SEP]", *["[PAD]"] * 3]]
        assert prompts.mask.tolist() == [[True] * 6, [True] * 3 + [False] * 3]
        assert prompts.special.tolist() == [[True, *[False] * 4, True], [True, False, True, *[False] * 3]]
        assert prompts.texts == ("Image of sky.", "wheel") and prompts.ids.dtype == torch.int64

    def test_the_limit(self, blip: BlipBackbone) -> None:
        assert blip.tokenize(["sky " * (LIMIT - 2)]).ids.shape == (1, LIMIT)
        with pytest.raises(BackboneError) as caught:
            blip.tokenize(["sky", "wheel " * (LIMIT - 1)])
        assert "wheel wheel" in str(caught.value.path) and str(LIMIT + 1) in str(caught.value.found)
        assert str(LIMIT) in str(caught.value.expected)

    @pytest.mark.parametrize("prompts", [[], ["sky", " "], ["sky", "\u200b\u0001"]])
    def test_nothing_to_read(self, blip: BlipBackbone, prompts: list[str]) -> None:
        with pytest.raises(BackboneError, match="prompt"):
            blip.tokenize(prompts)


class TestPrecision:
    @torch.no_grad()
    @pytest.mark.parametrize("dtype", ["bf16", "fp16"])
    def test_half_precision_gives_float32(self, folder: Path, blip: BlipBackbone, dtype: str) -> None:
        half, images = load(folder, dtype=dtype), pictures()
        prompts = half.tokenize(PROMPTS)
        states = half.encode_images(images)
        assert states.dtype == half.dtype != torch.float32
        found = half.read(states, prompts, lambda scores: scores)
        full = blip.read(blip.encode_images(images), prompts, lambda scores: scores)
        assert found.match.dtype == torch.float32
        for name in ALL:
            assert found.maps[name].dtype == torch.float32
            # Sums are made in float32, but each layer's outputs are rounded to half precision.
            same(found.maps[name], full.maps[name], terms=1, steps=TOY["steps"], dtype=half.dtype)

    @torch.no_grad()
    def test_overflow_is_an_error_that_says_what_to_do(self, folder: Path) -> None:
        half = load(folder, dtype="fp16")
        states, prompts = half.encode_images(pictures()), half.tokenize(PROMPTS)
        half.text_encoder.encoder.layer[1].crossattention.self.key.weight.fill_(60000)
        with pytest.raises(BackboneError) as caught:
            half.read(states, prompts, lambda scores: None)
        assert caught.value.path == "layer.1" and "bf16" in str(caught.value.remedy) and hooks(half) == 0


class TestTuning:
    def test_what_is_tuned_has_the_librarys_names(self, blip: BlipBackbone, stock: Any) -> None:
        names = blip.tuned(["layer.2", "layer.0"])
        expected = {
            name
            for name, _ in stock.named_parameters()
            if name.startswith(
                (
                    "text_encoder.embeddings.word_embeddings",
                    "text_encoder.encoder.layer.0.crossattention",
                    "text_encoder.encoder.layer.2.crossattention",
                )
            )
        }
        assert set(names) == expected and len(expected) == 21
        state = blip.state_dict()
        assert all(state[name].data_ptr() == value.data_ptr() for name, value in names.items())

    def test_gradients_are_the_librarys(self, fresh: BlipBackbone, folder: Path) -> None:
        stock, prompts = stock_blip(folder), fresh.tokenize(PROMPTS)
        tuned = fresh.tuned(["layer.1", "layer.2"])
        for value in tuned.values():
            value.requires_grad_()
        states = fresh.encode_images(pictures())
        found = fresh.read(states, prompts, lambda scores: scores.softmax(-1).square().sum())
        (found.match.square().sum() + found.maps["layer.1"] + found.maps["layer.0"]).backward()
        for state in states:
            text = stock.text_encoder(
                prompts.ids, prompts.mask.long(), encoder_hidden_states=state[None], output_attentions=True
            )
            match = stock.itm_head(text.last_hidden_state).softmax(-1)[..., 1]
            (match.square().sum() + sum(text.cross_attentions[index].square().sum() for index in (0, 1))).backward()
        plain = dict(stock.named_parameters())
        largest = max(float(plain[name].grad.abs().max()) for name in tuned)
        for name, value in tuned.items():
            assert value.grad is not None and float(value.grad.abs().sum()) > 0, name
            # Some are 0 but for rounding: a softmax does not see what a key's bias adds to all of its scores.
            same(value.grad, plain[name].grad, **TOY, magnitude=largest)
        assert all(value.grad is None for name, value in fresh.named_parameters() if name not in tuned)

    def test_after_inference_mode_gradients_still_flow(self, fresh: BlipBackbone) -> None:
        with torch.inference_mode():
            prompts, states = fresh.tokenize(PROMPTS), fresh.encode_images(pictures())
            before = fresh.read(states, prompts, lambda scores: scores.sum()).match
        tuned = fresh.tuned(["layer.0"])
        for value in tuned.values():
            value.requires_grad_()
        found = fresh.read(states, prompts, lambda scores: scores.sum())
        same(found.match.detach(), before.clone(), **TOY, magnitude=EXPONENT)
        found.maps["layer.0"].backward()
        assert all(value.grad is not None for name, value in tuned.items() if ".self.query" in name)
