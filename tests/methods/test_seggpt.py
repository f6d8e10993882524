"""SegGPT as a method: rules of merging by hand, colours as the library reads them, prompts that show a part."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.seggpt.image_processing_pil_seggpt import SegGptImageProcessorPil

from slime_bench.backbones.in_context import SegGpt, SegGptFacts
from slime_bench.backbones.seggpt import SegGptBackbone
from slime_bench.errors import ConfigError, DataError
from slime_bench.methods.base import label_maps
from slime_bench.methods.features import ABSENT
from slime_bench.methods.seggpt.config import SegGptConfig, SegGptDescription
from slime_bench.methods.seggpt.method import SegGptMethod, palette
from tests.fixtures.seggpt import SIDE, save_seggpt

CLASSES = ["background", "wheel", "window", "light"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> SegGptBackbone:
    return SegGptBackbone(SegGpt.Config(weights=str(save_seggpt(tmp_path_factory.mktemp("seggpt") / "model"))))


def support(shots: int = 1, classes: int = len(CLASSES)) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)
    label = torch.zeros(shots, SIDE, SIDE, dtype=torch.long)
    for k in range(1, classes):
        label[:, 8 * (k - 1) : 8 * k, :20] = k
    label[:, -2:] = 255
    images = torch.rand(shots, 3, SIDE, SIDE, generator=draw)
    return {"image": images, "label": label, "id": [f"s{each}" for each in range(shots)]}


def made(backbone: Any, batch: dict[str, Any] | None = None, **settings: Any) -> SegGptMethod:
    """The method, prepared on a support batch."""
    method = SegGptMethod(SegGptConfig(**settings), None, backbone, CLASSES, seed=0)
    method.prepare(SimpleNamespace(support_dataloader=lambda: [batch or support()]), "cpu")
    return method


def query(size: int = SIDE) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def answers(method: SegGptMethod, monkeypatch: pytest.MonkeyPatch, means: dict[int, list[float]]) -> Tensor:
    """Labels of two pixels, where the answer to the binary prompt of class k has these channel means."""
    white = method.backbone.painted(torch.ones(1, 1, 1).long(), torch.tensor([[0] * 3, [255] * 3]))[0, 0, 0, 0]
    asked = []

    def paint(queries: Tensor, prompts: Tensor, masks: Tensor, *_: Any) -> Tensor:
        shown = (masks[0, 0, 0] - white).abs() < 1e-3
        (label,) = method._learned["labels"][0][shown].unique().tolist()
        asked.append(label)
        return torch.tensor(means[label]).repeat_interleave(SIDE // 2).expand(len(queries), 3, SIDE, SIDE).clone()

    monkeypatch.setattr(method.backbone, "paint", paint)
    found = label_maps(method.scores(query(), ["a", "b"]))
    assert asked == sorted(means), "one prompt for each, none besides"
    assert (found == found[:1, :1]).all()
    return found[0, 0, [0, -1]]


def test_argmax(backbone: SegGptBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    means = {1: [127.0, 200.0], 2: [100.0, 220.0], 3: [20.0, 219.0]}
    assert answers(made(backbone), monkeypatch, means).tolist() == [0, 2]
    assert answers(made(backbone, threshold=110), monkeypatch, means).tolist() == [1, 2]


def test_painted(backbone: SegGptBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later classes cover earlier ones, however sure those are."""
    means = {1: [250.0, 250.0], 2: [140.0, 100.0], 3: [20.0, 127.0]}
    assert answers(made(backbone, merge="painted"), monkeypatch, means).tolist() == [2, 1]
    means = {1: [20.0, 250.0], 2: [127.0, 250.0], 3: [100.0, 129.0]}
    assert answers(made(backbone, merge="painted"), monkeypatch, means).tolist() == [0, 3]


