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
from PIL import Image

from slime_bench.config.compose import plan
from slime_bench.errors import ConfigError
from slime_bench.methods.slime.method import Slime
from slime_bench.metrics.iou import IouCounts
from slime_bench.results.artifacts import CURVES_FILE, GridItem, read_curves, read_qualitative, write_qualitative
from slime_bench.results.identity import flatten
from slime_bench.results.result import from_counts, read_per_image, read_result, write_per_image, write_result
from slime_bench.tracking import media
from slime_bench.tracking import wandb as tracking
from slime_bench.tracking.loggers import is_complete, log_result, mirror_finished, trial_logger
from slime_bench.trial import resume
from tests.e2e.conftest import Bench, contents
from tests.fixtures.twins.wandb_server import Told, wandb_server
from tests.fixtures.wandb_log import WANDB, WandbLog, log_file

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
        wandb.teardown()  # whatever was read from the environment before
        tracking._say.cache_clear()
        patch.setattr(tracking, "_unreachable", False)
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


def everything(root: Path) -> Iterator[tuple[str, bytes]]:
    """Every name, link and content under `root`."""
    for path in root.rglob("*"):
        yield str(path), path.relative_to(root).as_posix().encode()
        if path.is_symlink():
            yield str(path), os.readlink(path).encode()
        elif path.is_file():
            yield str(path), path.read_bytes()


def settings_of(outputs: Path, **changes: Any) -> Any:
    """`cfg` and the other arguments of `trial_logger`, for a trial that nobody computes."""
    (cfg,) = plan(["experiment=mini_car", "logger=wandb", "shots=1", "seed=0"]).trials
    cfg = cfg.replace(logger={"timeout": 2.0, "finish_timeout": 20.0, **changes})
    return cfg, outputs / "runs" / "d" / "m" / "1-shot" / "seed0-x", {"data": "d", "backbone": "b"}


def forced(arguments: Any) -> Any:
    return arguments[0].replace(force=True), *arguments[1:]


def train(arguments: Any, steps: range, die: BaseException | None = None, finish: bool = False) -> None:
    """A trial that logs a loss at each step, and may end with an error, or finish with a result."""
    arguments[1].mkdir(parents=True, exist_ok=True)
    with trial_logger(*arguments) as made:
        for step in steps:
            if made is not None:
                made.log_metrics({media.LOSS: 1 / (step + 1)}, step)
        if finish:
            write_finished(arguments[1])
            log_result(made, arguments[1], read_result(arguments[1] / "result.json"))
        if die is not None:
            raise die


def steps_of(folder: Path) -> list[int]:
    """The steps in the one file of the trial's run."""
    return WandbLog(log_file(folder)).steps(media.LOSS)


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


@pytest.fixture(scope="module")
def log(mirrored: Bench) -> WandbLog:
    return WandbLog(log_file(mirrored.folder()))


