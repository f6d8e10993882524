"""The pure parts of the W&B mirror; what W&B itself makes of them is in tests/e2e/test_wandb.py."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from slime_bench import tracking as logger
from slime_bench.errors import ConfigError, SlimeBenchError
from slime_bench.metrics import CONVENTION_RULES
from slime_bench.metrics.iou import IouCounts
from slime_bench.results.qualitative import QUALITATIVE_FILE, GridItem, write_qualitative
from slime_bench.results.result import PER_IMAGE_FILE, from_counts, read_per_image, write_per_image, write_result
from slime_bench.tracking import finals, keys, mode, process, record, session, workspace
from slime_bench.tracking.facts import run_facts
from slime_bench.tracking.layout import layout
from slime_bench.tracking.transaction_log import _payloads, last_step

CLASSES = ["background", "wheel", "left light/lamp"]
FINGERPRINTS = {"data": "d" * 64, "backbone": "b" * 64}


def plain(**changes: Any) -> dict[str, Any]:
    """A resolved configuration with the keys that a run is named after."""
    groups = {group: {"name": f"{group}_name"} for group in ("method", "backbone", "protocol")}
    rest = {"data": {"name": "mini_car", "subject": "car"}, "metric": {"convention": "slime", "background": True}}
    return {**groups, **rest, "preset": "mini", "shots": 1, "seed": 0, "force": False, **changes}


class TestMode:
    @pytest.mark.parametrize(
        ("configured", "variable", "found"),
        [
            (None, None, None),
            (None, "", None),
            (None, "online", "online"),
            (None, "run", "online"),
            (None, "offline", "offline"),
            (None, "dryrun", "offline"),
            (None, "disabled", "disabled"),
            ("offline", "disabled", "offline"),  # the command line has the last word
            ("online", "offline", "online"),
        ],
    )
    def test_what_is_asked_for(self, configured: str | None, variable: str | None, found: str | None) -> None:
        environ = {} if variable is None else {"WANDB_MODE": variable}
        assert mode.asked_for(configured, environ) == found

    def test_a_mode_that_trials_cannot_be_logged_in(self) -> None:
        with pytest.raises(ConfigError, match=r"WANDB_MODE.*\n(.*\n)*.*'shared'"):
            mode.asked_for(None, {"WANDB_MODE": "shared"})

    @pytest.mark.parametrize(
        ("content", "url", "found"),
        [
            ("machine api.wandb.ai login user password k\n", "https://api.wandb.ai", True),
            ("machine api.wandb.ai login user password k\n", "https://api.forge.coreweave.com", True),
            ("machine api.wandb.ai login user password k\n", "http://wandb.example.org:8080", False),
            ("machine wandb.example.org:8080 login user password k\n", "http://wandb.example.org:8080", True),
            ("machine api.wandb.ai login user\n", "https://api.wandb.ai", False),
            ('machine api.wandb.ai login user password ""\n', "https://api.wandb.ai", False),
            ("machine github.com login user password k\n", "https://api.wandb.ai", False),
            ("what is this", "https://api.wandb.ai", False),
            (None, "https://api.wandb.ai", False),
        ],
    )
    @pytest.mark.parametrize("name", [".netrc", "_netrc", "elsewhere"])
    def test_a_key_of_wandb_login(self, tmp_path: Path, content: str | None, url: str, found: bool, name: str) -> None:
        if content is not None:
            (tmp_path / name).write_text(content)
        environ = {"HOME": str(tmp_path)} | ({"NETRC": str(tmp_path / name)} if name == "elsewhere" else {})
        assert mode.has_key(environ, url) is found

    @pytest.mark.parametrize("name", ["WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"])
    def test_a_key_in_the_environment(self, tmp_path: Path, name: str) -> None:
        assert mode.has_key({"HOME": str(tmp_path), name: "x"}, "https://api.wandb.ai")
        assert not mode.has_key({"HOME": str(tmp_path), name: ""}, "https://api.wandb.ai")

    def test_settings_that_this_wandb_lacks_are_left_out(self) -> None:
        known = ["console", "host", "entity", "init_timeout"]
        assert mode.settings("offline", 3, 4, dict.fromkeys(known)) == {
            "console": "off", "host": "", "entity": "", "init_timeout": 3,
        }  # fmt: skip
        assert "entity" not in mode.settings("online", 3, 4, dict.fromkeys(known))

    @pytest.mark.parametrize(
        ("path", "tells"),
        [("outputs/runs/mini_car", False), ("../home/ada/outputs", True), ("ada-work/outputs", True), (".", False)],
    )
    def test_a_path_that_holds_the_users_name(self, path: str, tells: bool) -> None:
        assert mode.tells_who(path, {"HOME": "/home/ada"}) is tells
        assert mode.tells_who(path, {"HOME": "/srv/x", "USER": "ada"}) is tells

    @pytest.mark.parametrize("variable", ["disabled", None])
    def test_disabled_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
    ) -> None:
        config: dict[str, Any] = {"name": "wandb", "project": "p", "mode": None, "timeout": 9, "finish_timeout": 9}
        if variable is None:
            monkeypatch.delenv("WANDB_MODE")
            config["mode"] = "disabled"
        cfg = OmegaConf.create({"logger": config})
        with logger.closed_logger(cfg, tmp_path, plain(), FINGERPRINTS):
            assert logger.make_logger(cfg, tmp_path) is False
        assert list(tmp_path.iterdir()) == []


class TestFacts:
    def test_id_and_group(self) -> None:
        one, other, changed = (
            run_facts(plain(**change), FINGERPRINTS) for change in ({}, {"seed": 1}, {"method": {"name": "m", "lr": 1}})
        )
        assert one.id == one.config["signature"] and len({one.id, other.id, changed.id}) == 3
        assert one.group == other.group != changed.group
        assert one.group.endswith(one.config["series"]) and one.job_type == "method_name"
        assert one.name == "method_name mini_car 1-shot seed 0"
        assert {"mini", "car", "1-shot", "protocol_name", "mini_car", "backbone_name"} <= set(one.tags)

    def test_a_trial_computed_anew_is_another_run_of_the_same_group(self) -> None:
        one, anew = (run_facts(plain(), FINGERPRINTS, attempt) for attempt in (1, 2))
        assert anew.id == f"{one.id}-2" and anew.group == one.group and anew.config == one.config

    def test_no_secret_and_no_path_in_the_configuration(self) -> None:
        found = run_facts(
            plain(
                hub_token="hunter2", data_root="/home/ada/data", output_root="/home/ada/out", logger={"x": "/home/ada"}
            ),
            FINGERPRINTS,
        )
        assert "hunter2" not in str(found) and "ada" not in str(found)

    @given(name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300))
    @settings(max_examples=40, deadline=None)
    def test_within_wandbs_limits(self, name: str) -> None:
        made = plain(data={"name": name, "subject": name}, method={"name": name})
        found = run_facts(made, FINGERPRINTS)
        assert all(1 <= len(tag) <= 64 for tag in found.tags) and len(set(found.tags)) == len(found.tags)
        assert len(found.group) <= 128 and len(found.name) <= 128
        assert found.group != run_facts({**made, "shots": 2}, FINGERPRINTS).group  # the cut is not in the hash


def leveldb(payloads: list[bytes]) -> bytes:
    """The format as its description has it (github.com/google/leveldb, doc/log_format.md), behind W&B's header."""
    made = b":W&B" + b"\xbe\xef\x00"
    for payload in payloads:
        first = True
        while True:
            room = 32768 - len(made) % 32768
            if room < 7:
                made += b"\0" * room
                room = 32768
            part, payload = payload[: room - 7], payload[room - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not payload]
            made += struct.pack("<IHB", 0, len(part), kind) + part
            first = False
            if not payload:
                break
    return made


