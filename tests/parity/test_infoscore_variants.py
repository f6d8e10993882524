"""The second paper's parity suite itself: it passes on a golden folder of another content, and notices every array that
is changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.make_infoscore import fresh, perturb
from tests.parity.suite import run_suite

VARIABLE = "SLIME_BENCH_GOLDEN_INFOSCORE"
SUITE = Path(__file__).with_name("test_infoscore.py")
# What counts are made of, and what belongs to the CRF's own suite.
FED = ("_pred", "_label", "pred_crf", "margin_crf")


@pytest.mark.slow
@pytest.mark.release
def test_suite_passes_on_other_numbers_and_notices_changed_ones(tmp_path: Path) -> None:
    other = tmp_path / "other"
    fresh(other)
    status, output, rows = run_suite(SUITE, VARIABLE, other, tmp_path)
    assert status == 0, output[-3000:]
    assert f"{len(rows)} of {len(rows)} comparisons within their tolerance" in output and len(rows) > 150
    arrays = perturb(other, FED)
    status, output, rows = run_suite(SUITE, VARIABLE, other, tmp_path)
    assert status == 1, output[-3000:]
    failed = [(row["group"].split()[0], row["array"]) for row in rows if not row["error"] <= row["tolerance"]]
    for file, names in arrays.items():
        for name in names:
            assert any(where == file and array.startswith(name) for where, array in failed), (
                f"{file}: {name} was changed and no comparison failed"
            )
