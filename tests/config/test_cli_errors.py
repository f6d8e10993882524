"""The command line: bad input ends with a message and exit code 2; one failed trial does not take the others along."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper as HydraSweeper

from slime_bench import cli
from slime_bench.config import compose
from slime_bench.config.schema import TrialConfig
from slime_bench.console import quieten, typed
from slime_bench.errors import DataError, StorageError

Trial = Callable[[TrialConfig], Any]


def storage_error(cause: OSError, path: str) -> StorageError:
    """As `write_atomic` raises it."""
    error = StorageError.of(cause, path)
    error.__cause__ = cause
    return error


class Bench:
    """The command line with a stand-in for `trial.runner.run`, which notes what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.ran: list[TrialConfig] = []
        self.behave: Trial = lambda cfg: None
        self._capsys = capsys
        result = types.SimpleNamespace(average=None)
        self.finished = types.SimpleNamespace(result=result, folder=Path("runs"), reused=False, code=None)
        for name in ("slime_bench.trial.runner.spec_of", "slime_bench.sweep.trials.spec_of"):
            monkeypatch.setattr(name, self._spec_of)
        monkeypatch.setattr("slime_bench.trial.runner.run", self._run)

    @staticmethod
    def _spec_of(cfg: TrialConfig) -> types.SimpleNamespace:
        return types.SimpleNamespace(cfg=cfg, signature=f"{cfg.shots} {cfg.seed}", folder=Path("runs"))

    def _run(self, spec: types.SimpleNamespace, fitted: object = None) -> types.SimpleNamespace:
        self.ran.append(spec.cfg)
        self.behave(spec.cfg)
        return self.finished

    def __call__(self, *arguments: str) -> tuple[int, str]:
        code = cli.main(arguments)
        captured = self._capsys.readouterr()
        return code, captured.out + captured.err

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [(cfg.shots, cfg.seed) for cfg in self.ran]


