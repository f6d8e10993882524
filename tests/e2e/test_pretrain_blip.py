"""`python -m data_prep.pretrain.mini_blip` from nothing to a model folder, in seconds; and what its captions say."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BlipForImageTextRetrieval

from data_prep.pretrain import blip_captions, blip_export
from data_prep.pretrain import mini_blip as pretrain_mini_blip
from data_prep.pretrain.blip_captions import Caption
from data_prep.pretrain.blip_losses import by_tile, pack, pack_texts, read_texts
from data_prep.pretrain.models import build_blip, build_blip_tokenizer
from slime_bench.data.mini_world.render import SUBJECTS, render, vocabulary
from tests.fixtures.pretraining import pretrain
from tests.fixtures.rounding import same


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_mini_blip, "SIZE", {"width": 32, "layers": 2})
    first, second, *_, last = pretrain_mini_blip.STAGES
    stages = [replace(first, images=4, batch=2), replace(last, name=second.name, images=4, batch=2)]
    monkeypatch.setattr(pretrain_mini_blip, "STAGES", stages)
    measure, layers = blip_export.measure, blip_export.measure_layers
    monkeypatch.setattr(blip_export, "measure_layers", lambda *arguments: layers(*arguments, pictures=3))
    monkeypatch.setattr(blip_export, "measure", lambda *arguments: measure(*arguments, pictures=40))


@pytest.mark.release
def test_from_nothing_to_a_model(tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from slime_bench.backbones.blip import BlipBackbone
    from slime_bench.backbones.weights import check_hashes

    pretrain(monkeypatch, pretrain_mini_blip, tmp_path)
    model = tmp_path / "model"
    check_hashes(model)
    card = json.loads((model / "card.json").read_text())
    assert set(card["stages"]) == {"blip64", "blip128-1"} and card["stages"]["blip128-1"]["steps"] == 2
    for facts in card["measured"]["layers"].values():
        assert len(facts["layers"]) == 2 and 0 <= facts["spread"] <= 100 and 0 < facts["top2"] < 100
    assert "Held out" in (model / "README.md").read_text() and card["measured"]["attribute_swap_pairs"] > 10
    config = BlipBackbone.Config(weights=str(model), image_size=128)
    backbone = BlipBackbone(config)
    assert backbone.layers == ("layer.0", "layer.1") and backbone.grid((128, 128)) == (16, 16)
    first = BlipBackbone.content_hash_of(config)
    # The budget is spent: the same command trains nothing and writes the same weights.
    pretrain(monkeypatch, pretrain_mini_blip, tmp_path)
    assert BlipBackbone.content_hash_of(config) == first


class TestCaptions:
    """What is true is decided by the picture's own label map."""

    def views(self, count: int = 60) -> list[blip_captions.View]:
        return [blip_captions.draw_view(index, np.random.default_rng(index)) for index in range(count)]

    def test_parts_are_there_or_not(self) -> None:
        for index, subject in enumerate(SUBJECTS):
            picture = render(subject, "pretrain", index)
            view = blip_captions.make_view(picture, subject, np.random.default_rng(0), whole=1.0)
            words = blip_captions.WORDS[subject]
            pixels = {word: int((picture.label == label).sum()) for label, word in enumerate(words, start=1)}
            assert view.shown == [word for word in words if pixels[word] >= blip_captions.SHOWN]
            assert view.absent == [word for word in words if pixels[word] == 0]
            assert all(colour in picture.caption for colour in view.colours.values())

    def test_truth(self) -> None:
        for view in self.views():
            told = blip_captions.captions(view, np.random.default_rng(0))
            assert told[0][1] and told[0][0].startswith(f"a {view.subject}")
            assert {True, False} == {truth for _, truth in told}
            for text, truth in told:
                words = text.split()
                if len(words) != 4:
                    continue
                word = blip_captions._SINGULAR.get(words[2], words[2])
                there = {*view.shown, *view.around, view.subject}
                assert (word in there) == truth, (text, view)

    @pytest.mark.release
    def test_no_word_tells_the_answer(self) -> None:
        """Weighted, a word is about as often true as false."""
        sums: Counter[tuple[str, bool]] = Counter()
        for index, view in enumerate(self.views(1500)):
            for text, truth in blip_captions.captions(view, np.random.default_rng(index)):
                if len(text.split()) == 4:
                    word = text.split()[2]
                    word = blip_captions._SINGULAR.get(word, word)
                    sums[word, truth] += blip_captions.weight(text, truth, blip_captions._TRUE)
        shares = {word: sums[word, True] / (sums[word, True] + sums[word, False]) for word, _ in sums}
        assert len(shares) > 28
        assert {word: share for word, share in shares.items() if not 0.33 < share < 0.67} == {}

    @pytest.mark.release
    @pytest.mark.parametrize("grid", blip_captions.GRIDS)
    def test_no_word_tells_the_answer_in_a_tile(self, grid: int) -> None:
        sums: Counter[tuple[str, bool]] = Counter()
        shares = tuple(float(kind == grid) for kind in (1, *blip_captions.GRIDS))
        for index in range(100):
            example = blip_captions.draw_example(4 * index, np.random.default_rng(index), shares)
            for caption in example.captions:
                *_, word, _ = caption.text.split()
                if len(caption.text.split()) == 4:
                    word = blip_captions._SINGULAR.get(word, word)
                    for truth, weight in zip(caption.tiles, caption.tile_weights, strict=True):
                        if truth is not None:
                            sums[word, truth] += weight
        true = {word: sums[word, True] / (sums[word, True] + sums[word, False]) for word, _ in sums}
        assert len(true) > 28
        assert {word: share for word, share in true.items() if not 0.2 < share < 0.8} == {}

    def test_mosaics(self) -> None:
        """What a caption of a mosaic says of a tile is what it says of the view that lies there."""
        seen = Counter()
        for index in range(40):
            example = blip_captions.draw_example(index, np.random.default_rng(index))
            grid = example.captions[0].grid
            seen[grid] += 1
            assert example.image.shape == (128, 128, 3) and example.described == (grid == 1)
            for caption in example.captions:
                assert caption.grid == grid and len(caption.tile_weights) == len(caption.tiles)
                if grid > 1:
                    known = [truth for truth in caption.tiles if truth is not None]
                    assert known and caption.truth == any(known)
                    weights = zip(caption.tiles, caption.tile_weights, strict=True)
                    assert all((weight > 0) == (truth is not None) for truth, weight in weights)
        assert set(seen) == {1, *blip_captions.GRIDS}
        views = [
            blip_captions.make_view(render("car", "pretrain", i), "car", np.random.default_rng(i), grid=2)
            for i in range(4)
        ]
        example = blip_captions.mosaic(views, np.random.default_rng(0))
        for place, view in enumerate(views):
            top, left = 64 * (place // 2), 64 * (place % 2)
            assert (example.image[top : top + 64, left : left + 64] == view.image).all()
            for caption in example.captions:
                word = caption.text.split()[-2]
                word = blip_captions._SINGULAR.get(word, word)
                if caption.text.count(" ") == 3 and caption.tiles[place] is not None:
                    assert caption.tiles[place] == (word in view.shown or word in view.around)

    def test_every_word_is_one_token(self) -> None:
        tokenizer = build_blip_tokenizer(vocabulary())
        for view in self.views():
            for text, _ in blip_captions.captions(view, np.random.default_rng(0)):
                assert len(tokenizer.tokenize(text)) == len(text.split())
        assert tokenizer.tokenize("Image of wheel.") == ["image", "of", "wheel", "."]
        assert "[UNK]" not in tokenizer.tokenize("Image of zebra crossing.")


@torch.no_grad()
def test_fused_attention_is_the_librarys() -> None:
    """The model that is trained gives what the model that is written will give."""
    torch.manual_seed(0)
    tokenizer = build_blip_tokenizer(vocabulary())
    trained = build_blip(tokenizer, width=64, layers=1).eval()
    plain = BlipForImageTextRetrieval(trained.config).eval()
    plain.load_state_dict(trained.state_dict())
    pixels = torch.randn(2, 3, 64, 64)
    ours, theirs = (m.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state for m in (trained, plain))
    same(ours, theirs, terms=64, steps=10)


def test_tiles() -> None:
    maps = torch.rand(4, 256)
    grids = [1, *blip_captions.GRIDS]
    found = by_tile(maps, torch.tensor(grids), torch.amax)
    for picture, grid, values in zip(maps.view(4, 16, 16), grids, found.tolist(), strict=True):
        side = 16 // grid
        starts = range(0, 16, side)
        tiles = [picture[y : y + side, x : x + side].max().item() for y in starts for x in starts]
        assert values == [*tiles, *[0.0] * (blip_captions.TILES - grid * grid)]
    torch.testing.assert_close(by_tile(maps, torch.ones(4).long(), torch.logsumexp)[:, 0], maps.logsumexp(1))


@torch.no_grad()
def test_packed_captions_are_read_as_alone() -> None:
    """Several captions in one sequence give the numbers that each gives by itself."""
    tokenizer = build_blip_tokenizer(vocabulary())
    torch.manual_seed(0)
    model = build_blip(tokenizer, width=32, layers=2).eval()
    for value in model.parameters():
        value.add_(0.2 * torch.randn_like(value))
    texts = [["image of wheel .", "a car with red body"], ["image of red tail ."]]
    told = [[Caption(text, True) for text in each] for each in texts]
    packed = pack(tokenizer, told)
    pixels = torch.randn(2, 3, 128, 128)
    states = model.vision_model(pixels).last_hidden_state
    hidden = packed.read(model, states)[packed.image, packed.start]
    repeated, of = pack_texts(tokenizer, [*told, [Caption("image of red tail .", False)]])
    found = read_texts(model, repeated, of)
    assert of.tolist() == [0, 1, 2, 2] and len(found.first) == 3
    for place, text in enumerate((*texts[0], *texts[1])):
        states = model.text_encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state
        same(found.first[place : place + 1], states[:, 0], terms=64, steps=20)
        tokens = torch.nn.functional.normalize(model.text_proj(states[0]), dim=-1)
        same(found.mean[place], tokens.mean(0), terms=64, steps=30)
    states = model.vision_model(pixels).last_hidden_state
    for row, (image, text) in enumerate([(0, texts[0][0]), (0, texts[0][1]), (1, texts[1][0])]):
        alone = model.text_encoder(
            **{key: tokenizer(text, return_tensors="pt")[key] for key in ("input_ids", "attention_mask")},
            encoder_hidden_states=states[image : image + 1],
        ).last_hidden_state[:, 0]
        same(hidden[row : row + 1], alone, terms=64, steps=20)  # two layers of ten products and norms