class TestOffline:
    def test_the_run_is_the_trial(self, mirrored: Bench, log: WandbLog) -> None:
        result, run = mirrored.result(), log.run
        assert (run["run_id"], run["run_group"]) == (result.signature, f"slime-tiny_car-1-shot-{result.series}")
        assert (run["job_type"], run["project"]) == ("slime", "slime-bench")
        assert run["display_name"] == "slime tiny_car 1-shot seed 0"
        assert {"mini", "car", "1-shot", "tiny_car", "slime_mini"} <= set(run["tags"])
        assert not {"entity", "host"} & set(run)
        assert [each.get("exit_code", 0) for each in log.exits] == [0] and is_complete(mirrored.folder())

    def test_the_configuration_is_the_recorded_one(self, mirrored: Bench, log: WandbLog) -> None:
        result, found = mirrored.result(), log.config
        recorded = {key: value for key, value in flatten(result.config) if value != {}}  # which W&B does not keep
        assert dict(flatten({key: found[key] for key in result.config})) == recorded
        assert (found["signature"], found["series"]) == (result.signature, result.series)
        assert found["environment"]["packages"]["torch"] == torch.__version__

    def test_curves(self, mirrored: Bench, log: WandbLog) -> None:
        """Those of the trial's own file, to the bit."""
        for name, curve in read_curves(mirrored.folder() / CURVES_FILE).items():
            assert ([*log.steps(name)], [row[name] for row in log.history if name in row]) == curve
        terms = {"train/cross_entropy", "train/was", "train/diffusion", "train/lr", "train/t", media.VALIDATION}
        assert all({media.LOSS, *terms} <= set(row) for row in log.history[:2])

    def test_all_conventions_in_the_summary(self, mirrored: Bench, log: WandbLog) -> None:
        result, found = mirrored.result(), log.summary
        for convention, table in result.conventions.items():
            assert found[media.iou("miou", convention)] == pytest.approx(100 * table["average"])
            for name, value in table["per_class"].items():
                assert found.get(media.iou(name, convention)) == (None if value is None else pytest.approx(100 * value))
        assert found[media.MIOU] == pytest.approx(100 * result.average) and found["seconds/fit"] > 0
        assert found["val/best_miou"] == pytest.approx(100 * result.validation["score"])

    def test_test_images_with_their_masks_and_maps(self, mirrored: Bench, log: WandbLog) -> None:
        """The pictures that W&B will show are the trial's own, pixel by pixel."""
        folder = mirrored.folder()
        (row,) = [row for row in log.history if f"{media.EXAMPLES}.count" in row]
        files = log_file(folder).parent / "files"
        items, _ = read_qualitative(folder / "qualitative.npz")
        assert row[f"{media.EXAMPLES}.captions"] == [item.image_id for item in items] and len(items) == 2
        names, masks = row[f"{media.EXAMPLES}.filenames"], row[f"{media.EXAMPLES}.all_masks"]
        for item, name, both in zip(items, names, masks, strict=True):
            assert (pixels(files / name) == item.image).all()
            assert (pixels(files / both[media.PREDICTION]["path"]) == item.prediction).all()
            assert (pixels(files / both[media.TRUTH]["path"]) == item.label).all()
        for name in mirrored.result().classes:
            maps = row[f"{media.score_map(name)}.filenames"]
            assert len(maps) == 2 and all((files / each).is_file() for each in maps)
        labels = log.config["_wandb"]["mask/class_labels"]
        expected = {str(index): name for index, name in enumerate(mirrored.result().classes)}
        assert {key: each["value"] for key, each in labels.items() if media.EXAMPLES in key} == {
            f"{media.EXAMPLES}_wandb_delimeter_{mask}": {**expected, "255": "not annotated"}
            for mask in (media.PREDICTION, media.TRUTH)
        }

    def test_the_tables(self, mirrored: Bench, log: WandbLog) -> None:
        """They are artifacts, whose files lie in the trial's folder under a path that says nothing of the machine."""
        folder, result, root = mirrored.folder(), mirrored.result(), mirrored.outputs.parent
        contents = [entry for each in log.artifacts for entry in each["manifest"]["contents"]]
        places = {entry["path"]: entry["local_path"] for entry in contents}
        assert all(place.startswith("outputs/runs/") and (root / place).is_file() for place in places.values())
        table = json.loads((root / places[f"{media.IMAGES}.table.json"]).read_text())
        assert table["columns"] == ["image_id", "image", "mIoU", *result.classes]
        (first, second) = table["data"]
        assert [first[0], second[0]] == ["car-test-0", "car-test-1"]
        assert set(first[1]["masks"]) == {media.PREDICTION, media.TRUTH} and first[1]["path"] in places
        ids, classes, counts = read_per_image(folder / "per_image.parquet")
        row = ids.index("car-test-0")
        for name, value in zip(classes, first[3:], strict=True):
            inner, outer = (int(part[row, classes.index(name)]) for part in (counts.intersection, counts.union))
            assert value == (pytest.approx(100 * inner / outer) if outer else None)
        final = json.loads((root / places[f"{media.CLASSES}.table.json"]).read_text())
        assert final["columns"] == ["class", "IoU", "published", "std"]
        assert final["data"][-1] == ["average", pytest.approx(100 * result.average), 61.6, pytest.approx(0.5, abs=0.5)]

    def test_a_trial_that_was_finished_without_wandb(self, mirrored: Bench, log: WandbLog) -> None:
        """It was not computed again, and all is there."""
        again = WandbLog(log_file(replace(mirrored, outputs=mirrored.outputs.parent / "again").folder()))
        assert again.run["run_id"] == log.run["run_id"] and again.config["signature"] == log.config["signature"]
        assert [row[media.LOSS] for row in again.history[:2]] == [row[media.LOSS] for row in log.history[:2]]
        last = again.history[-1]
        assert f"{media.IMAGES}.artifact_path" in last and f"{media.EXAMPLES}.count" in last
        wanted = {key: value for key, value in log.summary.items() if key.startswith("test/") and "." not in key}
        assert len(wanted) > 20 and {key: again.summary[key] for key in wanted} == wanted

    def test_no_secret_no_name_no_path_of_the_machine(self, mirrored: Bench) -> None:
        """The outputs' own path is not among them: the home is a canary beside it."""
        found = list(everything(mirrored.outputs))
        assert len(found) > 30 and [name for name, content in found if CANARY.encode() in content] == []
        files = list(everything(mirrored.folder() / "wandb"))
        words = [str(mirrored.outputs.parent), sys.prefix, *(name for name in [platform.node()] if len(name) > 5)]
        assert [(name, word) for name, content in files for word in words if word.encode() in content] == []