@pytest.fixture
def bench(toy_bench: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(monkeypatch, capsys)


class TestRuns:
    def test_one_trial(self, bench: Bench) -> None:
        code, text = bench("method=slime", "data=mini_car", "shots=10", "seed=0", "method.unlisted=9")
        assert (code, text) == (0, "")
        (cfg,) = bench.ran
        assert (cfg.shots, cfg.seed, cfg.method.unlisted, cfg.method.schedule.warmup) == (10, 0, 9, 0.0)
        assert not Path("outputs/hydra").exists(), "a single trial leaves no folder of Hydra"

    def test_a_sweep(self, bench: Bench, tmp_path: Path) -> None:
        code, text = bench("--multirun", "seed=0,1,2", "shots=1,10")
        assert code == 0
        assert bench.pairs == [(k, s) for s in (0, 1, 2) for k in (1, 10)]
        assert "[1/6] seed=0 shots=1" in text and "[6/6] seed=2 shots=10" in text
        (folder,) = (tmp_path / "outputs" / "hydra").iterdir()
        assert sorted(file.name for file in folder.iterdir()) == ["jobs", "multirun.yaml"]
        assert "6 of 6 trials finished" in text

    def test_an_experiment_brings_its_sweep_and_the_command_line_narrows_it(self, bench: Bench) -> None:
        assert bench("--multirun", "experiment=mini_car")[0] == 0
        assert bench.pairs == [(k, s) for k in (1, 10) for s in (0, 1, 2)]
        bench.ran.clear()
        assert bench("--multirun", "experiment=mini_car", "seed=1", "method.unlisted=5,6")[0] == 0
        assert bench.pairs == [(1, 1), (1, 1), (10, 1), (10, 1)]
        assert [cfg.method.unlisted for cfg in bench.ran] == [5, 6, 5, 6]

    @pytest.mark.parametrize(
        ("choice", "chosen"),
        [("glob(mini_*)", ["mini_car", "mini_face"]), ("glob(mini_*,exclude=*_face)", ["mini_car"])],
    )
    def test_glob_chooses_among_the_options_of_a_group(self, bench: Bench, choice: str, chosen: list[str]) -> None:
        code, text = bench("--multirun", f"data={choice}")
        assert code == 0 and [cfg.data.name for cfg in bench.ran] == chosen, text
        planned = compose.plan([f"data={choice}"], sweep=True)  # as `status` and `report` do
        assert [cfg.data.name for cfg in planned.trials] == chosen

    def test_glob_sees_a_folder_of_ones_own_configuration(self, bench: Bench, tmp_path: Path) -> None:
        (tmp_path / "mine" / "data").mkdir(parents=True)
        (tmp_path / "mine" / "data" / "mini_own.yaml").write_text("_target_: toy_bench_targets.Named\nname: mini_own\n")
        assert bench("--config-dir", "mine", "--multirun", "data=glob(mini_o*)")[0] == 0
        assert [cfg.data.name for cfg in bench.ran] == ["mini_own"]
        (planned,) = compose.plan(["data=glob(mini_o*)"], sweep=True, extra_dir="mine").trials
        assert planned.data.name == "mini_own"

    @pytest.mark.parametrize(
        "arguments",
        [
            ["seed=0,1", "--multirun", "shots=10"],
            ["--multirun", "seed=0,1", "shots=10", "method=slime"],
            ["seed=0,1", "-m", "--config-dir", ".", "shots=10"],
            ["seed=0,1", "shots=10", "--multirun"],
        ],
    )
    def test_overrides_and_options_in_any_order(self, bench: Bench, arguments: list[str]) -> None:
        code, text = bench(*arguments)
        assert code == 0 and bench.pairs == [(10, 0), (10, 1)], text

    def test_commands_of_one_second_do_not_share_a_folder(self, bench: Bench, tmp_path: Path) -> None:
        for _ in range(2):
            bench("--multirun", "seed=0,1")
        assert len(list((tmp_path / "outputs" / "hydra").iterdir())) == 2

    def test_a_folder_of_ones_own_configuration(self, bench: Bench, tmp_path: Path) -> None:
        (tmp_path / "mine" / "method").mkdir(parents=True)
        (tmp_path / "mine" / "method" / "own.yaml").write_text(
            "_target_: toy_bench_targets.ToyMethod\nname: own\nepochs: 1\n"
        )
        assert bench("--config-dir", "mine", "method=own")[0] == 0
        assert bench.ran[0].method.name == "own"
        code, text = bench("--config-dir", "nowhere", "method=own")
        assert code == 2 and "nowhere" in text

    def test_a_launcher_of_somebody_elses(self, bench: Bench) -> None:
        code, text = bench("--multirun", "hydra/launcher=basic", "seed=0,1")
        assert code == 0 and bench.pairs == [(1, 0), (1, 1)], text

        def fails(cfg: TrialConfig) -> None:
            raise DataError("a file went missing", remedy="put it back")

        bench.behave = fails
        code, text = bench("--multirun", "hydra/launcher=basic", "seed=0,1")
        assert code == 2 and "a file went missing" in text and "put it back" in text and "Traceback" not in text

    def test_a_sweeper_of_somebody_elses_is_given_the_scores(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = types.ModuleType("hydra_plugins.toy_sweeper")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        returned: list[float] = []

        class Halving(HydraSweeper):
            """Asks for one trial after another, and looks at what each gave."""

            __module__, __qualname__ = module.__name__, "Halving"

            def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
                self.launcher = Plugins.instance().instantiate_launcher(
                    hydra_context=hydra_context, task_function=task_function, config=config
                )

            def sweep(self, arguments: list[str]) -> None:
                for index in range(2):
                    (job,) = self.launcher.launch([[*arguments, f"seed={index}"]], initial_job_idx=index)
                    returned.append(job.return_value)

        module.Halving = Halving  # type: ignore[attr-defined]
        Plugins.instance().register(Halving)
        node = {"_target_": f"{module.__name__}.Halving"}
        ConfigStore.instance().store("toy_halving", node, group="hydra/sweeper", provider="test")
        bench.finished.result.average = 0.25
        code, text = bench("--multirun", "hydra/sweeper=toy_halving", "shots=10")
        assert code == 0 and bench.pairs == [(10, 0), (10, 1)] and returned == [0.25, 0.25], text

    def test_the_trial_sees_the_users_own_environment(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[str | None] = []
        bench.behave = lambda cfg: seen.append(os.environ.get("HYDRA_FULL_ERROR"))
        before = list(sys.argv)
        bench()
        assert sys.argv == before and "HYDRA_FULL_ERROR" not in os.environ
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        bench()
        assert seen == [None, "1"]


class TestHome:
    """`~` stands for the home folder wherever a path comes in: no shell expands it in `--out=~/x`, `data.root=~/x`."""

    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        home = tmp_path / "me"
        home.mkdir()
        monkeypatch.setenv("HOME", str(home))
        return home

    def test_in_overrides_and_variables(self, bench: Bench, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert bench("--multirun", "seed=0,1", "output_root=~/o", "data_root='~/d'")[0] == 0
        assert [(cfg.output_root, cfg.data.root) for cfg in bench.ran] == [(f"{home}/o", f"{home}/d/mini/car")] * 2
        assert (home / "o" / "hydra").is_dir()
        bench.ran.clear()
        monkeypatch.setenv("SLIME_BENCH_DATA", "~/data")
        monkeypatch.setenv("SLIME_BENCH_OUTPUTS", "~/out")
        assert bench("--multirun", "seed=0,1", "data.root=${data_root}/x")[0] == 0
        assert (bench.ran[0].output_root, bench.ran[0].data.root) == (f"{home}/out", f"{home}/data/x")
        assert (home / "out" / "hydra").is_dir() and not Path("~").exists()
        (trial,) = compose.plan(["data.root=~/x"]).trials
        assert trial.data.root == f"{home}/x"

    def test_in_a_folder_of_ones_own_configuration(self, bench: Bench, home: Path) -> None:
        (home / "conf" / "data").mkdir(parents=True)
        (home / "conf" / "data" / "own.yaml").write_text("_target_: toy_bench_targets.Named\nname: own\nroot: ~/own\n")
        assert bench("--config-dir=~/conf", "data=own")[0] == 0
        assert bench.ran[0].data.root == f"{home}/own"
        assert compose.plan(["data=own"], extra_dir="~/conf").trials[0].data.name == "own"

    @pytest.mark.parametrize(
        "command",
        [
            ["segment", "--images=~/x", "--out=~/x", "--embeddings=~/x/a.safetensors"],
            ["segment", "--images=~/x", "--out=~/o", "--image=~/x/a.png", "--mask=~/x/a.png"],
            ["segment", "--images=~/x", "--out=~/o", "--support=~/x"],
            ["embeddings", "export", "--state=~/x/a.safetensors", "--out=~/o"],
            ["embeddings", "import", "--from=~/x", "--out=~/o"],
            ["report", "--outputs=~/x"],
        ],
    )
    def test_in_options(self, bench: Bench, home: Path, command: list[str]) -> None:
        code, text = bench(*command)
        assert code == 2 and f"{home}/x" in text and "~" not in text, text


class TestBadCommandLines:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["methd=slime"], ["methd", "did you mean `method`"]),
            (["data=mini_cat"], ["data=mini_cat", "did you mean data=mini_car", "mini_face"]),
            (["method.lr=[1"], ["method.lr=[1", "quotes"]),
            (["reprot"], ["slime-bench report"]),
            (["reprot", "--subject", "car"], ["`slime-bench report`"]),
            (["segmnet", "--image", "a", "--mask", "b"], ["`slime-bench segment`"]),
            (["seg-ment", "--image", "a"], ["`slime-bench segment`"]),
            (["Status2", "seed=0"], ["`slime-bench status`"]),
            (["seed=0,1"], ["seed", "--multirun"]),
            (["data=glob(mini_*)"], ["data", "--multirun"]),
            (["--multirun", "method=glob(nothing*)", "--info"], ["--info"]),
            (["+seed=1"], ["seed", "`+`"]),
            (["data=broken"], ["broken.yaml, line 2", "YAML"]),
            (["hydra/launcher=submitit_slurm"], ["did you mean launcher=submitit_slurm"]),
            (["--multirun", "seed=0,x"], ["seed", "'x'"]),
            (["--multirun", "method.lrr=1,2"], ["method.lrr", "`method.lr`"]),
            (["--multirun", "data=mini_car,mini_cat"], ["data=mini_cat"]),
            (["output_root=${oc.env:SLIME_BENCH_NOT_SET}"], ["SLIME_BENCH_NOT_SET", "has to be set"]),
            (["--mutlirun", "seed=1"], ["--mutlirun"]),
        ],
    )
    def test_message_without_traceback_before_any_trial(
        self, bench: Bench, arguments: list[str], words: list[str]
    ) -> None:
        code, text = bench(*arguments)
        assert code == 2
        assert "error: " in text and "Traceback" not in text
        assert [word for word in words if word not in text] == [], text
        assert bench.ran == []

    def test_the_traceback_is_there_when_asked_for(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        code, text = bench("methd=slime")
        assert code == 2 and "Traceback" in text and "methd" in text

    @pytest.mark.parametrize(
        ("key", "flags"),
        [
            ("+logger.api_key", []),
            ("+WANDB_API_KEY", ["--multirun"]),
            ("++method.secret", ["--cfg", "job"]),
            ("+a.PASSWORD", ["--help"]),
            ("+hf_token", []),
        ],
    )
    def test_secrets_are_refused_and_not_repeated(
        self, bench: Bench, tmp_path: Path, key: str, flags: list[str]
    ) -> None:
        code, text = bench(*flags, f"{key}=canary123")
        assert code == 2 and "canary123" not in text and key.lstrip("+") in text
        assert bench.ran == [] and not (tmp_path / "outputs").exists()

    def test_names_that_only_sound_like_secrets_are_not(self, bench: Bench) -> None:
        code, text = bench("+method.token_gate=0.2")
        assert code == 2 and "secret" not in text and "unknown key" in text


class TestFailingTrials:
    def test_an_unexpected_error_is_exit_code_1_and_outweighs(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def behave(cfg: TrialConfig) -> None:
            if cfg.seed == 0:
                raise DataError("no folder")
            error = ZeroDivisionError("by nothing")
            error.add_note("see error.json")
            raise error

        bench.behave = behave
        code, text = bench("--multirun", "seed=0,1")
        assert code == 1
        assert "ZeroDivisionError: by nothing" in text and "see error.json" in text and "Traceback" not in text
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        assert "Traceback" in bench("seed=1")[1]

    @pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 2), (errno.EROFS, 2), (errno.ENOENT, 1)])
    def test_a_full_disk_is_the_users_to_mend_and_a_missing_file_is_a_bug(
        self, bench: Bench, number: int, code: int
    ) -> None:
        def behave(cfg: TrialConfig) -> None:
            raise OSError(number, os.strerror(number), "outputs/result.json")

        bench.behave = behave
        found, text = bench()
        assert found == code and "outputs/result.json" in text and os.strerror(number) in text
        assert ("output_root" in text) is (code == 2)

    @pytest.mark.parametrize("as_lightning", [False, True])
    def test_interruption(self, bench: Bench, as_lightning: bool) -> None:
        def behave(cfg: TrialConfig) -> None:
            if cfg.seed == 1:
                try:
                    raise KeyboardInterrupt
                except KeyboardInterrupt:
                    if as_lightning:  # what lightning.pytorch.trainer.call does
                        sys.exit(1)
                    raise

        bench.behave = behave
        code, text = bench("--multirun", "seed=0,1,2")
        assert code == 130 and len(bench.ran) == 2
        assert "finished trials are kept" in text and "Traceback" not in text


