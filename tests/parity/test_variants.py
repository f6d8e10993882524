"""The parity suite itself: it passes on a golden folder of another content, and notices every array that is changed.

The other folder is made by the plain implementation of `reference_slime`, with another number of classes, tokens,
layers and steps, other sizes, gates and grids, and another name of the U-Net.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.parity.golden import VARIABLE, Arrays
from tests.parity.make_variant import fresh, perturb
from tests.parity.suite import run_suite

SUITE = Path(__file__).with_name("test_slime.py")
# What is fed in, what a case is recognised by, and what is only screening.
FED = ("t", "vae_eps", "noise", "onehot_counts", "self_query_pixels", "predictions", "masks", "text_embedding")
SKIPPED = (*FED, "png_rgb", "mask_npy", "image")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "other"
    fresh(folder)
    return folder


def outputs(file: Path) -> list[str]:
    """The arrays of a file that the suite compares its own results with."""
    names = list(Arrays(file))
    return [name for name in names if not name.endswith(tuple(f"{end}{skip}" for skip in SKIPPED for end in ("/", "_")))
            and name not in SKIPPED]  # fmt: skip


@pytest.mark.slow
@pytest.mark.release
def test_suite_passes_on_other_numbers(other: Path, tmp_path: Path) -> None:
    status, output, rows = run_suite(SUITE, VARIABLE, other, tmp_path)
    assert status == 0, output[-3000:]
    assert f"{len(rows)} of {len(rows)} comparisons within their tolerance" in output
    assert len(rows) > 150 and "not read: none" in output


@pytest.mark.slow
@pytest.mark.release
def test_suite_notices_every_changed_array(other: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(other, changed)
    files = [path for path in sorted(changed.glob("*.npz")) if path.stem != "inputs"]
    arrays = {path.stem: outputs(path) for path in files}
    for file, names in arrays.items():
        perturb(changed, {file: names}, by=0.5 if file.endswith("_traj") else 0.02)  # bars of later steps are loose
    status, output, rows = run_suite(SUITE, VARIABLE, changed, tmp_path)
    assert status == 1, output[-3000:]
    failed = [(row["group"].split()[0], row["array"]) for row in rows if not row["error"] <= row["tolerance"]]
    for file, names in arrays.items():
        source = file.split("_fullmap_")[0]
        for name in names:
            wanted = "complete map" if source != file else name
            assert any(
                source == where and (wanted.endswith(array) or array.startswith(wanted) or wanted in array)
                for where, array in failed
            ), f"{file}: {name} was changed and no comparison failed"
