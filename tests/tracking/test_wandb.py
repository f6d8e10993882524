"""What W&B is told of a trial; what W&B itself makes of it is in tests/e2e/test_wandb.py."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slime_bench.config.compose import plan
from slime_bench.config.schema import TrialConfig
from slime_bench.errors import ConfigError
from slime_bench.metrics.iou import IouCounts
from slime_bench.results.artifacts import QUALITATIVE_FILE, GridItem, read_qualitative, write_qualitative
from slime_bench.results.result import PER_IMAGE_FILE, TrialResult, from_counts, read_per_image, write_per_image
from slime_bench.tracking import media
from slime_bench.tracking import wandb as tracking
from slime_bench.tracking.loggers import trial_logger

CLASSES = ["background", "wheel", "left light/lamp"]
FINGERPRINTS = {"data": "d" * 64, "backbone": "b" * 64}


@pytest.fixture(scope="module")
def cfg() -> TrialConfig:
    """Of the trial of seed 0 with one shot."""
    (found,) = plan(["experiment=mini_car", "logger=wandb", "shots=1", "seed=0"]).trials
    return found


class TestMode:
    @pytest.mark.parametrize(
        ("configured", "variable", "found"),
        [
            (None, "", None),
            (None, "online", "online"),
            ("offline", "disabled", "offline"),  # the command line has the last word
        ],
    )
    def test_what_is_asked_for(
        self, monkeypatch: pytest.MonkeyPatch, configured: str | None, variable: str, found: str | None
    ) -> None:
        monkeypatch.setenv("WANDB_MODE", variable)
        assert tracking.mode_asked_for(configured) == found

    def test_a_mode_that_trials_cannot_be_logged_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_MODE", "shared")
        with pytest.raises(ConfigError, match=r"WANDB_MODE.*\n(.*\n)*.*'shared'"):
            tracking.mode_asked_for(None)

    @pytest.mark.parametrize("variable", ["disabled", None])
    def test_disabled_leaves_nothing(
        self, cfg: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
    ) -> None:
        if variable is None:
            monkeypatch.delenv("WANDB_MODE")
            cfg = cfg.replace(logger={"mode": "disabled"})
        with trial_logger(cfg, tmp_path, FINGERPRINTS) as logger:
            assert logger is None
        assert list(tmp_path.iterdir()) == []

    def test_a_wandb_that_cannot_be_imported(
        self, cfg: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setitem(sys.modules, "slime_bench.tracking.wandb", None)
        with trial_logger(cfg, tmp_path, FINGERPRINTS) as logger:
            assert logger is None
        assert "W&B cannot be imported" in caplog.text

    @pytest.mark.parametrize(
        ("path", "tells"),
        [("outputs/runs/mini_car", False), ("../home/ada/outputs", True), ("ada-work/outputs", True), (".", False)],
    )
    def test_a_path_that_holds_the_users_name(self, monkeypatch: pytest.MonkeyPatch, path: str, tells: bool) -> None:
        for home, user in (("/home/ada", "x9"), ("/srv/x9", "ada")):
            monkeypatch.setenv("HOME", home)
            monkeypatch.setenv("USER", user)
            monkeypatch.delenv("LOGNAME", raising=False)
            assert tracking._tells_who(path) is tells

    def test_how_to_sync(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        folder = Path("my outputs/runs/mini_car/slime/1-shot/seed0-0123456789abcdef")
        run = folder / "wandb" / "offline-run-1-x"
        run.mkdir(parents=True)
        command = tracking._sync_command(folder)
        assert command.startswith("wandb sync ")
        listed = subprocess.run(["sh", "-c", command.replace("wandb sync", "echo")], capture_output=True, text=True)
        assert listed.stdout.strip() == str(run)


class TestFacts:
    def test_no_path_in_the_configuration(self, cfg: TrialConfig) -> None:
        cfg = cfg.replace(data_root="/home/ada/data", output_root="/home/ada/out", logger={"project": "ada"})
        assert "ada" not in str(tracking.run_facts(cfg, FINGERPRINTS)["config"])

    @given(name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300))
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_within_wandbs_limits(self, cfg: TrialConfig, name: str) -> None:
        made = cfg.replace(data={"name": name, "subject": name}, method={"name": name})
        found = tracking.run_facts(made, FINGERPRINTS)
        assert all(1 <= len(tag) <= 64 for tag in found["tags"]) and len(set(found["tags"])) == len(found["tags"])
        assert len(found["group"]) <= 128 and len(found["name"]) <= 128
        other = tracking.run_facts(made.replace(shots=2), FINGERPRINTS)
        assert found["group"] != other["group"]  # the cut is not in the hash


@pytest.fixture
def trial(tmp_path: Path) -> tuple[Path, TrialResult]:
    """Folder and result of a finished trial: three classes, the last nowhere, three test images, two of them kept."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (3, 8, 8))
    labels[1, 0] = 255
    guesses = rng.integers(0, 2, (3, 8, 8))
    guesses[1] = 0
    counts = IouCounts(*(torch.tensor(each) for each in _counts(labels, guesses)))
    result = from_counts(
        counts, config={}, fingerprints=FINGERPRINTS, method="slime", backbone="b", data="d", subject="car",
        shots=1, seed=0, preset="mini", protocol="p", classes=CLASSES, validation={"score": 0.25, "epoch": 3},
    )  # fmt: skip
    ids = ["x", "y", "z"]
    write_per_image(tmp_path / PER_IMAGE_FILE, ids, CLASSES, counts)
    items = [
        GridItem(np.full((8, 8, 3), 9, np.uint8), labels[i], guesses[i], rng.random((3, 8, 8)), ids[i]) for i in (0, 1)
    ]
    write_qualitative(tmp_path / QUALITATIVE_FILE, items, CLASSES)
    (tmp_path / "environment.json").write_text(json.dumps({"seconds": {"fit": 3.5, "test": 1}}))
    return tmp_path, result


