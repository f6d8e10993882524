"""SegGPT: pictures and masks as the library's processor makes them, ensembles, and folders that are something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.seggpt.image_processing_pil_seggpt import SegGptImageProcessorPil

from slime_bench.backbones.in_context import SegGpt
from slime_bench.backbones.seggpt import SegGptBackbone
from slime_bench.errors import BackboneError
from tests.fixtures.seggpt import SIDE, save_seggpt

WHITE = torch.tensor([[0, 0, 0], [255, 255, 255]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_seggpt(tmp_path_factory.mktemp("seggpt") / "model")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> SegGptBackbone:
    return SegGptBackbone(SegGpt.Config(weights=str(folder)))


@pytest.fixture(scope="module")
def processor() -> Any:
    return SegGptImageProcessorPil(size={"height": SIDE, "width": SIDE})


def random_prompts(backbone: SegGptBackbone, queries: int, prompts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments of `paint`."""
    draw = torch.Generator().manual_seed(0)
    pictures = backbone.pictures(torch.rand(queries * (prompts + 1), 3, SIDE, SIDE, generator=draw))
    labels = torch.randint(2, (queries * prompts, 4, 4), generator=draw).repeat_interleave(8, 1).repeat_interleave(8, 2)
    shape = (queries, prompts, 3, SIDE, SIDE)
    return pictures[:queries], pictures[queries:].view(shape), backbone.painted(labels, WHITE).view(shape)


@pytest.mark.parametrize("size", [(SIDE, SIDE), (50, 70), (20, 20)])
def test_pictures_and_masks_are_the_processors(backbone: SegGptBackbone, processor: Any, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(256, size=(*size, 3), dtype=np.uint8)
    found = backbone.pictures(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    expected = processor(images=image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)  # a few roundings of numbers up to 2.6
    label = rng.integers(4, size=size, dtype=np.uint8)
    found = backbone.labels(torch.from_numpy(label).long()[None])
    masks = backbone.painted(found, torch.tensor(processor.get_palette(3)))
    expected = processor(images=None, prompt_masks=label, num_labels=3, return_tensors="pt")["prompt_masks"]
    torch.testing.assert_close(masks, expected, rtol=0, atol=2e-6)


def test_ignored_pixels_are_black(backbone: SegGptBackbone) -> None:
    mask = backbone.painted(torch.tensor([[[255, 0], [1, 255]]]), WHITE)
    assert torch.equal(mask[0, :, 0, 0], mask[0, :, 0, 1]) and not torch.equal(mask[0, :, 1, 0], mask[0, :, 0, 0])


@pytest.mark.parametrize("prompts", [1, 3])
def test_a_query_is_by_itself(backbone: SegGptBackbone, prompts: int) -> None:
    """Queries of one call do not see each other, neither in a batch nor in an ensemble."""
    queries, pictures, masks = random_prompts(backbone, 2, prompts)
    whole = backbone.paint(queries, pictures, masks)
    for row in (slice(0, 1), slice(1, 2)):
        alone = backbone.paint(queries[row], pictures[row], masks[row])
        torch.testing.assert_close(whole[row], alone, rtol=0, atol=1e-3)  # of 255


def test_ensembles(backbone: SegGptBackbone) -> None:
    queries, prompts, masks = random_prompts(backbone, 1, 3)
    ours, theirs = (backbone.paint(queries, prompts, masks, kind) for kind in ("authors", "transformers"))
    assert (ours - theirs).abs().max() > 1
    reordered = backbone.paint(queries, prompts.flip(1), masks.flip(1))
    # The decoder's convolution sees a row of the first prompt beyond the border between the two halves.
    torch.testing.assert_close(reordered[..., 1:, :], ours[..., 1:, :], rtol=0, atol=1e-3)
    one = [backbone.paint(queries, prompts[:, :1], masks[:, :1], kind) for kind in ("authors", "transformers")]
    assert torch.equal(*one) and (one[0] - ours).abs().max() > 0.01
    thrice = backbone.paint(queries, prompts[:, :1].expand_as(prompts), masks[:, :1].expand_as(masks))
    torch.testing.assert_close(thrice, one[0], rtol=0, atol=1e-3)


def test_queries_per_call_follow_the_memory(folder: Path) -> None:
    def per_call(memory_gb: float, prompts: int) -> int:
        return SegGptBackbone(SegGpt.Config(weights=str(folder), memory_gb=memory_gb)).queries_per_call(prompts)

    tokens = 2 * 4 * 4
    each = 2 * 4 * 2 * tokens**2 * 4  # streams, maps, heads, their sizes, bytes
    assert per_call(5 * each / 1e9, 1) == 5 and per_call(5 * each / 1e9, 5) == 1 and per_call(1e-9, 10) == 1


class TestFolders:
    def refused(self, weights: Path | str) -> BackboneError:
        with pytest.raises(BackboneError) as caught:
            SegGpt.describe(SegGpt.Config(weights=str(weights)))
        assert caught.value.remedy and caught.value.expected
        return caught.value

    def test_nothing_there(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "nothing")
        tmp_path.joinpath("config.json").write_text("{}")
        assert "model.safetensors" in str(self.refused(tmp_path).found)

    @pytest.mark.parametrize(
        "changes", [{"model_type": "blip"}, {"image_size": [32, 32]}, {"image_size": 64}, {"patch_size": 7}]
    )
    def test_another_model(self, folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
        content = json.loads((folder / "config.json").read_text()) | changes
        (tmp_path / "config.json").write_text(json.dumps(content))
        (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        assert "config.json" in str(self.refused(tmp_path).path)

    def test_torn_weights(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
        (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
        with pytest.raises(BackboneError):
            SegGptBackbone(SegGpt.Config(weights=str(tmp_path)))
