"""Write a trained mini BLIP as fp16 safetensors in the hub's layout, with a card of figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertTokenizer, BlipForImageTextRetrieval

from data_prep.pretrain.blip_captions import PLURALS, WORDS, Caption, View, captions, draw_view
from data_prep.pretrain.blip_layers import measure_layers
from data_prep.pretrain.blip_losses import normalised, pack
from data_prep.pretrain.blip_matcher import Matcher
from data_prep.pretrain.export import export_model, parameter_count
from data_prep.pretrain.models import build_blip, build_blip_tokenizer
from data_prep.pretrain.trainloop import averaged_weights
from data_prep.pretrain.vae import HELD_OUT
from slime_bench.data.mini_world.render import vocabulary
from slime_bench.seeding import numpy_generator

KINDS = ("long", "part", "colour", "scene")
"""Of captions: a description, "Image of wheel.", "Image of black wheel.", "Image of grass." or "Image of car."."""


def export(work: Path, out: Path, size: Mapping[str, int], stages: Sequence[str], device: torch.device) -> None:
    """Averaged weights of the last stage in `work` -> the folder `out`, replaced when the new one is complete."""

    def write(folder: Path) -> dict[str, Any]:
        tokenizer = build_blip_tokenizer(vocabulary())
        matcher = Matcher(build_blip(tokenizer, **size))
        matcher.load_state_dict(averaged_weights(work, stages[-1]))
        matcher.model.to(torch.float16).save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        # Measure what was written, not what was trained: half precision included.
        loaded = BlipForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        measured = measure(loaded.to(device).eval(), tokenizer, device)
        return {
            "parameters": parameter_count(loaded),
            "measured": measured | {"layers": measure_layers(folder, device)},
        }

    export_model(out, work, stages, device, write, PAGE)


@torch.no_grad()
def measure(
    model: BlipForImageTextRetrieval, tokenizer: BertTokenizer, device: torch.device, pictures: int = 600
) -> dict[str, Any]:
    """Held-out figures on whole pictures and on cut-outs: share of captions judged right, by kind and truth.

    Returns:
        per kind `right`: share of true captions with a match probability above one half; `wrong`: share of false ones
        below; `number`: captions of the kind. `attribute_swap`: share of pairs of a caption and the same with one
        colour swapped in which the true one has the higher probability.
    """
    judged: dict[tuple[str, bool], list[bool]] = {(kind, truth): [] for kind in KINDS for truth in (True, False)}
    swaps: list[bool] = []
    for index in range(HELD_OUT, HELD_OUT + pictures):
        rng = numpy_generator(0, "measure mini_blip", index)
        view = draw_view(index, rng)
        told, pair = captions(view, rng), swap_pair(view, rng)
        packed = pack(tokenizer, [[Caption(*each) for each in (*told, *pair)]]).to(device)
        pixels = normalised(torch.from_numpy(np.stack([view.image])).to(device))
        hidden = packed.read(model, model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state)
        values = model.itm_head(hidden[packed.image, packed.start]).float().softmax(-1)[:, 1].tolist()
        for (text, truth), value in zip(told, values, strict=False):
            judged[kind_of(text), truth].append((value > 0.5) == truth)
        if pair:
            swaps.append(values[-2] > values[-1])
    facts: dict[str, Any] = {
        kind: {
            "right": round(float(np.mean(judged[kind, True])), 4),
            "wrong": round(float(np.mean(judged[kind, False])), 4),
            "number": len(judged[kind, True]) + len(judged[kind, False]),
        }
        for kind in KINDS
    }
    return {**facts, "attribute_swap": round(float(np.mean(swaps)), 4), "attribute_swap_pairs": len(swaps)}


def swap_pair(view: View, rng: np.random.Generator) -> list[tuple[str, bool]]:
    """The colours of two parts of a view, and the same with the two colours exchanged; [] where they cannot differ."""
    words = [word for word in view.shown if word in view.colours]
    different = [(a, b) for a in words for b in words if a < b and view.colours[a] != view.colours[b]]
    if not different or view.others:
        return []
    first, second = different[int(rng.integers(len(different)))]
    a, b = view.colours[first], view.colours[second]
    text = "a {} with {} {} , {} {}"
    return [
        (text.format(view.subject, a, first, b, second), True),
        (text.format(view.subject, b, first, a, second), False),
    ]


def kind_of(text: str) -> str:
    """Which of `KINDS` a caption is."""
    if not text.startswith("image of"):
        return "long"
    word, *more = text.split()[2:-1]
    return "colour" if more else "part" if word in _PARTS else "scene"


_PARTS = {word for words in WORDS.values() for word in words} | set(PLURALS.values())


PAGE = """# mini_blip: a small BLIP (image-text matching), trained from scratch on the mini world

Made by `python -m data_prep.pretrain.mini_blip`. It is a test and teaching model: it knows cars, horses and faces of
the procedural world and nothing else.

Data: rendered on the fly by `slime_bench/data/mini_world`, split `pretrain`, which shares no picture with support, val
or test. Whole pictures, cut-outs, and mosaics of 4, 16 or 64 of them, with true and false captions. Whether a part is
in a view (at least 40 pixels of it) comes from the renderer, which also tells where a part is to cut around; where in a
view it lies was never told, and no mask entered a loss. Weights are fp16 safetensors; 8-pixel patches, 16x16 of them.

Training: the stages follow one another, each with a new optimiser from the averaged weights of the one before, in half
precision; the last one's learning rate falls to 2 %.

Losses: image-text matching on true captions and on captions with one word wrong (the colour of a part, mostly that of
another part of the view; a part that is not there; the scene); contrast of images and descriptions; two fine-grained
contrasts, of words with patches and of the cross-attention's largest scores, in which a caption has to be found in the
tiles of a mosaic of which it is true and in no other; and a small pull of the cross-attention's log-sum-exp towards 0,
which keeps the scores of different prompts on one scale. Without the mosaics a patch said little of its own place. The
contrast of attention scores is asked of the two middle layers alone, so that layers have roles, as in released models.

`right`, `wrong`: share of true and of false captions on the right side of a match probability of one half: descriptions
with one word changed (`long`), "Image of wheel." (`part`), "Image of black wheel." (`colour`), "Image of grass." or
"Image of car." (`scene`). `attribute_swap`: two parts' colours exchanged; how often the true caption has the higher
probability (chance: 0.5). `layers`: zero-shot mIoU by the two layers that InfoScore puts first and by every layer
alone, without refinement, and Spearman's rho between the two orders.
"""