def test_background_prompt(backbone: SegGptBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    means = {0: [30.0, 210.0], 1: [40.0, 200.0], 2: [35.0, 20.0], 3: [20.0, 0.0]}
    assert answers(made(backbone, merge="background_prompt"), monkeypatch, means).tolist() == [1, 0]


@pytest.mark.parametrize("size", [SIDE, 50])
def test_colours_are_read_as_the_library_reads_them(backbone: SegGptBackbone, size: int) -> None:
    """Nearest colour of the palette, after a resize by the nearest pixel."""
    processor = SegGptImageProcessorPil(size={"height": SIDE, "width": SIDE})
    parts, batch = len(CLASSES) - 1, support()
    assert palette(parts).tolist() == [list(each) for each in processor.get_palette(parts)]
    method = made(backbone, batch, prompting="colour")
    found = label_maps(method.scores(query(size), ["a", "b"]))
    # The reference: the library's network on what its processor makes, its own post-processing.
    as_bytes = [(each * 255).round().byte().permute(1, 2, 0).numpy() for each in (*batch["image"], *query(size))]
    label = batch["label"][0].where(batch["label"][0] != 255, 0).byte().numpy()  # it knows no ignored pixels
    for row, image in enumerate(as_bytes[1:]):
        inputs = processor(
            images=image, prompt_images=as_bytes[0], prompt_masks=label, num_labels=parts, return_tensors="pt"
        )
        with torch.no_grad():
            outputs = backbone.network(**inputs)
        (expected,) = processor.post_process_semantic_segmentation(outputs, [(size, size)], num_labels=parts)
        assert (found[row] == expected).float().mean() > 0.99  # the support image was not in 8 bits


def test_labels_are_those_of_painted_masks_resized(backbone: SegGptBackbone) -> None:
    method = made(backbone)
    queries = backbone.pictures(query(50))
    painted = []
    for k in range(1, len(CLASSES)):
        mask = backbone.painted((support()["label"] == k).long(), torch.tensor([[0] * 3, [255] * 3]))
        prompts = backbone.pictures(support()["image"]).expand(2, 1, -1, -1, -1), mask.expand(2, 1, -1, -1, -1)
        painted.append(F.interpolate(backbone.paint(queries, *prompts), size=(50, 50), mode="nearest").mean(1))
    best, index = torch.stack(painted, 1).max(1)
    assert torch.equal(label_maps(method.scores(query(50), ["a", "b"])), (index + 1).where(best > 128, 0))


def test_batches_do_not_matter(backbone: SegGptBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    for shots in (1, 3):
        method = made(backbone, support(shots))
        whole = method.scores(query(), ["a", "b"])
        monkeypatch.setattr(backbone, "queries_per_call", lambda _: 1)
        torch.testing.assert_close(method.scores(query(), ["a", "b"]), whole, rtol=0, atol=1e-5)
        monkeypatch.undo()


def test_a_part_is_prompted_by_images_that_show_it(backbone: SegGptBackbone) -> None:
    both = support(2)
    both["label"][1][both["label"][1] == 2] = 0
    method = made(backbone, both)
    first = {key: value[:1] for key, value in both.items()}
    images = query()
    torch.testing.assert_close(
        method.scores(images, ["a", "b"])[:, 2], made(backbone, first).scores(images, ["a", "b"])[:, 2]
    )


@pytest.mark.parametrize("prompting", ["binary", "colour"])
def test_a_part_that_no_image_shows(backbone: SegGptBackbone, prompting: str) -> None:
    method = made(backbone, support(classes=3), prompting=prompting)
    assert (method.scores(query(), ["a", "b"])[:, 3] == ABSENT).all()
    with pytest.raises(DataError):
        made(backbone, support(classes=1), prompting=prompting)


def test_a_state_of_other_classes(backbone: SegGptBackbone) -> None:
    state = made(backbone).learned_state()
    with pytest.raises(ConfigError):
        made(backbone).load_learned_state({**state, "present": torch.ones(2).bool()})


def test_what_is_refused_before_anything_is_loaded() -> None:
    facts = SegGptFacts(side=448, patch=16, heads=16, width=1024)
    SegGptDescription.check(SegGptConfig(), facts, CLASSES, 448)
    with pytest.raises(ConfigError, match="nothing to merge"):
        SegGptDescription.check(SegGptConfig(prompting="colour", merge="painted"), facts, CLASSES, 448)
    with pytest.raises(ConfigError, match="patch"):
        SegGptDescription.check(SegGptConfig(), facts, CLASSES, 8)


def test_captions() -> None:
    def prompts(**settings: Any) -> dict[str, str]:
        return SegGptDescription.stated(SegGptConfig(**settings))

    assert prompts() == {"prompts": "binary, merged by argmax, background up to 128"}
    assert prompts(merge="background_prompt") == {"prompts": "binary, merged by background prompt"}
    assert prompts(prompting="colour", ensemble="transformers")["ensemble"] == "as in transformers"
    assert SegGptDescription.label(SegGptConfig(), 1) == "SegGPT"