def test_an_ablation_that_was_fitted_in_one_batch(tiny_sd: Path, car_pictures: Path, tmp_path: Path) -> None:
    """A run for each trial, each in the group of its setting, with its own curve."""
    bench = Bench(tiny_sd, car_pictures, Path("outputs"))
    with wandb_process(tmp_path, WANDB_API_KEY=""):
        assert bench("--multirun", "ablation=lr", "shots=1", "seed=0", "method.lr=0.1,0.01", "logger=wandb").code == 0
    logs, curves = {}, set()
    for path in (tmp_path / "outputs").rglob("result.json"):
        result, log = read_result(path), WandbLog(log_file(path.parent))
        assert log.run["run_id"] == result.signature and log.run["run_group"].endswith(result.series)
        assert len(json.loads((path.parent / "environment.json").read_text())["batch"]) == 2
        curve = read_curves(path.parent / CURVES_FILE)[media.LOSS]
        assert (log.steps(media.LOSS), [row[media.LOSS] for row in log.history if media.LOSS in row]) == curve
        assert log.summary[media.MIOU] == pytest.approx(100 * (result.average or 0))
        logs[log.config["method"]["lr"]] = log
        curves.add(tuple(curve[1]))
    assert set(logs) == {0.1, 0.01} and len({log.run["run_group"] for log in logs.values()}) == len(curves) == 2


def test_an_interrupted_trial_goes_on_with_its_whole_curve(
    tiny_sd: Path, car_pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tiny_sd, car_pictures, Path("outputs"))
    arguments = ("logger=wandb", "shots=1", "trainer.checkpoint_every=1")
    real = Slime.training_step

    def dies(method: Any, *batch: Any) -> Any:
        if method.trainer.global_step == 1:
            raise RuntimeError("the light went out")
        return real(method, *batch)

    with wandb_process(tmp_path, WANDB_API_KEY=""), caplog.at_level("INFO", "slime_bench"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resume, "SHARE", float("inf"))
            patch.setattr(Slime, "training_step", dies)
            assert bench(*arguments).code == 1
        assert steps_of(bench.folder()) == [0]
        assert bench(*arguments).code == 0 and "goes on after step 1" in caplog.text
        folder = bench.folder()
        curve = read_curves(folder / CURVES_FILE)[media.LOSS]
        log = WandbLog(log_file(folder))
        assert (log.steps(media.LOSS), [row[media.LOSS] for row in log.history if media.LOSS in row]) == curve
        assert curve[0] == [0, 1] and log.exits[0].get("exit_code", 0) == 0


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


