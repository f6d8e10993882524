"""Real trials through the command line with W&B offline, and with a W&B that fails; nothing leaves the machine."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from slime_bench import tracking as logger
from slime_bench.errors import ConfigError
from slime_bench.metrics.iou import IouCounts
from slime_bench.results.identity import flatten
from slime_bench.results.qualitative import GridItem, read_qualitative, write_qualitative
from slime_bench.results.result import from_counts, read_per_image, read_result, write_per_image, write_result
from slime_bench.tracking import keys, record, session
from slime_bench.tracking.transaction_log import history, records
from tests.e2e.conftest import Bench, contents
from tests.fixtures.twins.wandb_server import Told, wandb_server

CANARY = "canary7"
SECRETS = {
    "WANDB_API_KEY": f"{CANARY}".ljust(40, "0"),
    "HF_TOKEN": f"hf_{CANARY}",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}aws",
    "GITHUB_TOKEN": f"ghp_{CANARY}",
    "DB_PASSWORD": f"{CANARY}pass",
    "WANDB_ENTITY": f"{CANARY}-team",
    "WANDB_USERNAME": f"{CANARY}-account",
    "WANDB_USER_EMAIL": f"{CANARY}@example.org",
    "USER": f"{CANARY}-user",
    "LOGNAME": f"{CANARY}-user",
    "USERNAME": f"{CANARY}-user",
}


@contextlib.contextmanager
def wandb_process(folder: Path, **environ: str) -> Iterator[None]:
    """W&B as in a new process: canaries in the environment, the working folder and the home under `folder`, and as its
    server a port of this machine on which nobody listens."""
    import wandb

    home = folder / f"{CANARY}-home"
    home.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, closed_port() as port:
        patch.delenv("WANDB_MODE", raising=False)
        for name, value in {**SECRETS, "HOME": str(home), "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}.items():
            patch.setenv(name, value)
        for name, value in environ.items():
            patch.setenv(name, value) if value else patch.delenv(name, raising=False)
        patch.chdir(folder)
        patch.setattr(socket, "gethostname", lambda: f"{CANARY}-host")
        patch.setattr(session, "_said", set())
        patch.setattr(session, "_unreachable", False)
        try:
            yield
        finally:
            assert wandb.run is None
            wandb.teardown()


def wandb_restarts() -> None:
    """As in another process: W&B reads the environment anew."""
    import wandb

    wandb.teardown()


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port of 127.0.0.1 that is taken, so that nobody else listens on it, and not listened on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


def log_file(folder: Path) -> Path:
    (found,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return found


def everything(root: Path) -> Iterator[tuple[str, bytes]]:
    """Every name, link and content under `root`."""
    for path in root.rglob("*"):
        yield str(path), path.relative_to(root).as_posix().encode()
        if path.is_symlink():
            yield str(path), os.readlink(path).encode()
        elif path.is_file():
            yield str(path), path.read_bytes()


def records_of(path: Path, kind: str) -> list[Any]:
    return [getattr(record, kind) for record in records(path) if record.WhichOneof("record_type") == kind]


def config_of(path: Path) -> dict[str, Any]:
    """The run's configuration after everything that was logged."""
    updates = [item for each in records_of(path, "run") for item in each.config.update]
    updates += [item for each in records_of(path, "config") for item in each.update]
    return {item.key: json.loads(item.value_json) for item in updates}


def summary_of(path: Path) -> dict[str, Any]:
    items = [item for each in records_of(path, "summary") for item in each.update]
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def settings_of(outputs: Path, **changes: Any) -> Any:
    """`cfg` and the other arguments of `closed_logger`, for a trial that nobody computes."""
    config = {"name": "wandb", "project": "slime-bench", "mode": None, "timeout": 2.0, "finish_timeout": 20.0}
    cfg = OmegaConf.create({"logger": {**config, **changes}})
    groups = {group: {"name": f"{group}_name"} for group in ("method", "backbone", "protocol")}
    rest = {"data": {"name": "d", "subject": "car"}, "metric": {"convention": "slime"}, "preset": "mini"}
    return cfg, outputs / "runs" / "d" / "m" / "1-shot" / "seed0-x", {**groups, **rest, "shots": 1, "seed": 0}, {}


