"""Golden folders of another content in the layout of shared/golden/infoscore, to try the parity suite on.

`fresh` writes one with other numbers of everything: a random BLIP run by the stock library, image by image, with its
scores read by hooks; all that follows by the plain implementation of oracle_infoscore.py in float64. `perturb`
changes single arrays, which the suite must notice. CRF, transform and one-shot tuning are not in it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fixtures import oracle_infoscore as oracle
from tests.parity.golden_infoscore import MEAN, STD, Golden

IMAGES, SIDE, PATCH, LAYERS, HEADS, FULL = 5, 40, 8, 3, 2, 2
WORDS = {
    "background": ["grass", "blue sky", "a wide road"],
    "wheel": ["tyre"],
    "window": ["glass pane", "screen"],
    "plate": [],
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

Arrays = dict[str, np.ndarray]


def fresh(folder: Path, seed: int = 0) -> None:
    """A folder in which numbers of images, layers, heads, classes, prompts and tokens and all sizes differ."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    model, tokenizer = _blip(folder / "model", seed)
    levels = draw.integers(0, 200, (IMAGES, 3, 1, 1)) // 2 + draw.integers(0, 156, (IMAGES, 3, SIDE // 4, SIDE // 4))
    blocks = torch.from_numpy(levels).float().repeat_interleave(4, -1).repeat_interleave(4, -2) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    pixels = (blocks - mean) / std
    labels = draw.integers(0, len(WORDS) - 1, (IMAGES, SIDE, SIDE)).astype(np.uint8)  # the last class is absent
    labels[:, :, -PATCH:] = 255
    files: dict[str, Arrays] = {"inputs": {"images": pixels.numpy(), "labels": labels}}
    meta: dict[str, Any] = {"image_size": SIDE, "patch": PATCH, "num_layers": LAYERS, "N": IMAGES}
    meta["slice64_flat_indices_of_CHW"] = np.linspace(0, len(WORDS) * SIDE**2 - 1, 7).astype(int).tolist()
    for mode in ("single", "multi"):  # the ranking of the single list chooses the layers of both
        meta[mode], prompts, spans = _prompts(mode)
        read = _read(model, tokenizer(prompts, padding=True, return_tensors="pt"), pixels)
        maps = _write_maps(files, meta, mode, read, spans)
        if mode == "single":
            meta["top2_layers"] = _write_infoscore(files, maps)[:2]
        _write_class_maps(files, meta, mode, maps, spans, labels, draw)
        _write_table(folder / f"csv_{mode}.csv", files[f"iou_{mode}"]["iou_crf"])
    files["metric"] = _metric(draw)
    for name, arrays in files.items():
        _save(folder, name, arrays)
    (folder / "arrays.json").write_text(json.dumps({"meta": meta, "files": {}}))


def perturb(folder: Path, fed: tuple[str, ...], by: float = 0.02) -> dict[str, list[str]]:
    """Change every array of a folder, and the tables, but for inputs.npz and arrays that end as one of `fed`.

    The largest value of an array grows by more than `by`, whole numbers change in the first place, labels of the
    ensemble where they are surest. Returns file -> what was changed.
    """
    golden, changed = Golden(folder), {}
    for path in sorted(folder.glob("*.npz")):
        if path.stem == "inputs":
            continue
        values = {name: array.copy() for name, array in golden.arrays(path.stem).items()}
        names = [name for name in values if not name.endswith(fed)]
        for name in names:
            array = values[name]
            flat = array.reshape(-1)
            if name == "pred_nocrf":
                flat[values["margin_nocrf"].reshape(-1).argmax()] ^= 1
            elif array.dtype.kind in "iu":
                flat[0] ^= 1
            elif (flat == flat.round()).all():  # counts
                flat[0] += 1
            else:
                place = int(np.abs(flat).argmax())
                flat[place] = flat[place] * (1 + by) + by
        _save(folder, path.stem, values)
        changed[path.stem] = names
    for path in sorted(folder.glob("csv_*.csv")):
        _write_table(path, [value + by for value in golden.table(path.stem).values()])
        changed[path.stem.replace("csv", "iou")].append(path.name)
    return changed


