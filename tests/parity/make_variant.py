"""Golden folders of another content in the layout of shared/golden/slime, to try the parity suite on.

`python -m tests.parity.make_variant fresh FOLDER` writes one with other numbers of everything, made by the plain
implementation of `reference_slime` in float64 on small random models. `... cut FOLDER` copies the golden folder
without most of it and under another name. `perturb` changes single arrays, which the suite must notice.

`... small FOLDER` cuts out of the golden folder what can be checked without its models: tests/parity/data.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from slime_bench.bench import reference_slime as oracle
from tests.parity.golden import Arrays, chosen_folder, module_name

K, TOKENS, WIDTH, SIDE, TRAIN_SIDE = 4, 12, 24, 256, 32
CROSS = [f"up_blocks[{b}].attentions[{a}].transformer_blocks[0].attn2" for b, a in ((1, 1), (2, 0))]
SELF = [f"up_blocks[3].attentions[{a}].transformer_blocks[0].attn1" for a in (0, 1)]
GRIDS = {(1, SIDE): ((0.1, 64), (0.1, SIDE), (0.999, 64)), (2, 192): ((0.1, 128), (0.12, SIDE))}
STEPS, GATE, LEARNING_RATE = 3, 0.11, 0.1
IN_STEP = f"in-step prediction (num_patchs_per_side=1, patch {SIDE}, output {TRAIN_SIDE}, threshold {GATE}) (t=77)"


def fresh(folder: Path, seed: int = 0) -> None:
    """A folder in which the number of classes, tokens, layers, steps, all sizes, gates, grids and the name differ."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    maker = _Maker(folder)
    maker.write_inputs()
    maker.write_train()
    maker.write_trajectory()
    maker.write_predictions()
    _write_metric(folder)
    _write_utilities(folder)
    _write_item(folder)