def train(arguments: Any, steps: range, die: BaseException | None = None, finish: bool = False) -> None:
    """A trial that logs a loss at each step, and may end with an error, or finish with a result."""
    arguments[1].mkdir(parents=True, exist_ok=True)
    with logger.closed_logger(*arguments):
        made = logger.make_logger(*arguments[:2])
        for step in steps:
            if made:
                made.log_metrics({keys.LOSS: 1 / (step + 1)}, step)
        if finish:
            write_finished(arguments[1])
            logger.log_result(arguments[1], read_result(arguments[1] / "result.json"))
        if die is not None:
            raise die


def steps_of(folder: Path, count: int) -> list[int]:
    """The steps in all files of the trial's run, in the order in which they would be synced; `count` of them.

    Twice, in a whole test run, the files had no rows when the run had just ended, and nobody knows why: they are given
    ten seconds, and what is in them is said.
    """
    until = time.monotonic() + 10
    while True:
        files = sorted(folder.glob("wandb/*run-*/*.wandb"))
        found = [row[keys.STEP] for path in files for row in history(path) if keys.LOSS in row]
        if len(found) >= count:
            return found
        if time.monotonic() > until:
            kinds = {path.name: [each.WhichOneof("record_type") for each in records(path)] for path in files}
            sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
            pytest.fail(f"{len(found)} of {count} rows; records {kinds}; files {sizes}")
        time.sleep(0.1)


