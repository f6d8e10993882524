"""StyleGAN2: the converter's folder is the checkpoint's generator, pickles that hold code are refused unread, and a
folder that is no generator is refused before anything is loaded."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.convert_stylegan2 import main as convert
from slime_bench.backbones.gan import StyleGan2
from slime_bench.backbones.stylegan2 import StyleGan2Backbone, blurred
from slime_bench.errors import BackboneError, StorageError
from tests.fixtures.gan import SMALL, generator, rosinality, save_gan


def loaded(folder: Path) -> StyleGan2Backbone:
    return StyleGan2Backbone(StyleGan2.Config(weights=str(folder)))


def refused(call: Callable[[], Any]) -> BackboneError:
    with pytest.raises(BackboneError) as caught:
        call()
    return caught.value


class TestConverter:
    def converted(self, content: Any, folder: Path) -> Path:
        torch.save(content, folder / "model.pt")
        convert(["--checkpoint", str(folder / "model.pt"), "--out", str(folder / "out")])
        return folder / "out"

    def test_the_folder_is_the_averaged_generator(self, tmp_path: Path) -> None:
        content = rosinality()
        assert isinstance(content["args"], argparse.Namespace), "as train.py saves it"
        out = self.converted({**content, "g": {"other": torch.zeros(3)}}, tmp_path)
        backbone = loaded(out)
        assert backbone.sizes == SMALL
        network, styles = generator(), backbone.styles(torch.ones(1, SMALL.style_dim))
        with torch.no_grad():
            expected = network(network.style(torch.ones(1, SMALL.style_dim)), [*network.noises.buffers()]).pictures
        assert torch.equal(backbone.generate(styles, [*backbone.network.noises.buffers()]).pictures, expected)
        manifest = json.loads((out / "conversion.json").read_text())
        assert manifest["dropped"] == sorted(name for name in content["g_ema"] if name.endswith("kernel"))
        assert StyleGan2.content_hash_of(StyleGan2.Config(weights=str(out)))

    def test_code_is_refused_unread(self, tmp_path: Path) -> None:
        ran = tmp_path / "ran"

        class Evil:
            def __reduce__(self) -> Any:
                return Path.touch, (ran,)

        error = refused(lambda: self.converted({**rosinality(), "extra": Evil()}, tmp_path))
        assert "cannot be read safely" in str(error) and "convert_weight.py" in str(error.remedy)
        assert not ran.exists() and not (tmp_path / "out").exists()

    def test_what_is_no_generator_is_refused(self, tmp_path: Path) -> None:
        without, small, other = rosinality(), rosinality(), rosinality()
        del without["g_ema"]["convs.1.conv.weight"]
        small["g_ema"]["style.1.weight"] = torch.zeros(3)
        other["g_ema"]["convs.0.conv.blur.kernel"] = torch.ones(4, 4)
        cases = {
            "synthesis.b4.const": {"g_ema": {"synthesis.b4.const": torch.zeros(3, 4, 4)}},
            "convs.1.conv.weight": without,
            "style.1.weight": small,
            "blur.kernel": other,
            "input.input": {"nothing": 1},
        }
        for said, content in cases.items():
            error = refused(lambda content=content: self.converted(content, tmp_path))  # type: ignore[misc]
            assert said in str(error) or "input.input" in str(error), str(error)
            assert not (tmp_path / "out").exists()
        (tmp_path / "torn.pt").write_bytes((tmp_path / "model.pt").read_bytes()[:100])
        error = refused(lambda: convert(["--checkpoint", str(tmp_path / "torn.pt"), "--out", str(tmp_path / "out")]))
        assert "cannot be read safely" in str(error)

    def test_a_folder_with_something_in_it_stays_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()
        with pytest.raises(StorageError, match="not empty"):
            self.converted(rosinality(), tmp_path)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_folder_that_is_no_generator_is_refused(tmp_path: Path) -> None:
    good = save_gan(tmp_path / "good")

    def said(**changes: Any) -> str:
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        content = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(content))
        error = refused(lambda: StyleGan2.describe(StyleGan2.Config(weights=str(folder))))
        return str(error)

    assert "another model_type" in said(model_type="vit")
    assert "n_mlp" in said(n_mlp=0) and "style_dim" in said(style_dim="wide")
    assert "a power of two" in said(size=48) and "a power of two" in said(channels={"4": 16, "8": 12})
    (good / "model.safetensors").write_bytes(b"torn")
    assert "cannot be loaded" in str(refused(lambda: loaded(good)))
    (good / "model.safetensors").unlink()
    (good / "network.pkl").touch()
    assert "pickled checkpoints are not read" in str(refused(lambda: loaded(good)))


def test_without_weights_it_is_said_how_they_are_made() -> None:
    error = refused(lambda: StyleGan2.describe(StyleGan2.Config(weights="nowhere")))
    assert "data_prep.convert_stylegan2" in str(error.remedy)


@pytest.mark.parametrize(("up", "pad", "gain"), [(1, (1, 1), 4), (2, (2, 1), 4)])
def test_blur(up: int, pad: tuple[int, int], gain: int) -> None:
    """Against NumPy's convolution, along one axis after the other."""
    picture = np.random.default_rng(0).standard_normal((5, 5))
    spread = np.zeros((5 * up, 5 * up))
    spread[::up, ::up] = picture
    padded, line = np.pad(spread, (pad, pad)), np.array([1, 3, 3, 1]) / 8
    rows = np.stack([np.convolve(row, line, "valid") for row in padded])
    expected = gain * np.stack([np.convolve(column, line, "valid") for column in rows.T], 1)
    found = blurred(torch.from_numpy(picture)[None, None], up, pad, gain)[0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-12)
