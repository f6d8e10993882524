"""`python -m data_prep.pretrain_mini_blip` from nothing to a model folder, in seconds; and what its captions say."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep import blip_captions, blip_export, pretrain_mini_blip
from data_prep.blip_losses import pack
from data_prep.blip_models import build_blip, build_tokenizer
from data_prep.mini_world import SUBJECTS, render, vocabulary


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_mini_blip, "SIZE", {"width": 32, "layers": 2})
    monkeypatch.setattr(pretrain_mini_blip, "BATCH", {"cpu": {64: 2, 128: 2}})
    measure = blip_export.measure
    monkeypatch.setattr(blip_export, "measure", lambda *arguments: measure(*arguments, pictures=40))


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    fixed = ["--device", "cpu", "--processes", "1", "--work", str(folder / "work"), "--out", str(folder / "model")]
    monkeypatch.setattr(sys, "argv", ["pretrain_mini_blip", *fixed, *arguments])
    pretrain_mini_blip.main()


def test_from_nothing_to_a_model(tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from slime_bench.backbones.blip import BlipBackbone
    from slime_bench.backbones.locate import check_hashes

    run(monkeypatch, tmp_path, "--minutes", "0.05")
    model = tmp_path / "model"
    check_hashes(model)
    card = json.loads((model / "card.json").read_text())
    assert set(card["stages"]) == {"blip64", "blip128"} and card["stages"]["blip128"]["steps"] > 0
    assert "Held out" in (model / "README.md").read_text() and card["measured"]["attribute_swap_pairs"] > 10
    config = BlipBackbone.Config(weights=str(model), image_size=128)
    backbone = BlipBackbone(config)
    assert backbone.layers == ("layer.0", "layer.1") and backbone.grid((128, 128)) == (16, 16)
    first = BlipBackbone.content_hash_of(config)
    # The budget is spent: the same command trains nothing and writes the same weights.
    run(monkeypatch, tmp_path, "--minutes", "0.05")
    assert BlipBackbone.content_hash_of(config) == first


def test_nothing_to_export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing to export"):
        run(monkeypatch, tmp_path, "--export-only")


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
            assert view.shown == [word for word in words if pixels[word] >= 16]
            assert view.absent == [word for word in words if pixels[word] == 0]
            assert all(colour in picture.caption for colour in view.colours.values())

    def test_surroundings(self) -> None:
        for index in range(30):
            picture = render("car", "pretrain", index)
            assert set(np.unique(picture.scene)) <= {0, 1, 2, 3}
            assert ((picture.scene == 0) == (picture.label > 0)).all()
            surfaces = picture.caption.split(" , on ")[1].split(" and ")
            assert (picture.scene == 2).any() <= (len(surfaces) == 2)

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

    def test_no_word_tells_the_answer(self) -> None:
        """Weighted, a word is about as often true as false."""
        sums: Counter[tuple[str, bool]] = Counter()
        for view in self.views(1500):
            for text, truth in blip_captions.captions(view, np.random.default_rng(1)):
                if len(text.split()) == 4:
                    word = text.split()[2]
                    word = blip_captions._SINGULAR.get(word, word)
                    sums[word, truth] += blip_captions.weight(text, truth)
        shares = {word: sums[word, True] / (sums[word, True] + sums[word, False]) for word, _ in sums}
        assert len(shares) > 28 and all(0.33 < share < 0.67 for share in shares.values()), shares

    def test_every_word_is_one_token(self) -> None:
        tokenizer = build_tokenizer(vocabulary())
        for view in self.views():
            for text, _ in blip_captions.captions(view, np.random.default_rng(0)):
                assert len(tokenizer.tokenize(text)) == len(text.split())
        assert tokenizer.tokenize("Image of wheel.") == ["image", "of", "wheel", "."]
        assert "[UNK]" not in tokenizer.tokenize("Image of zebra crossing.")


@torch.no_grad()
def test_packed_captions_are_read_as_alone() -> None:
    """Several captions in one sequence give the numbers that each gives by itself."""
    tokenizer = build_tokenizer(vocabulary())
    torch.manual_seed(0)
    model = build_blip(tokenizer, width=32, layers=2).eval()
    for value in model.parameters():
        value.add_(0.2 * torch.randn_like(value))
    told = [[("image of wheel .", True), ("a car with red body", False)], [("image of red tail .", True)]]
    packed = pack(tokenizer, told)
    states = model.vision_model(torch.randn(2, 3, 128, 128)).last_hidden_state
    hidden = model.text_encoder(
        input_ids=packed.ids, position_ids=packed.positions, attention_mask=packed.mask, encoder_hidden_states=states
    ).last_hidden_state[packed.image, packed.start]
    for row, (image, text) in enumerate([(0, told[0][0][0]), (0, told[0][1][0]), (1, told[1][0][0])]):
        alone = model.text_encoder(
            **{key: tokenizer(text, return_tensors="pt")[key] for key in ("input_ids", "attention_mask")},
            encoder_hidden_states=states[image : image + 1],
        ).last_hidden_state[:, 0]
        torch.testing.assert_close(hidden[row : row + 1], alone, rtol=0, atol=1e-5)