def _counts(labels: np.ndarray, guesses: np.ndarray) -> list[np.ndarray]:
    known = labels != 255
    inner, outer, there = (np.zeros((len(labels), len(CLASSES)), kind) for kind in (np.int64, np.int64, bool))
    for k in range(len(CLASSES)):
        inner[:, k] = ((labels == k) & (guesses == k) & known).sum((1, 2))
        outer[:, k] = (((labels == k) | (guesses == k)) & known).sum((1, 2))
        there[:, k] = (labels == k).any((1, 2))
    return [inner, outer, there]


class TestFinals:
    def test_classes_stand_beside_the_published_numbers(self, trial: tuple[Path, TrialResult]) -> None:
        _, result = trial
        rows = {name: row for name, *row in media.class_rows(result)}
        assert rows["wheel"] == [100 * result.per_class["wheel"], 65.0, 1.4]  # type: ignore[operator]
        assert rows["left light/lamp"] == [None, None, None]  # neither here nor there
        assert sorted(rows) == sorted([*CLASSES, "average"]) and rows["average"][1] == 61.6
        for other in (replace(result, shots=3), replace(result, subject="boat"), result.under("dataset")):
            assert all(row[2:] == [None, None] for row in media.class_rows(other))

    def test_images_have_the_iou_of_their_own_masks(self, trial: tuple[Path, TrialResult]) -> None:
        folder, _ = trial
        items, classes = read_qualitative(folder / QUALITATIVE_FILE)
        assert classes == CLASSES and [item.image_id for item in items] == ["x", "y"]
        for item, (mean, *values) in zip(items, media.image_rows(folder, items), strict=True):
            known = item.label != 255
            expected: list[float | None] = []
            for k in range(len(CLASSES)):
                a, b = ((mask == k) & known for mask in (item.label, item.prediction))
                expected.append(100 * (a & b).sum() / (a | b).sum() if (a | b).any() else None)
            assert values == pytest.approx(expected)
            assert mean == pytest.approx(np.mean([value for value in expected if value is not None]))

    def test_layers_come_by_their_score(self, trial: tuple[Path, TrialResult]) -> None:
        """From the files as the methods write them."""
        from slime_bench.methods.infoscore.layer_study import study
        from slime_bench.methods.infoscore.method import InfoScore
        from slime_bench.methods.infoscore.score import Ranking

        folder, _ = trial
        ranking = Ranking(("a", "b"), *[(1.0, 1.0)] * 4, score=(0.5, 2.0), images=3)
        method = SimpleNamespace(
            ranking=ranking, layers=("b",), config=SimpleNamespace(rank_on="test"), forwarded=3,
            chosen=SimpleNamespace(texts=["wheel"], spans=[[0]]),
        )  # fmt: skip
        (folder / "ranking.json").write_bytes(InfoScore.extra_files(method)["ranking.json"])  # type: ignore[arg-type]
        assert media.layer_rows(folder, "slime") == [["b", 2.0, 1, True, None], ["a", 0.5, 2, False, None]]

        _, _, counts = read_per_image(folder / PER_IMAGE_FILE)
        worse = IouCounts(counts.intersection // 2, counts.union, counts.present)
        made = study({"a": counts, "b": worse}, {"a": ("a",), "b": ("b",)}, ranking, torch.rand(3, 2, 4), True, 2, 0)
        (folder / "layer_study.json").write_text(json.dumps(made))
        alone = {row[0]: row[-1] for row in media.layer_rows(folder, "dataset")}
        assert alone == dict(zip(("a", "b"), made["conventions"]["dataset"]["single"], strict=True))
        assert alone["a"] > alone["b"]

    def test_a_trial_without_pictures_or_ranking(self, tmp_path: Path) -> None:
        assert media.pictures(tmp_path) == {} and media.layer_rows(tmp_path, "slime") == []
        (tmp_path / "ranking.json").write_text('{"layers": ["a"], "ranking": null}')  # the layers were named
        assert media.layer_rows(tmp_path, "slime") == []

    def test_keys_hold_no_separator_of_the_classes(self) -> None:
        assert media.iou(CLASSES[2]) == "test/iou/left light_lamp" and media.score_map("a:b") == "maps/a_b"
        assert media.iou("tête") == "test/iou/tête"


class TestHeat:
    def test_dark_to_bright_and_grey_where_nothing_is_known(self) -> None:
        values = np.array([[0.0, 1.0], [np.nan, 0.5]], np.float16)
        found = media.heat(values).astype(int)
        brightness = found.sum(-1)
        assert brightness[0, 0] < brightness[1, 1] < brightness[0, 1]
        assert (found[1, 0] == 128).all()

    def test_a_map_that_is_the_same_everywhere(self) -> None:
        assert len(np.unique(media.heat(np.full((4, 4), 3.0)).reshape(-1, 3), axis=0)) == 1