class TestOtherCommands:
    @pytest.mark.parametrize(("name", "place"), [("report", "with --out"), ("verify", None), ("compare", None)])
    def test_remedies_and_interruptions_are_the_commands_own(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str, place: str | None
    ) -> None:
        errors: list[BaseException] = [
            OSError(errno.EACCES, "no permission", "somewhere"),
            storage_error(OSError(errno.ENOSPC, "no space"), "somewhere"),
            KeyboardInterrupt(),
        ]

        def fails(*_: object) -> int:
            raise errors.pop(0)

        monkeypatch.setitem(cli.SUBCOMMANDS, name, "toy_command")
        monkeypatch.setitem(sys.modules, "toy_command", types.SimpleNamespace(main=fails))
        own = StorageError("cannot write the data", path="somewhere", remedy="choose another data_root")
        own.__cause__ = OSError(errno.ENOSPC, "no space")
        assert typed(own) is own  # it has words of its own
        for word in ("no permission", "no space"):
            code, text = bench(name)
            assert code == 2 and word in text and "somewhere" in text and "output_root" not in text
            assert place is None or place in text
        assert bench(name) == (130, "\ninterrupted\n")

    def test_help_and_version(self, bench: Bench) -> None:
        code, text = bench("help")
        assert code == 0 and "slime-bench report" in text
        assert max(map(len, text.splitlines())) <= 80
        code, text = bench("--help")
        assert code == 0 and "mini_face" in text
        code, text = bench("--cfg", "job", "seed=3")
        assert code == 0 and "seed: 3" in text and bench.ran == []

    @pytest.mark.parametrize(
        ("about", "word"),
        [
            ([], "Installed Hydra Plugins"),
            (["all"], "Installed Hydra Plugins"),
            (["defaults"], "Defaults List"),
            (["defaults-tree"], "Defaults Tree"),
            (["config"], "shots: 7"),
            (["plugins"], "SweepLauncher"),
            (["searchpath"], "Config search path"),
        ],
    )
    def test_what_hydra_says_of_itself(self, bench: Bench, about: list[str], word: str) -> None:
        code, text = bench("shots=7", "--info", *about)
        assert code == 0 and text.count(word) == 1 and "Traceback" not in text and bench.ran == [], text

    def test_the_package_is_the_command(self, tmp_path: Path) -> None:
        run = [sys.executable, "-m", "slime_bench", "reprot"]
        ended = subprocess.run(run, capture_output=True, text=True, check=False)
        assert ended.returncode == 2 and "`slime-bench report`" in ended.stderr

    def test_subcommands_get_their_arguments(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[list[str]] = []

        def main(arguments: list[str], planned_trials: object) -> int:
            assert callable(planned_trials)
            seen.append(arguments)
            if "--bad" in arguments:
                raise DataError("no results", remedy="make some")
            return 0

        module = types.ModuleType("slime_bench.report.command")
        module.main = main  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "slime_bench.report.command", module)
        assert bench("report", "--subject", "car")[0] == 0
        code, text = bench("report", "--bad")
        assert (code, seen) == (2, [["--subject", "car"], ["--bad"]]) and "make some" in text