def _blip(folder: Path, seed: int) -> tuple[Any, Any]:
    """A stock model with random weights, large enough for scores that differ, saved with its tokenizer."""
    from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval

    folder.mkdir()
    words = sorted({word for name, related in WORDS.items() for text in (name, *related) for word in text.split()})
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, "image", "of", ".", *words]) + "\n")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    text = {
        "vocab_size": 64, "hidden_size": 24, "encoder_hidden_size": 32, "intermediate_size": 40,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "max_position_embeddings": 24,
        "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 32, "patch_size": PATCH,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16))
        with torch.no_grad():
            for name, values in model.named_parameters():
                if name.endswith("weight") and values.ndim > 1 and "text_encoder.embeddings" not in name:
                    values.normal_(std=_gain(name) / values[0].numel() ** 0.5)
                elif name.endswith((".bias", "_embedding")):
                    values.normal_(std=0.2)
    tokenizer.save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return model, tokenizer


def _gain(name: str) -> float:
    """Scale of a weight matrix: sharp attention to the image, mild branches, so that neither words nor patches become
    alike on the way."""
    if "crossattention.self.query" in name or "itm_head" in name or "patch_embedding" in name:
        return 2.0
    return 0.6 if name.startswith("text_encoder") and "output.dense" in name else 1.0


def _prompts(mode: str) -> tuple[dict[str, Any], list[str], list[tuple[int, int]]]:
    """What arrays.json says of a mode, its prompts and spans."""
    prompts: list[str] = []
    spans = []
    for index, (name, related) in enumerate(WORDS.items()):
        own = [name, *(related if index == 0 or mode == "multi" else [])]
        spans.append((len(prompts), len(prompts) + len(own)))
        prompts += [f"Image of {word}." for word in own]
    told = {"prompts": prompts, "class_names": list(WORDS), "class_to_span": {str(k): s for k, s in enumerate(spans)}}
    return told, prompts, spans


@torch.no_grad()
def _read(model: Any, tokens: Any, pixels: torch.Tensor) -> Arrays:
    """Everything that needs the model, one image after the other, by its own modules and hooks on queries and keys."""
    layers = [layer.crossattention.self for layer in model.text_encoder.encoder.layer]
    seen: dict[tuple[int, str], torch.Tensor] = {}
    for index, layer in enumerate(layers):
        for name in ("query", "key"):
            getattr(layer, name).register_forward_hook(lambda _, __, out, at=(index, name): seen.__setitem__(at, out))
    count, rows = len(tokens["input_ids"]), []
    for image in pixels:
        states = model.vision_model(image[None], interpolate_pos_encoding=True).last_hidden_state
        shown = states.expand(count, -1, -1)
        hidden = model.text_encoder(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=shown,
            encoder_attention_mask=torch.ones(shown.shape[:2], dtype=torch.long),
            return_dict=True,
        ).last_hidden_state
        scores = []
        for index in range(len(layers)):
            query, key = (
                seen[index, name].unflatten(-1, (HEADS, -1)).transpose(1, 2).double() for name in ("query", "key")
            )
            scores.append(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5)
        match = model.itm_head(hidden).softmax(-1)[..., 1]
        rows.append((states[0], hidden, match, torch.stack(scores)))
    states, hidden, match, raw = (torch.stack(part).float().numpy() for part in zip(*rows, strict=True))
    return {
        "input_ids": tokens["input_ids"].numpy(), "attention_mask": tokens["attention_mask"].numpy(),
        "image_embeds": states, "question_embeds": hidden, "itm_prob_tokens": match, "scores": raw,
    }  # fmt: skip


def _write_maps(
    files: dict[str, Arrays], meta: dict[str, Any], mode: str, read: Arrays, spans: Sequence[tuple[int, int]]
) -> np.ndarray:
    """model_ and attn_ files; returns prompt maps [N,L,P,h*w]."""
    scores, mask = read.pop("scores"), read["attention_mask"]
    match = np.stack([oracle.matching(each) for each in read["itm_prob_tokens"]])
    files[f"model_{mode}"] = {**read, "itm_scores": match.astype(np.float32)}
    sums = np.array([[oracle.token_sum(layer, mask) for layer in image] for image in scores])
    maps = np.array([[oracle.prompt_map(a, r) for a in image] for image, r in zip(sums, match, strict=True)])
    flat = scores.reshape(*scores.shape[:2], -1).astype(np.float64)
    stats = [flat.mean(-1), flat.std(-1), flat.min(-1), flat.max(-1), np.sqrt((flat**2).sum(-1))]
    files[f"attn_{mode}"] = {
        "scores": scores[:FULL],
        "scores_checksum": np.stack(stats, -1),
        "score_slice": flat[..., np.linspace(0, flat.shape[-1] - 1, 9).astype(int)].astype(np.float32),
        "token_sum": sums.astype(np.float32),
        "prompt_maps": maps.reshape(*maps.shape[:3], SIDE // PATCH, SIDE // PATCH).astype(np.float32),
    }
    return maps


def _write_infoscore(files: dict[str, Arrays], maps: np.ndarray) -> list[int]:
    """infoscore.npz; returns the ranking."""
    grid, size = (SIDE // PATCH,) * 2, (SIDE, SIDE)
    shares = np.array([[oracle.shares(each, grid, size) for each in image] for image in maps])
    marginal = shares.mean((-1, -2))
    found, flat = oracle.infoscore(marginal), shares.reshape(*shares.shape[:2], -1)
    arrays = {
        "marginal": marginal, "prompt_maps": maps.reshape(*maps.shape[:3], *grid),
        "image_entropy": found.image_entropy, "mean_image_entropy": found.mean_image_entropy,
        "dataset_marginal": found.mean, "dataset_entropy": found.dataset_entropy, "welford_mean": found.mean,
        "welford_std": found.std, "cov": found.cov, "entropy_ratio": found.ratio, "infoscore": found.score,
    }  # fmt: skip
    files["infoscore"] = {name: values.astype(np.float32) for name, values in arrays.items()}
    stats = [flat.mean(-1), flat.std(-1, ddof=1), flat.min(-1), flat.max(-1)]
    files["infoscore"] |= {"norm_map_stats": np.stack(stats, -1), "ranking": np.array(found.ranking)}
    return found.ranking


def _write_class_maps(
    files: dict[str, Arrays],
    meta: dict[str, Any],
    mode: str,
    maps: np.ndarray,
    spans: Sequence[tuple[int, int]],
    labels: np.ndarray,
    draw: np.random.Generator,
) -> None:
    """unary_, top2_ and iou_ files and the means of arrays.json. The CRF's labels are made up."""
    grid, size, top = (SIDE // PATCH,) * 2, (SIDE, SIDE), meta["top2_layers"]
    classes = np.array([[oracle.class_map(each, spans) for each in image] for image in maps])
    single = np.array([[oracle.unary([each], grid, size) for each in image] for image in classes])  # [N,L,C,H,W]
    flat = single.reshape(*single.shape[:2], -1)
    stats = np.stack([flat.mean(-1), flat.std(-1), flat.min(-1), flat.max(-1)], -1)
    files[f"unary_{mode}_layers"] = {
        **{f"unary_layer{layer}": single[:FULL, layer].astype(np.float32) for layer in range(LAYERS)},
        "checksums": np.concatenate([stats, flat[..., meta["slice64_flat_indices_of_CHW"]]], -1),
    }
    unary = np.array([oracle.unary([image[layer] for layer in top], grid, size) for image in classes])
    best = np.sort(unary, 1)
    labelled = {"crf": draw.integers(0, len(WORDS), labels.shape).astype(np.uint8), "nocrf": unary.argmax(1)}
    files[f"top2_{mode}"] = {
        "unary": unary.astype(np.float32),
        "pred_nocrf": labelled["nocrf"].astype(np.uint8),
        "pred_crf": labelled["crf"],
        "margin_nocrf": (best[:, -1] - best[:, -2]).astype(np.float16),
        "margin_crf": np.ones(labels.shape, np.float16),
    }
    iou = files.setdefault(f"iou_{mode}", {})
    for kind, prediction in labelled.items():
        inter, union, target = _counts(prediction, labels, len(WORDS))
        per_class, mean = oracle.iou(inter, union)
        iou |= {f"inter_{kind}": inter, f"union_{kind}": union, f"iou_{kind}": per_class, f"miou_{kind}": mean}
        iou |= {"target_crf": target} if kind == "crf" else {}
        meta[mode][f"mean_iou_{kind}"] = mean
    every = [oracle.iou(*_counts(single[:, layer].argmax(1), labels, len(WORDS))[:2]) for layer in range(LAYERS)]
    iou |= {"iou_layers_nocrf": np.array([each for each, _ in every])}
    iou |= {"miou_layers_nocrf": np.array([mean for _, mean in every])}
    meta[mode]["mean_iou_single_layers_nocrf"] = [mean for _, mean in every]


def _counts(prediction: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intersection, union, label pixels, float32 [N,C] each."""
    rows = [oracle.pixel_counts(p, t, classes) for p, t in zip(prediction, labels, strict=True)]
    inter, union, target = (np.stack(part).astype(np.float32) for part in zip(*rows, strict=True))
    return inter, union, target


def _metric(draw: np.random.Generator) -> Arrays:
    """Two cases: a class that is absent everywhere; labels outside the classes."""
    arrays: Arrays = {}
    for case, classes, values in (("P", 4, [0, 1, 3, 255]), ("Q", 3, [0, 1, 2, 9, 255])):
        label = draw.choice(values, (3, 11, 17)).astype(np.uint8)
        prediction = draw.choice([value for value in values if value < classes], label.shape).astype(np.uint8)
        inter, union, target = _counts(prediction, label, classes)
        per_class, mean = oracle.iou(inter, union)
        parts = {"pred": prediction, "label": label, "inter": inter, "union": union, "target": target}
        arrays |= {f"{case}_{name}": values for name, values in {**parts, "iou": per_class, "miou": mean}.items()}
    return arrays


def _write_table(path: Path, iou: Iterable[float]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("Class Name", "IoU"), *zip(WORDS, map(float, iou), strict=True)])


def _save(folder: Path, name: str, arrays: Mapping[str, Any]) -> None:
    values = {key: np.ascontiguousarray(value).reshape(np.shape(value)) for key, value in arrays.items()}
    np.savez_compressed(folder / f"{name}.npz", **values)  # type: ignore[arg-type]