class TestGoingOn:
    def test_killed_failed_and_interrupted_trials(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Each process begins with the checkpoint's curve, and its file replaces the one before."""
        with wandb_process(tmp_path, WANDB_API_KEY=""), caplog.at_level("INFO", "slime_bench"):
            arguments = settings_of(Path("outputs"))
            folder = tmp_path / arguments[1]
            for count, error, code in ((5, ValueError("broken"), 1), (7, KeyboardInterrupt(), 255)):
                with pytest.raises(type(error)):
                    train(arguments, range(count), error)
                found = WandbLog(log_file(folder))
                assert found.steps(media.LOSS) == list(range(count)) and not is_complete(folder)
                assert found.exits[0]["exit_code"] == code
            train(arguments, range(10))
            assert steps_of(folder) == list(range(10)) and is_complete(folder)
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
            mirror_finished(*arguments, result)
            files = {path.name: path for path in tmp_path.glob("outputs/**/*.wandb")}
            assert set(files) == {"run-agents1.wandb", "run-agents2.wandb"}
            for path in files.values():
                log = WandbLog(path)
                assert log.summary[media.MIOU] == pytest.approx(100 * (result.average or 0))
                assert log.run["sweep_id"] == "sweep1"


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
            assert steps_of(folder) == [0, 1] and not list(folder.glob("wandb/run-*"))
            train(settings_of(Path("outputs"), mode="online"), range(3))
            assert steps_of(settings_of(Path("outputs"))[1]) == [0, 1, 2]
        warnings = [each.getMessage() for each in caplog.records if "W&B" in each.getMessage()]
        assert len(warnings) == 1 and "does not take the run" in warnings[0]
        assert set(asked) <= {"127.0.0.1"}
        assert [name for name, content in everything(tmp_path / "outputs") if CANARY.encode() in content] == []

    @pytest.mark.parametrize("where", ["finish", "start", "service"])
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
                    with trial_logger(*arguments) as made:
                        process = wandb.setup()._connection._proc._process  # type: ignore[union-attr]
                        process.kill()
                        process.wait(10)
                        for step in range(3):
                            made.log_metrics({media.LOSS: 1.0}, step)
                else:
                    target, name = (wandb, "init") if where == "start" else (wandb.Run, where)
                    patch.setattr(target, name, broken)
                    train(arguments, range(3))
            lines = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
            assert len(lines) == 1 and lines[0].startswith("W&B") and "Traceback" not in caplog.text
            assert not is_complete(arguments[1])
            train(arguments, range(3))
            assert steps_of(arguments[1]) == [0, 1, 2] and is_complete(arguments[1])


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
        train(online, range(7), finish=True)
        assert [row[media.STEP] for row in told.history[run] if media.LOSS in row] == list(range(7))
        assert told.runs[run]["exit_code"] == 0
        assert told.runs[run]["groupName"].startswith("slime-mini_car-1-shot-")
        assert told.runs[run]["jobType"] == "slime" and "1-shot" in told.runs[run]["tags"]
        arrived(told)
        assert is_complete(online[1]) and not (online[1] / "wandb" / "data").exists()
        # Computed anew by force, the trial replaces its run.
        train(forced(online), range(3))
        assert [row[media.STEP] for row in told.history[run]] == [0, 1, 2] and len(told.history) == 1
        # The transaction log of an online run names the account that the server knows; nothing else does.
        found = list(everything(folder / "online"))
        assert [name for name, content in found if CANARY.encode() in content] == []

    def test_kept_offline_and_synced(self, server: tuple[Told, Path]) -> None:
        """A run that was kept offline by two processes arrives as one, with its tables."""
        told, _ = server
        offline = settings_of(Path("offline"), mode="offline")
        with pytest.raises(ValueError, match="broken"):
            train(offline, range(4), ValueError("broken"))
        train(offline, range(7), finish=True)
        command = tracking._sync_command(offline[1]).replace("wandb", WANDB, 1)
        synced = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)
        assert synced.returncode == 0 and "1 run(s)" in synced.stderr, synced.stderr
        (rows,) = told.history.values()
        assert [row[media.STEP] for row in rows if media.LOSS in row] == list(range(7))
        arrived(told)


def arrived(told: Told) -> None:
    """Tables as artifacts, pictures and masks as files of the run."""
    tables = {f"{media.IMAGES}.table.json", f"{media.LAYERS}.table.json", f"{media.BARS}_table.table.json"}
    assert {f"artifact/{name}" for name in tables} <= told.files
    assert any(name.startswith(f"media/images/mask/{media.EXAMPLES}") for name in told.files)
    assert any(name.startswith(f"media/images/{media.score_map('wheel')}") for name in told.files)


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