class TestTerminals:
    """Text that the terminal's encoding lacks is replaced."""

    @pytest.mark.parametrize("encoding", ["ascii:strict", "cp437", "latin-1"])
    @pytest.mark.parametrize("command", [["help"], ["--help"]])
    def test_a_command_on_an_old_terminal(self, command: list[str], encoding: str) -> None:
        ended = subprocess.run(
            [sys.executable, "-m", "slime_bench", *command], capture_output=True, check=False,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )  # fmt: skip
        assert ended.returncode == 0 and b"slime" in ended.stdout and ended.stderr == b""

    def test_libraries_warnings_stay_out_of_the_way(self, tmp_path: Path) -> None:
        """Attributed to the library or to its caller, before or after it set its own levels."""
        code = """if True:
            import sys
            from slime_bench.console import quieten
            quieten()
            import logging, matplotlib, torch.distributed.elastic.multiprocessing.redirects as redirects
            matplotlib.use("Agg")
            from matplotlib import pyplot
            from PIL import Image
            redirects.logger.warning("NOTE: Redirects are currently not supported")
            Image.new("L", (40, 40)).save(sys.argv[1])
            Image.MAX_IMAGE_PIXELS = 1000
            Image.open(sys.argv[1]).load()
            pyplot.title("車")
            pyplot.savefig(sys.argv[1])
        """
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
        run = [sys.executable, "-c", code, str(tmp_path / "a.png")]
        ended = subprocess.run(run, capture_output=True, text=True, check=False, env=environ)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")

    @pytest.mark.parametrize(
        ("encoding", "shown"),
        [
            ("ascii", b"61.2+-0.3 - x \\u8eca \\udcff"),
            ("latin-1", b"61.2\xb10.3 - \xd7 \\u8eca \\udcff"),
            ("utf-8", "61.2±0.3 − × 車 \\udcff".encode()),
        ],
    )
    def test_signs_have_stand_ins(self, monkeypatch: pytest.MonkeyPatch, encoding: str, shown: bytes) -> None:
        written = io.BytesIO()
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding=encoding, write_through=True))
        quieten()
        print("61.2±0.3 − × 車 \udcff")
        print("61.2±0.3 − × 車 \udcff", file=sys.stderr)
        assert written.getvalue().splitlines() == [shown] * 2