def cut(source: Path, folder: Path, flavour: str, name: str, case: str, grid: str, steps: int) -> None:
    """A copy of `source` with one U-Net, called `name`; of it one training step, one grid, the first steps."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.npz", "unet_*", "sd*.json"))
    folder.chmod(0o755)
    shutil.copytree(source / f"unet_{flavour}", folder / f"unet_{name}")
    for file in ("inputs", "metric", "dataset_item"):
        shutil.copy(source / f"{file}.npz", folder)
    keep: dict[str, Callable[[str], bool]] = {
        "train": lambda array: array.startswith(f"{case}_"),
        "traj": lambda array: True,
        "infer": lambda array: array.startswith(f"{grid}/"),
    }
    for kind, wanted in keep.items():
        arrays = Arrays(source / f"{flavour}_{kind}.npz")
        kept = {array: arrays[array] for array in arrays if wanted(array)}
        if kind == "traj":
            kept = {array: values[:steps] for array, values in kept.items()}
        _save(folder, f"{name}_{kind}", kept, {array: arrays.text(array) for array in kept})


SMALL = {
    "sd21_train": {
        f"A_{name}": name
        for name in ("cross_logits", "pixel_weights", "self_query_pixels", "self_rows", "was", "loss1", "loss2",
                     "sd_loss", "loss_total", "noise", "noise_pred")
    },
    "sd21_infer": {
        f"grid1x512/{name}": f"test_{name.split('/')[-1]}"
        for name in ("probs", "self_rows0", "thr0.2/out64/final_attention_map", "thr0.2/out64/final_mask")
    },
    "inputs": {"mask64": "mask"},
}  # fmt: skip


def small(source: Path, folder: Path) -> None:
    """Write slime_small.npz, its descriptor, and copies of metric.npz and utils.json; see data/README.md."""
    arrays: dict[str, np.ndarray] = {}
    texts: dict[str, str] = {}
    for file, names in SMALL.items():
        golden = Arrays(source / f"{file}.npz")
        for theirs, ours in names.items():
            arrays[ours], texts[ours] = golden[theirs], f"{file}.npz, {theirs}: {golden.text(theirs)}"
    folder.mkdir(exist_ok=True)
    _save(folder, "slime_small", arrays, texts)
    for name in ("metric.npz", "metric.json", "utils.json"):
        shutil.copyfile(source / name, folder / name)


def perturb(folder: Path, changes: Mapping[str, Iterable[str]], by: float = 0.02) -> None:
    """Change arrays of a folder: file -> arrays; each gets `by` on its largest value, a label map one other pixel."""
    for file, names in changes.items():
        arrays = Arrays(folder / f"{file}.npz")
        values = {name: arrays[name] for name in arrays}
        for name in names:
            flat = values[name].reshape(-1)
            place = int(np.nanargmax(np.abs(flat.astype(float))))
            flat[place] = flat[place] * (1 + by) + by if flat.dtype.kind == "f" else flat[place] ^ 1
        _save(folder, file, values, {name: arrays.text(name) for name in arrays})


def _save(folder: Path, file: str, arrays: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    values = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    np.savez_compressed(folder / f"{file}.npz", **values)  # type: ignore[arg-type]
    facts = {
        name: {"shape": list(value.shape), "dtype": str(value.dtype), "meaning": texts.get(name, "")}
        for name, value in values.items()
    }
    (folder / f"{file}.json").write_text(json.dumps(facts, indent=1))


def _plain(value: torch.Tensor) -> np.ndarray:
    value = value.detach()
    return value.float().numpy() if value.is_floating_point() else value.numpy()


class _Maker:
    """Writes the arrays that need the models; everything is computed in float64."""

    def __init__(self, folder: Path, flavour: str = "other") -> None:
        self.folder, self.flavour = folder, flavour
        self.unet, self.vae, self.schedule = _models(folder, flavour)
        self.image = torch.randint(0, 256, (3, SIDE // 32, SIDE // 32)).float()
        self.image = oracle.resize(self.image, (SIDE, SIDE)).round().byte()
        coarse = torch.randint(0, K, (SIDE // 32, SIDE // 32))
        coarse[0, :K] = torch.arange(K)
        self.mask = coarse.repeat_interleave(32, 0).repeat_interleave(32, 1)
        self.empty, self.text = torch.randn(2, 1, TOKENS, WIDTH).float().double()
        self.names = [module_name(name) for name in CROSS], [module_name(name) for name in SELF]

    def write_inputs(self) -> None:
        self.masks = {f"mask{TRAIN_SIDE}": self.mask[:: SIDE // TRAIN_SIDE, :: SIDE // TRAIN_SIDE]}
        absent = self.masks[f"mask{TRAIN_SIDE}"].clone()
        absent[absent == 1] = 0
        self.masks[f"mask{TRAIN_SIDE}_noclass1"] = absent
        arrays = {"image_u8": self.image, f"mask{SIDE}": self.mask.byte()}
        arrays |= {name: mask.byte() for name, mask in self.masks.items()}
        arrays |= {"uncond_embedding": self.empty, "text_embedding": self.text}
        _save(self.folder, "inputs", {name: _plain(value) for name, value in arrays.items()}, {})

    def encode(self, image: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Scaled latents [P,4,h,w] of images [P,3,S,S] in [0,1]."""
        posterior = self.vae.encode(image.double() * 2 - 1).latent_dist
        return self.vae.config.scaling_factor * (posterior.mean + posterior.std * eps)

    def run(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> Any:
        """(noisy latents, pass) with the text whose class tokens are `tokens` [K-1,E]."""
        keep = self.schedule[t].view(-1, 1, 1, 1)
        noisy = keep.sqrt() * latents + (1 - keep).sqrt() * noise
        text = torch.cat([self.text[:, :1], tokens[None], self.text[:, K:]], 1)
        return noisy, oracle.both_halves(self.unet, *self.names, noisy, t, self.empty, text)

    def draw(self, count: int = 1) -> torch.Tensor:
        """Two standard normal draws, float64 of float32 values [2,count,4,h,w]."""
        return torch.randn(2, count, 4, SIDE // 8, SIDE // 8).double()

    def step(
        self, tokens: torch.Tensor, label: torch.Tensor, t: torch.Tensor, eps: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, oracle.Pass, oracle.Losses]:
        """Noisy latents, pass and losses of a training step; label int64 [H'',H'']."""
        noisy, found = self.run(self.encode(self.image[None] / 255, eps), noise, t, tokens)
        terms = oracle.losses(
            found.cross, found.self_, found.noise, noise, label[None], K, guidance=100.0, alpha=1.0, beta=0.005
        )
        return noisy, found, terms

    def in_step(self, tokens: torch.Tensor, eps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        boxes = [(0, SIDE, 0, SIDE)]
        maps, matrix = self.patches(boxes, eps, noise, torch.tensor([77]), tokens)
        return oracle.predict(maps, matrix, boxes, SIDE, TRAIN_SIDE, GATE)

    @torch.no_grad()
    def patches(
        self, boxes: Sequence[Sequence[int]], eps: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, tokens: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Test-time cross maps [P,K,h,w] and self-attention [P,N,N] of patches."""
        image = self.image.double() / 255
        crops = torch.stack([oracle.resize(image[:, y0:y1, x0:x1], (SIDE, SIDE)) for y0, y1, x0, x1 in boxes])
        self.latents = self.encode(crops, eps)
        _, found = self.run(self.latents, noise, t, tokens)
        grid = found.self_[0].grid
        return oracle.cross_maps(found.cross, K, grid, softmax=True), oracle.self_attention(found.self_)

    def write_train(self) -> None:
        arrays: dict[str, Any] = {}
        texts: dict[str, str] = {}
        for case, label in zip(("first", "second"), self.masks.values(), strict=True):
            tokens = self.text[0, 1:K].clone().requires_grad_()
            t, (eps, noise) = torch.randint(5, 101, (1,)), self.draw()
            noisy, found, terms = self.step(tokens, label, t, eps, noise)
            posterior = self.vae.encode(self.image[None].double() / 255 * 2 - 1).latent_dist
            values = {
                "t": t, "vae_eps": eps, "noise": noise, "vae_post_mean": posterior.mean,
                "vae_post_std": posterior.std, "latents": self.encode(self.image[None] / 255, eps),
                "latents_noisy": noisy, "noise_pred": found.noise,
            }  # fmt: skip
            values |= self.maps(found, label) | self.raw(found)
            named = {"loss1": terms.cross_entropy, "loss2": terms.was, "sd_loss": terms.diffusion}
            for name, term in {**named, "total": terms.total}.items():
                values["loss_total" if name == "total" else name] = term.reshape(1)
                values[f"grad_{name}"] = torch.autograd.grad(term, tokens, retain_graph=True)[0]
            eps, noise = self.draw()
            final = self.in_step(tokens.detach(), eps, noise)
            parts = _iou(final.argmax(0).numpy(), label.numpy())
            values |= {
                "trainiou_t": torch.tensor([77]), "trainiou_vae_eps": eps, "trainiou_noise": noise,
                "trainiou_final_attention_map": final, "trainiou_final_mask": final.argmax(0).byte(),
                "trainiou_parts": torch.tensor(parts), "trainiou_mean": torch.tensor([np.nanmean(parts)]),
            }  # fmt: skip
            arrays |= {f"{case}_{name}": _plain(value) for name, value in values.items()}
            texts |= {f"{case}_{name}": IN_STEP for name in values if name.startswith("trainiou")}
        _save(self.folder, f"{self.flavour}_train", arrays, texts)

    def maps(self, found: Any, label: torch.Tensor) -> dict[str, torch.Tensor]:
        size = (TRAIN_SIDE, TRAIN_SIDE)
        logits = oracle.cross_maps(found.cross, K, size, softmax=False)
        probabilities, matrix = logits.softmax(1), oracle.self_attention(found.self_)
        points = torch.randint(0, TRAIN_SIDE, (5, 2))
        places = points[:, 0] * TRAIN_SIDE + points[:, 1]
        pixels = label.flatten().bincount(minlength=K)
        weights = torch.where(pixels > 0, pixels[1:].sum() / pixels.clamp(min=1), 0.0)
        weights[0] = 1
        swapped = [oracle.Stored(layer.scores.flip(0), layer.grid) for layer in found.cross]
        only = [oracle.Stored(layer.scores[..., :K], layer.grid) for layer in found.cross]
        return {
            "cross_logits": logits[0],
            "cross_logits_uncond": oracle.cross_maps(swapped, K, size, softmax=False)[0],
            "cross_logits_per_layer": torch.cat([oracle.cross_maps([x], K, size, softmax=False) for x in found.cross]),
            "cross_probs_testmode": oracle.cross_maps(found.cross, K, size, softmax=True)[0],
            "cross_probs_trainsoftmax": oracle.cross_maps(only, K, size, softmax=True)[0],
            "self_query_pixels": points,
            "self_rows": matrix[0][places].unflatten(1, size),
            "self_cols": matrix[0].T[places].unflatten(1, size),
            "self_keysum": matrix[0].sum(0).view(size),
            "transposed_product": oracle.was(matrix.mT, probabilities)[0],
            "was": oracle.was(matrix, probabilities)[0],
            "pixel_weights": weights,
            "onehot_counts": pixels.double(),
        }

    def raw(self, found: Any) -> dict[str, torch.Tensor]:
        values: dict[str, torch.Tensor] = {}
        for name, layer in zip([*CROSS, *SELF], [*found.cross, *found.self_], strict=True):
            scores, row = layer.scores, layer.scores.shape[2] // 2
            every = [(part.mean(), part.std(correction=0)) for part in (scores.detach(), scores[1].detach())]
            values[f"raw/{name}/shape"] = torch.tensor(scores.flatten(0, 1).shape)
            values[f"raw/{name}/stats"] = torch.tensor(every).flatten()
            values[f"raw/{name}/uncond_slice"] = scores[0, 0, row, :10]
            values[f"raw/{name}/cond_slice"] = scores[1, 0, row, :10]
        return values

    def write_trajectory(self) -> None:
        tokens = self.text[0, 1:K].clone().requires_grad_()
        optimiser = torch.optim.Adam([tokens], lr=LEARNING_RATE)
        label = self.masks[f"mask{TRAIN_SIDE}"]
        rows: dict[str, list[torch.Tensor]] = {}
        for _ in range(STEPS):
            t, (eps, noise) = torch.randint(5, 101, (1,)), self.draw()
            (eps2, noise2), before = self.draw(), tokens.detach().clone()
            _, _, terms = self.step(tokens, label, t, eps, noise)
            optimiser.zero_grad()
            terms.total.backward()
            gradient = tokens.grad
            optimiser.step()
            mask = self.in_step(before, eps2, noise2).argmax(0).byte()
            parts = _iou(mask.numpy(), label.numpy())
            values = {
                "t": t[0], "vae_eps": eps[0], "noise": noise[0], "trainiou_vae_eps": eps2[0],
                "trainiou_noise": noise2[0], "loss1": terms.cross_entropy, "sd_loss": terms.diffusion,
                "loss2": terms.was, "loss": terms.total, "grad": gradient, "embeddings": tokens,
                "train_final_mask": mask, "train_iou": torch.tensor([*parts, np.nanmean(parts)]),
            }  # fmt: skip
            for name, value in values.items():
                rows.setdefault(name, []).append(value.detach().clone())
        arrays = {name: _plain(torch.stack(values)) for name, values in rows.items()}
        _save(self.folder, f"{self.flavour}_traj", arrays, {"trainiou_noise": IN_STEP})
        self.trained = tokens.detach().float().double()

    def write_predictions(self) -> None:
        self.write_prediction("infer", self.text[0, 1:K], GRIDS, {})
        text = torch.cat([self.text[:, :1], self.trained[None], self.text[:, K:]], 1)
        some = dict(list(GRIDS.items())[:1])
        self.write_prediction("infer_alt", self.trained, some, {"text_embedding": _plain(text)})

    def write_prediction(
        self, kind: str, tokens: torch.Tensor, grids: Mapping[Any, Any], arrays: dict[str, Any]
    ) -> None:
        texts: dict[str, str] = {}
        for (count, patch), runs in grids.items():
            prefix, starts = f"grid{count}x{patch}/", [i * ((SIDE - patch) // max(1, count - 1)) for i in range(count)]
            boxes = [(y, y + patch, x, x + patch) for y in starts for x in starts]
            (eps, noise), t = self.draw(len(boxes)), torch.full((len(boxes),), 60)
            maps, matrix = self.patches(boxes, eps, noise, t, tokens)
            points = [(1, 2), (20, 30)]
            values = {
                "crops": torch.tensor(boxes), "t": t, "vae_eps": eps, "noise": noise, "latents0": self.latents[:1],
                "latents_last": self.latents[-1:], "prob_max": maps.amax((2, 3)), "prob_min": maps.amin((2, 3)),
                "prob_mean": maps.mean((2, 3)), "probs": maps[: 2 * count - 1],
                "self_rows0": matrix[0][[y * TRAIN_SIDE + x for y, x in points]].unflatten(1, (TRAIN_SIDE,) * 2),
            }  # fmt: skip
            texts[f"{prefix}self_rows0"] = "query pixels " + ",".join(f"({y},{x})" for y, x in points)
            for gate, size in runs:
                final = oracle.predict(maps, matrix, boxes, SIDE, size, gate)
                run = f"thr{gate:g}/out{size}/"
                key = f"{run}final_attention_map" + ("" if size < SIDE else "_stride3")
                values[key] = final if size < SIDE else final[:, 2::3, 1::3]
                texts[prefix + key] = "sampled [:, 2::3, 1::3]" if size == SIDE else ""
                values[f"{run}final_mask"] = final.argmax(0).byte()
                values[f"{run}stats"] = torch.stack([final.amin((1, 2)), final.amax((1, 2)), final.mean((1, 2))], 1)
                if (count, size, kind) == (2, SIDE, "infer"):
                    file = f"{self.flavour}_infer_fullmap_{count}x{patch}_thr{gate:g}_out{size}"
                    _save(self.folder, file, {"final_attention_map": _plain(final)}, {})
            arrays |= {prefix + name: _plain(value) for name, value in values.items()}
        _save(self.folder, f"{self.flavour}_{kind}", arrays, texts)


def _models(folder: Path, flavour: str) -> tuple[Any, Any, torch.Tensor]:
    """Random U-Net, autoencoder and schedule, saved in float32 and returned in float64."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=SIDE // 8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(16, 32, 32, 32),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=(1, 2, 2, 4),
        norm_num_groups=8,
    )
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("to_q", "to_k")):
            module.weight.data *= 3  # attention far from uniform
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        sample_size=SIDE,
        scaling_factor=0.4,
    )
    scheduler = DDIMScheduler(num_train_timesteps=900, beta_start=0.0009, beta_end=0.011, beta_schedule="scaled_linear")
    unet.save_pretrained(folder / f"unet_{flavour}")
    vae.save_pretrained(folder / "vae")
    scheduler.save_pretrained(folder / "scheduler")
    for model in (unet, vae):
        model.requires_grad_(False).double().eval()
    return unet, vae, scheduler.alphas_cumprod.double()


def _iou(prediction: np.ndarray, label: np.ndarray) -> list[float]:
    """IoU per class, NaN where the label map has none of it."""
    result = []
    for k in range(K):
        ours, theirs = prediction == k, label == k
        result.append((ours & theirs).sum() / ((ours | theirs).sum() + 1e-7) if theirs.any() else np.nan)
    return [float(value) for value in result]


def _write_metric(folder: Path) -> None:
    draws = np.random.default_rng(1)
    masks = draws.integers(0, K, (9, 24, 24)).astype(np.uint8)
    masks[0], masks[1] = 0, np.where(masks[1] == 0, 1, masks[1])
    predictions = np.where(draws.random(masks.shape) < 0.6, masks, draws.integers(0, K, masks.shape)).astype(np.uint8)
    per_image = np.array([_iou(*pair) for pair in zip(predictions, masks, strict=True)])
    tested = per_image.copy()
    tested[(masks == 0).all((1, 2))] = np.nan
    score, epoch = np.nanmean(per_image, 1), np.nanmean(tested, 0)
    arrays = {
        "test_iou_per_image": tested, "test_iou_epoch": epoch, "val_iou_per_image": per_image,
        "val_iou_epoch": np.nanmean(per_image, 0), "val_mean_iou_per_image": score,
        "val_mean_iou_epoch": [score.mean()], "val_selection_score": [score.mean()],
        "derived_mean_over_parts": [epoch.mean(), epoch[1:].mean()],
    }  # fmt: skip
    arrays = {name: np.asarray(value, np.float32) for name, value in arrays.items()}
    arrays |= {"test_n_images": (~np.isnan(tested)).sum(0), "predictions": predictions, "masks": masks}
    _save(folder, "metric", arrays, {})


def _write_utilities(folder: Path) -> None:
    boxes = []
    for height, width, patch, count in ((256, 256, 200, 2), (300, 410, 170, 3)):
        edges = [[i * ((side - patch) // (count - 1)) for i in range(count)] for side in (height, width)]
        found = [[y, y + patch, x, x + patch] for y in edges[0] for x in edges[1]]
        boxes.append({"image_size": [height, width], "patch_size": patch, "num_patchs_per_side": count,
                      "boxes_y0_y1_x0_x1": found})  # fmt: skip
    draws, calls = random.Random(5), []
    for _ in range(4):
        side = int((0.4 + 0.5 * draws.random()) * 90)
        x, y = draws.randint(0, 130 - side), draws.randint(0, 90 - side)
        calls.append([x, x + side, y, y + side])
    crops = [{"python_random_seed": 5, "crop_scale_range": [0.4, 0.9], "image_width": 130, "image_height": 90,
              "calls": calls}]  # fmt: skip
    iou = [{"prediction": [1, 1, 0], "mask": [1, 0, 1], "iou": 1 / 3}, {"prediction": [0], "mask": [0], "iou": 0.0}]
    text = {"get_crops_coords": boxes, "get_random_crop_coordinates": crops, "calculate_iou": iou}
    (folder / "utils.json").write_text(json.dumps(text))


def _write_item(folder: Path) -> None:
    draws = np.random.default_rng(2)
    picture = draws.integers(0, 256, (90, 70, 3)).astype(np.uint8)
    mask = draws.integers(0, K, (90, 70)).astype(np.uint8)
    image = cv2.resize(picture[..., ::-1], (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    large = cv2.resize(mask, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    arrays = {"png_rgb": picture, "mask_npy": mask, "image": image.transpose(2, 0, 1), f"mask{SIDE}": large,
              "mask32": large[:: SIDE // 32, :: SIDE // 32]}  # fmt: skip
    _save(folder, "dataset_item", arrays, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("fresh", "cut", "small"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.kind == "fresh":
        fresh(arguments.folder)
    elif arguments.kind == "small":
        small(chosen_folder(), arguments.folder)
    else:
        cut(chosen_folder(), arguments.folder, "sd21", "renamed", "B", "grid2x400", steps=2)


if __name__ == "__main__":
    main()