@pytest.fixture(scope="module")
def mirrored(tiny_sd: Path, car_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One trial with `logger=wandb` and no key; and then the same command once more. Beside `outputs` is `again`: the
    finished trial, of which W&B had nothing when the command was repeated."""
    folder = tmp_path_factory.mktemp("mirrored")
    bench = Bench(tiny_sd, car_pictures, Path("outputs"))
    with wandb_process(folder, WANDB_API_KEY=""):
        assert bench("logger=wandb", "shots=1", "save_maps=2").code == 0
        before = contents(bench.folder())
        assert bench("logger=wandb", "shots=1", "save_maps=2").code == 0
        assert contents(bench.folder()) == before
        shutil.copytree("outputs", "again")
        again = replace(bench, outputs=Path("again"))
        shutil.rmtree(again.folder() / "wandb")
        assert again("logger=wandb", "shots=1", "save_maps=2").code == 0
    yield replace(bench, outputs=folder / "outputs")


class TestOffline:
    def test_the_run_is_the_trial(self, mirrored: Bench) -> None:
        result = mirrored.result()
        (run,) = records_of(log_file(mirrored.folder()), "run")
        assert (run.run_id, run.run_group) == (result.signature, f"slime-tiny_car-1-shot-{result.series}")
        assert (run.job_type, run.project, run.display_name) == ("slime", "slime-bench", "slime tiny_car 1-shot seed 0")
        assert {"mini", "car", "1-shot", "tiny_car", "slime_mini"} <= set(run.tags) and run.resume
        assert (run.entity, run.host) == ("", "")

    def test_the_configuration_is_the_recorded_one(self, mirrored: Bench) -> None:
        result, found = mirrored.result(), config_of(log_file(mirrored.folder()))
        recorded = {key: value for key, value in flatten(result.config) if value != {}}  # which W&B does not keep
        assert dict(flatten({key: found[key] for key in result.config})) == recorded
        assert (found["signature"], found["series"]) == (result.signature, result.series)

    def test_curves(self, mirrored: Bench) -> None:
        rows = list(history(log_file(mirrored.folder())))
        assert [row[keys.STEP] for row in rows] == [0, 1]
        terms = {"train/cross_entropy", "train/was", "train/diffusion"}
        for row in rows:
            assert terms | {keys.LOSS, keys.LEARNING_RATE, keys.TIMESTEP, keys.MEMORY} <= set(row)
            assert row[keys.LEARNING_RATE] == 0.1 and 20 <= row[keys.TIMESTEP] <= 200 and row[keys.MEMORY] > 0
        assert rows[1][keys.SECONDS] > 0 and [keys.VALIDATION in row for row in rows].count(True) >= 1

    def test_all_conventions_in_the_summary(self, mirrored: Bench) -> None:
        result, found = mirrored.result(), summary_of(log_file(mirrored.folder()))
        for convention, table in result.conventions.items():
            assert found[keys.iou("miou", convention)] == pytest.approx(100 * table["average"])
            for name, value in table["per_class"].items():
                assert found.get(keys.iou(name, convention)) == (None if value is None else pytest.approx(100 * value))
        assert found[keys.MIOU] == pytest.approx(100 * result.average) and found["seconds/fit"] > 0

    def test_test_images_with_their_masks(self, mirrored: Bench) -> None:
        """The pictures that W&B will show are the trial's own, pixel by pixel."""
        folder = mirrored.folder()
        (row,) = [row for row in history(log_file(folder)) if f"{keys.EXAMPLES}.count" in row]
        files = log_file(folder).parent / "files"
        items, _ = read_qualitative(folder / "qualitative.npz")
        assert row[f"{keys.EXAMPLES}.captions"] == [item.image_id for item in items] and len(items) == 2
        names, masks = row[f"{keys.EXAMPLES}.filenames"], row[f"{keys.EXAMPLES}.all_masks"]
        for item, name, both in zip(items, names, masks, strict=True):
            assert (pixels(files / name) == item.image).all()
            assert (pixels(files / both[keys.PREDICTION]["path"]) == item.prediction).all()
            assert (pixels(files / both[keys.TRUTH]["path"]) == item.label).all()

    def test_masks_are_labelled_by_class(self, mirrored: Bench) -> None:
        path = log_file(mirrored.folder())
        labels = config_of(path)["_wandb"]["mask/class_labels"]
        expected = {str(index): name for index, name in enumerate(mirrored.result().classes)}
        assert {key: each["value"] for key, each in labels.items() if keys.EXAMPLES in key} == {
            f"{keys.EXAMPLES}_wandb_delimeter_{mask}": {**expected, "255": "not annotated"}
            for mask in (keys.PREDICTION, keys.TRUTH)
        }

    def test_the_table(self, mirrored: Bench) -> None:
        """It is in an artifact, whose files lie in the trial's folder under a path that says nothing of the machine."""
        folder, result = mirrored.folder(), mirrored.result()
        (artifact,) = [each for each in records_of(log_file(folder), "artifact") if "images" in each.name]
        places = {entry.path: entry.local_path for entry in artifact.manifest.contents}
        root = mirrored.outputs.parent
        assert all(place.startswith("outputs/runs/") and (root / place).is_file() for place in places.values())
        table = json.loads((root / places[f"{keys.TABLE}.table.json"]).read_text())
        assert table["columns"] == ["image_id", "image", "mIoU", *result.classes]
        (first, second) = table["data"]
        assert [first[0], second[0]] == ["car-test-0", "car-test-1"]
        assert set(first[1]["masks"]) == {keys.PREDICTION, keys.TRUTH} and first[1]["path"] in places
        ids, classes, counts = read_per_image(folder / "per_image.parquet")
        row = ids.index("car-test-0")
        for name, value in zip(classes, first[3:], strict=True):
            inner, outer = (int(part[row, classes.index(name)]) for part in (counts.intersection, counts.union))
            assert value == (pytest.approx(100 * inner / outer) if outer else None)

    def test_a_map_of_every_class(self, mirrored: Bench) -> None:
        folder = mirrored.folder()
        (row,) = [row for row in history(log_file(folder)) if f"{keys.EXAMPLES}.count" in row]
        for name in mirrored.result().classes:
            files = row[f"{keys.score_map(name)}.filenames"]
            assert len(files) == 2 and all((log_file(folder).parent / "files" / file).is_file() for file in files)

    def test_a_trial_that_was_finished_without_wandb(self, mirrored: Bench) -> None:
        """It was not computed again, so it has no curve; all else is there."""
        again = replace(mirrored, outputs=mirrored.outputs.parent / "again")
        first, second = log_file(mirrored.folder()), log_file(again.folder())
        assert first.name == second.name and config_of(first)["signature"] == config_of(second)["signature"]
        (row,) = history(second)
        assert keys.LOSS not in row and f"{keys.TABLE}.artifact_path" in row and f"{keys.EXAMPLES}.count" in row
        wanted = {key: value for key, value in summary_of(first).items() if key.startswith("test/") and "." not in key}
        found = summary_of(second)
        assert len(wanted) > 20 and {key: found[key] for key in wanted} == wanted

    def test_how_it_ended(self, mirrored: Bench) -> None:
        folder = mirrored.folder()
        (ended,) = records_of(log_file(folder), "exit")
        assert ended.exit_code == 0
        assert json.loads((folder / "wandb" / "trial.json").read_text())["complete"] is True

    def test_no_secret_no_name_no_path_of_the_machine(self, mirrored: Bench) -> None:
        """The outputs' own path is not among them: the home is a canary beside it."""
        found = list(everything(mirrored.outputs))
        assert len(found) > 30 and [name for name, content in found if CANARY.encode() in content] == []
        files = list(everything(mirrored.folder() / "wandb"))
        words = [str(mirrored.outputs.parent), sys.prefix, *(name for name in [platform.node()] if len(name) > 5)]
        assert [(name, word) for name, content in files for word in words if word.encode() in content] == []


def test_trials_that_were_fitted_in_one_batch_have_a_run_each(
    tiny_sd: Path, car_pictures: Path, tmp_path: Path
) -> None:
    bench = Bench(tiny_sd, car_pictures, Path("outputs"))
    with wandb_process(tmp_path, WANDB_API_KEY=""):
        assert bench("--multirun", "seed=0,1", "logger=wandb").code == 0
    bench, curves = replace(bench, outputs=tmp_path / "outputs"), []
    for seed in (0, 1):
        folder = bench.folder(1, seed)
        (run,) = records_of(log_file(folder), "run")
        assert run.run_id == bench.result(1, seed).signature
        assert len(json.loads((folder / "environment.json").read_text())["together"]) == 2
        rows = list(history(log_file(folder)))
        assert [row[keys.STEP] for row in rows] == [0, 1]
        # What a step took, and held, was that of the batch.
        assert all({keys.LOSS, keys.LEARNING_RATE, keys.TIMESTEP} <= set(row) for row in rows)
        assert not any({keys.SECONDS, keys.MEMORY} & set(row) for row in rows)
        curves.append([row[keys.LOSS] for row in rows])
    assert curves[0] != curves[1]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


class TestGoingOn:
    def test_killed_failed_and_interrupted_trials(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Processes log steps 0-4, 3-6 and 5-9 of one trial: each step stands in its run once."""
        with wandb_process(tmp_path, WANDB_API_KEY=""), caplog.at_level("INFO", "slime_bench"):
            arguments = settings_of(Path("outputs"))
            folder = tmp_path / arguments[1]
            with pytest.raises(ValueError, match="broken"):
                train(arguments, range(5), ValueError("broken"))
            assert steps_of(folder, 5) == [0, 1, 2, 3, 4]
            with pytest.raises(KeyboardInterrupt):
                train(arguments, range(3, 7), KeyboardInterrupt())
            train(arguments, range(5, 10))
            assert steps_of(folder, 10) == list(range(10))
            files = sorted(folder.glob("wandb/*/*.wandb"))
            assert len({path.name for path in files}) == 1  # one id
            assert sorted(records_of(path, "exit")[0].exit_code for path in files) == [0, 1, 255]
            # By force, the finished trial is another run.
            train((*arguments[:2], {**arguments[2], "force": True}, {}), range(2))
            assert {path.stem for path in folder.glob("wandb/*/*.wandb")} == {files[0].stem, f"{files[0].stem}-2"}

            said = [record.getMessage() for record in caplog.records]
            assert [line for line in said if "no key" in line] == [
                "W&B: no key is set, so runs are kept offline; with one (`wandb login`): "
                "wandb sync outputs/runs/*/*/*/*/wandb/offline-run-*"
            ]
            import wandb

            active = wandb.init(mode="offline", dir=str(tmp_path), settings=wandb.Settings(silent=True))
            with pytest.raises(ConfigError, match=f"active already(.|\n)*{active.id}"):
                train(arguments, range(1))
            active.finish()
        assert [name for name, content in everything(folder) if CANARY.encode() in content] == []

    def test_a_sweep_of_wandbs_own(self, tmp_path: Path) -> None:
        """Its agent has chosen the run, and waits for a result of it, also where W&B has the trial already."""
        with wandb_process(tmp_path, WANDB_API_KEY="", WANDB_SWEEP_ID="sweep1", WANDB_RUN_ID="agents1"):
            arguments = settings_of(Path("outputs"), mode="offline")
            train(arguments, range(2), finish=True)
            os.environ["WANDB_RUN_ID"] = "agents2"
            wandb_restarts()
            result = read_result(arguments[1] / "result.json")
            logger.mirror_finished(*arguments, result)
            files = {path.name: path for path in tmp_path.glob("outputs/**/*.wandb")}
            assert set(files) == {"run-agents1.wandb", "run-agents2.wandb"}
            for path in files.values():
                assert summary_of(path)[keys.MIOU] == pytest.approx(100 * (result.average or 0))
                assert records_of(path, "run")[0].sweep_id == "sweep1"


class TestFailures:
    def test_an_unreachable_server_costs_no_trial(
        self, tiny_sd: Path, car_pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The curve is kept offline; the second trial of the process does not wait again; nothing else is contacted."""
        bench = Bench(tiny_sd, car_pictures, Path("outputs"))
        with wandb_process(tmp_path), only_loopback() as asked, caplog.at_level("WARNING", "slime_bench"):
            began = time.monotonic()
            outcome = bench("logger=wandb", "logger.mode=online", "logger.timeout=2", "save_maps=1")
            assert outcome.code == 0 and time.monotonic() - began < 120
            folder = bench.folder()
            assert read_result(folder / "result.json").num_test_images == 5
            assert [row[keys.STEP] for row in history(log_file(folder))] == [0, 1]
            assert not list(folder.glob("wandb/run-*"))
            train(settings_of(Path("outputs"), mode="online"), range(3))
            assert steps_of(settings_of(Path("outputs"))[1], 3) == [0, 1, 2]
        warnings = [each.getMessage() for each in caplog.records if "W&B" in each.getMessage()]
        assert len(warnings) == 1 and "does not take the run" in warnings[0]
        assert set(asked) <= {"127.0.0.1"}
        assert [name for name, content in everything(tmp_path / "outputs") if CANARY.encode() in content] == []

    @pytest.mark.parametrize("where", ["log", "finish", "start", "service"])
    def test_whatever_wandb_raises(
        self, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One line for the user, and the block goes on; the next trial has W&B again."""
        import wandb

        with wandb_process(tmp_path, WANDB_API_KEY=""):
            arguments = settings_of(Path("outputs"))
            with monkeypatch.context() as patch, caplog.at_level("WARNING", "slime_bench"):
                if where == "service":
                    arguments[1].mkdir(parents=True)
                    with logger.closed_logger(*arguments):
                        made = logger.make_logger(*arguments[:2])
                        process = wandb.setup()._connection._proc._process
                        process.kill()
                        process.wait(10)
                        for step in range(3):
                            made.log_metrics({keys.LOSS: 1.0}, step)
                else:
                    target, name = (wandb, "init") if where == "start" else (wandb.Run, where)
                    patch.setattr(target, name, broken)
                    train(arguments, range(3))
            lines = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
            assert len(lines) == 1 and lines[0].startswith("W&B") and "Traceback" not in caplog.text
            assert not record.is_complete(arguments[1])
            train(arguments, range(3))
            assert steps_of(arguments[1], 1)[-1] == 2 and record.is_complete(arguments[1])


def broken(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


@contextlib.contextmanager
def only_loopback() -> Iterator[list[str]]:
    """The hosts that this process looks up or connects to; what is not this machine is refused."""
    asked: list[str] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple):
            asked.append(str(address[0]))
            if address[0] != "127.0.0.1":
                raise OSError("refused by the test")
        real(self, address)

    def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(str(host))
        return found(host, *args, **kwargs)

    found = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        patch.setattr(socket, "getaddrinfo", look_up)
        yield asked


class TestServer:
    """Against a twin of W&B's server."""

    def test_online(self, server: tuple[Told, Path]) -> None:
        """A trial is interrupted, and goes on on another machine: only the server knows what was logged."""
        told, folder = server
        online = settings_of(Path("online"), timeout=20.0)
        with pytest.raises(KeyboardInterrupt):
            train(online, range(4), KeyboardInterrupt())
        (run,) = told.history
        assert told.runs[run]["exit_code"] == 255
        shutil.rmtree(online[1])
        train(online, range(2, 7), finish=True)
        assert [row[keys.STEP] for row in told.history[run] if keys.LOSS in row] == list(range(7))
        assert told.runs[run]["exit_code"] == 0
        assert told.runs[run]["groupName"].startswith("method_name-d-1-shot-")
        assert told.runs[run]["jobType"] == "method_name" and "1-shot" in told.runs[run]["tags"]
        arrived(told)
        assert record.is_complete(online[1]) and not (online[1] / "wandb" / "data").exists()
        # The transaction log of an online run names the account that the server knows; nothing else does.
        found = list(everything(folder / "online"))
        assert [name for name, content in found if CANARY.encode() in content] == []

    def test_kept_offline_and_synced(self, server: tuple[Told, Path]) -> None:
        """A run that was kept offline in two pieces arrives as one, with its tables."""
        told, _ = server
        offline = settings_of(Path("offline"), mode="offline")
        with pytest.raises(ValueError, match="broken"):
            train(offline, range(4), ValueError("broken"))
        train(offline, range(2, 7), finish=True)
        command = session._sync_command(offline[1]).replace("wandb", str(Path(sys.executable).parent / "wandb"), 1)
        synced = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)
        assert synced.returncode == 0 and "2 run(s)" in synced.stderr, synced.stderr
        (rows,) = told.history.values()
        assert [row[keys.STEP] for row in rows if keys.LOSS in row] == list(range(7))
        arrived(told)


def arrived(told: Told) -> None:
    """Tables as artifacts, pictures and masks as files of the run."""
    tables = {f"{keys.TABLE}.table.json", f"{keys.LAYERS}.table.json", f"{keys.BARS}_table.table.json"}
    assert {f"artifact/{name}" for name in tables} <= told.files
    assert any(name.startswith(f"media/images/mask/{keys.EXAMPLES}") for name in told.files)
    assert any(name.startswith(f"media/images/{keys.score_map('wheel')}") for name in told.files)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Told, Path]]:
    with wandb_server() as told, wandb_process(tmp_path, WANDB_BASE_URL=told.url, WANDB_ENTITY=""):
        yield told, tmp_path