class TestTransactionLog:
    sizes = st.lists(st.sampled_from([0, 1, 100, 32000, 32747, 32754, 32761, 32768, 70000]), max_size=5)

    @given(sizes=sizes, data=st.data())
    @settings(max_examples=60, deadline=None)
    def test_what_was_written_up_to_where_it_is_cut(self, sizes: list[int], data: st.DataObject) -> None:
        payloads = [bytes([65 + index]) * size for index, size in enumerate(sizes)]
        whole = leveldb(payloads)
        assert list(_payloads(whole)) == payloads
        cut = data.draw(st.integers(7, len(whole)))
        ends = [len(leveldb(payloads[: index + 1])) for index in range(len(payloads))]
        assert list(_payloads(whole[:cut])) == payloads[: sum(end <= cut for end in ends)]

    def test_a_file_of_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="W&B"):
            list(_payloads(b"PK\x03\x04"))
        folder = tmp_path / "wandb" / "offline-run-1-abc"
        folder.mkdir(parents=True)
        (folder / "run-abc.wandb").write_bytes(b"PK")
        assert last_step(tmp_path, "abc") == -1


@pytest.fixture
def trial_folder(tmp_path: Path) -> Path:
    """Files of a finished trial: three classes, three test images of which two are kept, the last class in none."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (3, 8, 8))
    labels[1, 0] = 255
    guesses = rng.integers(0, 2, (3, 8, 8))
    guesses[1] = 0
    counts = IouCounts(*(torch.tensor(each) for each in _counts(labels, guesses)))
    result = from_counts(
        counts, config=plain(), fingerprints=FINGERPRINTS, method="m", backbone="b", data="d", subject="car", shots=1,
        seed=0, preset="mini", protocol="p", classes=CLASSES, validation={"score": 0.25, "epoch": 3},
    )  # fmt: skip
    ids = ["x", "y", "z"]
    write_per_image(tmp_path / PER_IMAGE_FILE, ids, CLASSES, counts)
    items = [
        GridItem(np.full((8, 8, 3), 9, np.uint8), labels[i], guesses[i], rng.random((3, 8, 8)), ids[i]) for i in (0, 1)
    ]
    write_qualitative(tmp_path / QUALITATIVE_FILE, items, CLASSES)
    (tmp_path / "environment.json").write_text(json.dumps({"seconds": {"fit": 3.5, "test": 1}}))
    write_result(tmp_path, result)
    return tmp_path


def _counts(labels: np.ndarray, guesses: np.ndarray) -> list[np.ndarray]:
    known = labels != 255
    inner, outer, there = (np.zeros((len(labels), len(CLASSES)), kind) for kind in (np.int64, np.int64, bool))
    for k in range(len(CLASSES)):
        inner[:, k] = ((labels == k) & (guesses == k) & known).sum((1, 2))
        outer[:, k] = (((labels == k) | (guesses == k)) & known).sum((1, 2))
        there[:, k] = (labels == k).any((1, 2))
    return [inner, outer, there]


class TestFinals:
    def test_summary_is_the_result_in_percent(self, trial_folder: Path) -> None:
        from slime_bench.results.result import read_result

        result = read_result(trial_folder / "result.json")
        found = finals.summary(result, finals.seconds(trial_folder))
        assert result.average is not None
        assert found["test/miou"] == 100 * result.average == found["test/slime/miou"]
        assert found["test/iou/wheel"] == found["test/slime/wheel"] == 100 * result.per_class["wheel"]  # type: ignore[operator]
        for convention in CONVENTION_RULES:
            assert found[f"test/{convention}/wheel"] == 100 * result.conventions[convention]["per_class"]["wheel"]
        # No image has the class: an IoU of 0 would be a lie.
        assert not [key for key in found if "lamp" in key]
        assert (found["val/best_miou"], found["val/best_epoch"]) == (25.0, 3)
        assert (found["seconds/fit"], found["seconds/test"]) == (3.5, 1.0)

    def test_examples_have_the_iou_of_their_own_masks(self, trial_folder: Path) -> None:
        found, classes = finals.examples(trial_folder)
        assert classes == CLASSES and [one.item.image_id for one in found] == ["x", "y"]
        for one in found:
            known = one.item.label != 255
            for k, name in enumerate(CLASSES):
                a, b = ((mask == k) & known for mask in (one.item.label, one.item.prediction))
                expected = 100 * (a & b).sum() / (a | b).sum() if (a | b).any() else None
                assert one.iou[name] == pytest.approx(expected)
            assert one.miou == pytest.approx(np.mean([value for value in one.iou.values() if value is not None]))

    def test_layers_come_by_their_score(self, trial_folder: Path) -> None:
        """From the files as the methods write them."""
        from slime_bench.methods.infoscore.layer_study import study
        from slime_bench.methods.infoscore.method import InfoScore
        from slime_bench.methods.infoscore.score import Ranking

        ranking = Ranking(("a", "b"), *[(1.0, 1.0)] * 4, score=(0.5, 2.0), images=3)
        method = SimpleNamespace(
            ranking=ranking, layers=("b",), config=SimpleNamespace(rank_on="test"), forwarded=3,
            chosen=SimpleNamespace(texts=["wheel"], spans=[[0]]),
        )  # fmt: skip
        (trial_folder / "ranking.json").write_bytes(InfoScore.extra_files(method)["ranking.json"])  # type: ignore[arg-type]
        assert finals.layers(trial_folder, "slime") == [("b", 2.0, 1, True, None), ("a", 0.5, 2, False, None)]

        _, _, counts = read_per_image(trial_folder / PER_IMAGE_FILE)
        worse = IouCounts(counts.intersection // 2, counts.union, counts.present)
        made = study({"a": counts, "b": worse}, {"a": ("a",), "b": ("b",)}, ranking, torch.rand(3, 2, 4), True, 2, 0)
        (trial_folder / "layer_study.json").write_text(json.dumps(made))
        alone = {row[0]: row[-1] for row in finals.layers(trial_folder, "dataset")}
        assert alone == dict(zip(("a", "b"), made["conventions"]["dataset"]["single"], strict=True))
        assert alone["a"] > alone["b"]

    def test_a_trial_without_pictures_or_ranking(self, tmp_path: Path) -> None:
        assert finals.examples(tmp_path) == ([], []) and finals.layers(tmp_path, "slime") == []
        assert finals.seconds(tmp_path) == {}
        (tmp_path / "ranking.json").write_text('{"layers": ["a"], "ranking": null}')  # the layers were named
        assert finals.layers(tmp_path, "slime") == []

    def test_keys_hold_no_separator_of_the_classes(self) -> None:
        assert keys.iou(CLASSES[2]) == "test/iou/left light_lamp" and keys.score_map("a:b") == "maps/a_b"
        assert keys.iou("tête") == "test/iou/tête"


class TestHeat:
    def test_dark_to_bright_and_grey_where_nothing_is_known(self) -> None:
        from slime_bench.tracking.media import heat

        values = np.array([[0.0, 1.0], [np.nan, 0.5]], np.float16)
        found = heat(values).astype(int)
        brightness = found.sum(-1)
        assert brightness[0, 0] < brightness[1, 1] < brightness[0, 1]
        assert (found[1, 0] == 128).all()

    @pytest.mark.parametrize("value", [0.0, 3.0, np.nan])
    def test_a_map_that_is_the_same_everywhere(self, value: float) -> None:
        from slime_bench.tracking.media import heat

        assert len(np.unique(heat(np.full((4, 4), value)).reshape(-1, 3), axis=0)) == 1

    def test_large_maps_become_small_pictures(self) -> None:
        from slime_bench.tracking.media import heat

        assert heat(np.random.default_rng(0).random((512, 256))).shape == (256, 128, 3)


class TestSession:
    @pytest.mark.parametrize(
        ("kept", "force", "found"),
        [
            (None, True, 1),
            ({"id": "abc", "complete": True}, True, 2),
            ({"id": "abc", "complete": True}, False, 1),
            ({"id": "abc", "complete": False}, True, 1),
            ({"id": "abc-2", "complete": True}, True, 3),
            ({"id": "abc-2", "complete": False}, False, 2),
            ([], True, 1),
        ],
    )
    def test_only_a_complete_run_is_left_behind(self, tmp_path: Path, kept: Any, force: bool, found: int) -> None:
        if kept is not None:
            (tmp_path / "wandb").mkdir()
            (tmp_path / "wandb" / "trial.json").write_text(json.dumps(kept))
        assert record.attempt(tmp_path, force) == found

    @pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
    @pytest.mark.parametrize("chained", [False, True])
    def test_exit_codes(self, error: BaseException, chained: bool) -> None:
        if chained:
            error.__context__ = KeyboardInterrupt()  # as Lightning answers Ctrl-C
        interrupted = chained or isinstance(error, KeyboardInterrupt)
        assert session.exit_code(error) == (255 if interrupted else 1)

    def test_waiting_has_an_end(self) -> None:
        released, done = threading.Event(), []
        with pytest.raises(TimeoutError):
            process.within(0.05, lambda: released.wait(30) and done.append(1), released.set)
        assert done == [1]  # it was hurried
        with pytest.raises(KeyError, match="x"):
            process.within(5, lambda: {}["x"], released.clear)
        process.within(5, lambda: done.append(2), lambda: done.append(3))
        assert done == [1, 2]

    def test_how_to_sync(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        folder = Path("my outputs/runs/mini_car/slime/1-shot/seed0-0123456789abcdef")
        run = folder / "wandb" / "offline-run-1-x"
        run.mkdir(parents=True)
        command = session._sync_command(folder)
        assert command.startswith("wandb sync ")
        import subprocess

        listed = subprocess.run(["sh", "-c", command.replace("wandb sync", "echo")], capture_output=True, text=True)
        assert listed.stdout.strip() == str(run)


class TestWorkspace:
    def shown(self) -> list[str]:
        classes = workspace.classes_of("car")
        return [key for part in layout(classes, list(CONVENTION_RULES)) for panel in part.panels for key in panel.keys]

    def test_it_asks_for_what_is_logged(self) -> None:
        known = {value for name, value in vars(keys).items() if name.isupper()}
        terms = {f"train/{name}" for name in ("cross_entropy", "was", "diffusion")}
        classes = workspace.classes_of("car")
        assert classes[0] == "background" and len(classes) == 6
        made = {keys.iou(name) for name in classes} | {keys.score_map(name) for name in classes}
        averages = {keys.iou("miou", name) for name in CONVENTION_RULES}
        assert set(self.shown()) <= known | terms | made | averages
        assert made | averages <= set(self.shown()) and len(self.shown()) == len(set(self.shown()))

    def test_what_is_sent_holds_every_key(self) -> None:
        pytest.importorskip("wandb_workspaces")
        sections = layout(workspace.classes_of("car"), list(CONVENTION_RULES))
        view = workspace.workspace(sections, "team", "slime-bench", "a name", "car")._to_model()
        text = view.model_dump_json(by_alias=True)
        assert [key for key in self.shown() if key not in text.replace('\\"', '"')] == []
        spec = json.loads(text)
        assert spec["displayName"] == "a name"
        assert '"op":"IN","value":["car"]' in text.replace("\\", "")

    def test_without_the_extra(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
        assert workspace.main(["--entity", "team"]) == 2
        said = capsys.readouterr().err
        assert "not installed" in said and "slime-bench[workspaces]" in said and "Traceback" not in said

    def test_an_unknown_subject(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert workspace.main(["--subject", "boat"]) == 2
        assert "car or face or horse" in capsys.readouterr().err

    def test_an_account_that_may_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> Mapping[str, Any]:
            raise RuntimeError("permission denied\nTraceback")

        monkeypatch.setattr(workspace, "_library", lambda: None)
        monkeypatch.setattr(workspace, "workspace", refuse)
        with pytest.raises(SlimeBenchError, match="permission denied") as caught:
            workspace.save("car", "slime-bench", "team")
        assert "slime-bench report" in str(caught.value)
