"""The bundled mini BLIP: loads as any other, is what its card says, and its attention means something."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from slime_bench.attention.image_text import token_maps
from slime_bench.backbones.blip import BlipBackbone
from slime_bench.backbones.weights import ASSETS, check_hashes

MINI = ASSETS / "mini_blip"


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return dict(json.loads((MINI / "card.json").read_text()))


def test_files_are_those_that_were_measured(card: dict[str, Any]) -> None:
    check_hashes(MINI)
    listed = set(json.loads((MINI / "sha256.json").read_text()))
    present = {path.name for path in MINI.iterdir() if path.suffix in {".json", ".txt", ".safetensors"}}
    assert present - listed == {"card.json", "sha256.json"}
    assert sum(path.stat().st_size for path in MINI.glob("*.safetensors")) < 12_000_000


def test_it_is_the_librarys_model(card: dict[str, Any]) -> None:
    from transformers import AutoTokenizer, BlipForImageTextRetrieval

    model, info = BlipForImageTextRetrieval.from_pretrained(MINI, local_files_only=True, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert sum(value.numel() for value in model.parameters()) == card["parameters"]
    assert model.config.vision_config.patch_size == 8 and model.config.vision_config.image_size == 128
    tokenizer = AutoTokenizer.from_pretrained(MINI, local_files_only=True)
    assert tokenizer.tokenize("Image of wheel.") == ["image", "of", "wheel", "."]


def test_the_world_is_the_one_it_was_trained_on(card: dict[str, Any]) -> None:
    from slime_bench.data.mini_world.render import WORLD_VERSION

    assert card["world_version"] == WORLD_VERSION


def test_the_card_shows_that_words_matter(card: dict[str, Any]) -> None:
    """Measured on held-out views by the training command; a coin would have 0.5."""
    measured = card["measured"]
    for kind in ("long", "part", "colour", "scene"):
        assert (measured[kind]["right"] + measured[kind]["wrong"]) / 2 > 0.6, kind
    assert measured["attribute_swap"] > 0.55 and measured["attribute_swap_pairs"] > 300


@torch.no_grad()
def test_attention_finds_the_parts() -> None:
    """On validation pictures a part's own patches score higher than the rest: area under the curve, chance 0.5."""
    from scipy.stats import rankdata

    from slime_bench.data.mini_world.render import render
    from slime_bench.data.mini_world.subjects import CLASSES

    backbone = BlipBackbone(BlipBackbone.Config())
    areas = []
    for subject, classes in CLASSES.items():
        words = [name.removeprefix("neck+") for name in classes[1:]]
        prompts = backbone.tokenize([f"Image of {word}." for word in words])
        for index in range(6):
            picture = render(subject, "val", index)
            image = torch.from_numpy(picture.image).permute(2, 0, 1)[None].float() / 255
            found = backbone.read(
                backbone.encode_images(image),
                prompts,
                lambda scores, mask=prompts.mask: token_maps(scores, mask, prefix=1),
            )
            maps = torch.stack(list(found.maps.values())).mean(0)[0].numpy()
            for place in range(len(words)):
                share = (picture.label == place + 1).reshape(16, 8, 16, 8).mean((1, 3)).ravel()
                own, other = maps[place][share > 0.4], maps[place][share == 0]
                if len(own) and len(other):
                    ranks = rankdata(np.concatenate([own, other]))[: len(own)]
                    areas.append((ranks.sum() - len(own) * (len(own) + 1) / 2) / (len(own) * len(other)))
    assert len(areas) > 60 and np.mean(areas) > 0.7
