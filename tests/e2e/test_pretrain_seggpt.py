"""`python -m data_prep.pretrain.mini_seggpt` from nothing to a model folder, in seconds; and what its pairs show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.pretrain import mini_seggpt as pretrain_mini_seggpt
from data_prep.pretrain import seggpt_export, seggpt_pairs
from data_prep.pretrain.seggpt_pairs import SUBJECTS, draw_colours, draw_pair, shapes
from slime_bench.backbones.seggpt import SegGptBackbone
from slime_bench.backbones.weights import check_hashes
from slime_bench.data.mini_world.render import STREAM, Picture, render
from slime_bench.data.mini_world.subjects import CLASSES
from tests.fixtures.pretraining import pretrain


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"hidden_size": 24, "num_hidden_layers": 6, "num_attention_heads": 2, "decoder_hidden_size": 4}
    monkeypatch.setattr(pretrain_mini_seggpt, "SIZE", size)
    few = tuple(replace(stage, images=4, batch=2) for stage in pretrain_mini_seggpt.STAGES)
    monkeypatch.setattr(pretrain_mini_seggpt, "STAGES", few)
    monkeypatch.setattr(seggpt_pairs, "WINDOW", 4)
    measure = seggpt_export.measure
    monkeypatch.setattr(seggpt_export, "measure", lambda backbone: measure(backbone, pictures=2))


@pytest.mark.release
def test_from_nothing_to_a_model(tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretrain(monkeypatch, pretrain_mini_seggpt, tmp_path)
    model = tmp_path / "model"
    check_hashes(model)
    card = json.loads((model / "card.json").read_text())
    assert set(card["stages"]) == {stage.name for stage in pretrain_mini_seggpt.STAGES}
    assert card["stages"]["seggpt128"]["steps"] == 2
    assert set(card["measured"]) == {"car", "horse", "face"}
    assert set(card["measured"]["car"]) == {"1 prompt", "4 prompts", "parts"}
    assert "never a car" in (model / "README.md").read_text()
    config = SegGptBackbone.Config(weights=str(model))
    assert SegGptBackbone(config).facts.side == 128
    first = SegGptBackbone.content_hash_of(config)
    # The budget is spent: the same command trains nothing and writes the same weights.
    pretrain(monkeypatch, pretrain_mini_seggpt, tmp_path)
    assert SegGptBackbone.content_hash_of(config) == first


def test_bytes() -> None:
    """In half precision at most 12 MB."""
    assert 2 * sum(each.numel() for each in pretrain_mini_seggpt.build_seggpt().parameters()) < 12e6


class TestPairs:
    def test_are_functions_of_their_number(self) -> None:
        one, other = (draw_pair(3, 64, np.random.default_rng(1)) for _ in range(2))
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
        assert one.images.shape == one.masks.shape == (2, 64, 64, 3) and one.images.dtype == np.uint8

    def test_fixed_colours_tell_the_part_whatever_the_prompt(self) -> None:
        """And every part of both subjects has its own."""
        seen: dict[str, set[bytes]] = {}
        for index in range(12):
            masks = draw_pair(index, 64, np.random.default_rng(index), fixed=True).masks
            colours = {each.tobytes() for each in masks.reshape(-1, 3)} - {bytes(3)}
            seen.setdefault(SUBJECTS[index % len(SUBJECTS)], set()).update(colours)
        parts = {subject: len(CLASSES[subject]) - 1 for subject in SUBJECTS}
        assert {subject: len(each) for subject, each in seen.items()} == parts
        assert not set.intersection(*seen.values())

    def test_show_no_car(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = set()

        def rendered(subject: str, index: int) -> Picture:
            seen.add(subject)
            return render(subject, STREAM, index)

        monkeypatch.setattr(seggpt_pairs, "stream_picture", rendered)
        monkeypatch.setattr(seggpt_pairs, "WINDOW", 2)
        for index in range(12):
            draw_pair(index, 64, np.random.default_rng(index))
        assert seen == set(SUBJECTS) == {"horse", "face"}

    def test_colours(self) -> None:
        """Something of the prompt is always painted, otherwise than the rest; some draws are white on black."""
        label = np.zeros((64, 64), dtype=np.uint8)
        label[:20], label[20:30], label[30:40] = 1, 2, 3
        binary = 0
        for seed in range(300):
            colours = draw_colours(label, np.random.default_rng(seed))
            assert (colours[:4] != colours[255]).any() and (colours[4:] == colours[255]).all()
            binary += bool(np.isin(colours, (0, 255)).all())
        assert 80 < binary < 160
        assert draw_colours(np.zeros_like(label), np.random.default_rng(0)).any(), "of an empty picture the rest"

    def test_shapes_are_the_same_in_both_pictures(self) -> None:
        for seed in range(20):
            (first, labels), (second, others) = shapes(np.random.default_rng(seed))
            assert first.shape == second.shape == (128, 128, 3) and (first != second).any()
            assert labels.any() and others.any() and max(labels.max(), others.max()) <= 6
