"""The small weights and pictures of these tests, also for the script beside them that runs outside pytest."""

from __future__ import annotations

from pathlib import Path

SIDE = 64
SPLITS = {"support": 4, "val": 2, "test": 5}


def write_weights(folder: Path) -> Path:
    """A Stable Diffusion folder with SD's block types and random weights, about 3 MB."""
    import torch
    from diffusers import StableDiffusionPipeline

    from data_prep.pretrain import models as mini_models
    from slime_bench.data.mini_world import render as mini_world

    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = mini_models.build_tokenizer(mini_world.vocabulary())
        pipeline = StableDiffusionPipeline(
            vae=mini_models.build_vae((8, 16, 16)),
            unet=mini_models.build_unet((32, 32, 32, 32), text_width=32),
            text_encoder=mini_models.build_text_encoder(tokenizer, width=32, layers=1),
            tokenizer=tokenizer,
            scheduler=mini_models.build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def write_pictures(root: Path) -> Path:
    """A folder data set of the mini world's cars at half size."""
    from PIL import Image

    from slime_bench.data.mini_world import render as mini_world

    for split, count in SPLITS.items():
        for index in range(count):
            picture = mini_world.render("car", split, index)
            for kind, array in (("images", picture.image), ("labels", picture.label)):
                path = root / split / kind / f"car-{split}-{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array[::2, ::2].copy()).save(path)
    return root


def settings(weights: Path, data: Path, outputs: Path) -> list[str]:
    """Overrides that make any trial small; without a gate the random weights' classes all take part."""
    sizes = [
        f"data.image_size={SIDE}",
        f"backbone.image_size={SIDE}",
        "data.batch_size=2",
        "method.train_map_size=16",
    ]
    names = ["data=pascal_part_car", "data.name=tiny_car", f"data.root={data}", f"backbone.weights={weights}"]
    fast = ["method.epochs=2", "protocol.token_gate=0", "trainer=cpu", "trainer.progress=false", "save_maps=3"]
    return [*names, *sizes, *fast, f"output_root={outputs}"]
