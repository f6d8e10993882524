"""Embeddings out of the bench, in the authors' form, and back; images of any aspect ratio."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from slime_bench.data.reading import read_image
from slime_bench.results.artifacts import read_qualitative
from slime_bench.segment.segmenter import Segmenter, label_map
from tests.e2e.conftest import Bench, Outcome, command


def test_exported_embeddings_are_tested_as_the_trial_that_made_them(
    swept: tuple[Bench, Outcome], tmp_path: Path
) -> None:
    made = swept[0]
    folder = tmp_path / "authors"
    outcome = command("embeddings", "export", "--state", str(made.folder() / "state.safetensors"), "--out", str(folder))
    assert outcome.code == 0 and len(list(folder.glob("embedding_*.pth"))) == 5, outcome.err
    again = replace(made, outputs=tmp_path / "outputs")
    overrides = ["method.epochs=0", "method.start.kind=file", f"method.start.path={folder}"]
    assert again(*overrides).code == 0
    trained, tested = (pd.read_parquet(bench.folder() / "per_image.parquet") for bench in (made, again))
    pd.testing.assert_frame_equal(trained, tested)
    assert again.result().fingerprints["start"] and "start" not in made.result().fingerprints
    assert str(folder) not in (again.folder() / "result.json").read_text()
    # What the embeddings are decides the trial, not where they lie: a copy elsewhere is the same trial.
    shutil.copytree(folder, tmp_path / "copy")
    overrides[-1] = f"method.start.path={tmp_path / 'copy'}"
    assert again(*overrides).code == 0
    assert len(list(again.folder().parent.glob("seed*"))) == 1
    # The state carries the embeddings: it does not need the folder any more.
    shutil.rmtree(folder)
    arguments = ["--state", str(again.folder() / "state.safetensors"), "--images", str(made.data / "val" / "images")]
    assert command("segment", *arguments, "--out", str(tmp_path / "masks"), "--device", "cpu").code == 0


def test_padded_images_keep_their_form(swept: tuple[Bench, Outcome], tmp_path: Path) -> None:
    bench = replace(swept[0], outputs=tmp_path / "outputs", data=tmp_path / "car")
    shutil.copytree(swept[0].data, bench.data)
    for kind, resample in (("images", Image.Resampling.BILINEAR), ("labels", Image.Resampling.NEAREST)):
        for path in (bench.data / "test" / kind).iterdir():
            with Image.open(path) as picture:
                picture.resize((96, 48), resample).save(path)
    outcome = bench("data.fit=pad")
    assert outcome.code == 0, outcome.err
    union = pd.read_parquet(bench.folder() / "per_image.parquet").filter(like="union")
    assert union.to_numpy().max() <= 64 * 32, "what was padded does not count"
    images, out = bench.data / "test" / "images", tmp_path / "masks"
    state = str(bench.folder() / "state.safetensors")
    arguments = ["segment", "--state", state, "--images", str(images), "--out", str(out), "--device", "cpu"]
    assert command(*arguments).code == 0
    items, _ = read_qualitative(bench.folder() / "qualitative.npz")
    own = {item.image_id: item.prediction for item in items}
    assert len(own) == 3
    segmenter = Segmenter.load(state, device="cpu")
    for path in images.iterdir():
        with Image.open(out / "labels" / path.name) as label:
            assert label.size == (96, 48)
        if path.stem in own:  # with the trial's noise: its prediction, brought back to the file's size
            (scored,) = segmenter.scored([segmenter.fitted(read_image(path))], [path.stem])
            label = Image.fromarray(label_map(scored.maps, (48, 96), "pad"))
            shown = np.array(label.resize((64, 32), Image.Resampling.NEAREST))
            assert (shown == own[path.stem][:32]).mean() > 0.9