def write_finished(folder: Path) -> None:
    """The files of a finished trial of two classes and one image, with a ranking."""
    label, guess = np.eye(8, dtype=np.uint8), np.tri(8, dtype=np.uint8)
    parts = [
        [[int((there & told).sum()) for there, told in zip(*both, strict=True)]]
        for both in [([label == 0, label == 1], [guess == 0, guess == 1])]
    ]
    union = [[int(((label == k) | (guess == k)).sum()) for k in (0, 1)]]
    counts = IouCounts(torch.tensor(parts[0]), torch.tensor(union), torch.tensor([[True, True]]))
    classes = ["background", "wheel"]
    config = {"preset": "mini", "seed": 1}
    names = {key: "x" for key in ("method", "backbone", "data", "subject", "preset", "protocol")}
    result = from_counts(counts, config=config, fingerprints={}, shots=1, seed=1, classes=classes, **names)
    write_per_image(folder / "per_image.parquet", ["i"], classes, counts)
    item = GridItem(np.zeros((8, 8, 3), np.uint8), label, guess, np.stack([label, guess]).astype(float), "i")
    write_qualitative(folder / "qualitative.npz", [item], classes)
    ranking = {"layers": ["b"], "ranking": {"layers": ["a", "b"], "score": [0.5, 2.0]}}
    (folder / "ranking.json").write_text(json.dumps(ranking))
    write_result(folder, result)
