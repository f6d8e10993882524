"""Dashboards and W&B's sweeps, made from conf/paper and conf/ablation."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest
import yaml

from slime_bench.config.compose import plan
from slime_bench.errors import SlimeBenchError
from slime_bench.metrics import CONVENTION_RULES
from slime_bench.paths import config_dir
from slime_bench.results.identity import canonical_json, deciding
from slime_bench.tracking import media, workspace

NAMES = sorted(path.stem for path in (config_dir() / "ablation").glob("*.yaml"))


class TestSweep:
    @pytest.mark.parametrize("name", ["prompt", "start"])  # one with quotes and braces, one that also fixes a key
    def test_the_trials_are_those_of_the_ablation(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        """As an agent and the command compose them; one seed, as each trial takes its time."""
        assert workspace.main(["--ablation", name, "--print-sweep"]) == 0
        sweep = yaml.safe_load(capsys.readouterr().out)
        choices = [
            [f"{key}={value}" for value in parameter.get("values", [parameter.get("value")])]
            for key, parameter in sweep["parameters"].items()
        ]
        made = set()
        for arguments in product(*choices):
            if "seed=0" in arguments:
                (trial,) = plan([*sweep["command"][2:-1], *arguments]).trials
                assert trial.logger.name == "wandb"
                made.add(canonical_json(deciding(trial)))
        wanted = plan(["experiment=mini_car", f"ablation={name}", "seed=0"], sweep=True).trials
        assert made == {canonical_json(deciding(trial)) for trial in wanted}

    def test_an_agent_can_run_them(self) -> None:
        sweep = workspace.sweep("lr", "paper_horse")
        assert sweep["program"] == "slime-bench" and sweep["method"] == "grid"
        assert sweep["command"] == [
            "${env}",
            "${program}",
            "experiment=paper_horse",
            "logger=wandb",
            "${args_no_hyphens}",
        ]
        assert sweep["metric"] == {"name": "test/miou", "goal": "maximize"}
        assert sweep["parameters"]["seed"] == {"values": ["0", "1", "2"]}
        assert sweep["parameters"]["shots"] == {"value": "10"}
        count = 1
        for parameter in sweep["parameters"].values():
            assert set(parameter) in ({"value"}, {"values"})
            count *= len(parameter.get("values", [0]))
        assert count == len(plan(["experiment=paper_horse", "ablation=lr"], sweep=True).trials)

    def test_an_unknown_ablation(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert workspace.main(["--ablation", "speed", "--print-sweep"]) == 2
        assert " or ".join(NAMES) in capsys.readouterr().err


class TestWorkspace:
    def shown(self) -> list[str]:
        sections = workspace.layout(workspace.classes_of("car"))
        return [key for panels in sections.values() for _, _, keys in panels for key in keys]

    def test_it_asks_for_what_is_logged(self) -> None:
        known = {value for name, value in vars(media).items() if name.isupper()}
        known |= {f"train/{name}" for name in ("cross_entropy", "was", "diffusion", "lr", "t")}
        classes = workspace.classes_of("car")
        assert classes[0] == "background" and len(classes) == 6
        made = {media.iou(name) for name in classes} | {media.score_map(name) for name in classes}
        averages = {media.iou("miou", name) for name in CONVENTION_RULES}
        assert set(self.shown()) <= known | made | averages
        assert made | averages <= set(self.shown()) and len(self.shown()) == len(set(self.shown()))

    @pytest.mark.parametrize("ablation", [None, "start"])
    def test_what_is_sent_holds_every_key(self, ablation: str | None) -> None:
        pytest.importorskip("wandb_workspaces")
        view = workspace.workspace("car", "team", "slime-bench", ablation, "mini_car")._to_model()
        text = view.model_dump_json(by_alias=True)
        assert [key for key in self.shown() if key not in text.replace('\\"', '"')] == []
        made = json.loads(text)
        (runs,) = made["spec"]["section"]["runSets"]
        filters = {(each["key"]["name"], str(each["value"])) for each in runs["filters"]["filters"]}
        groups = [each["name"] for each in runs["grouping"]]
        if ablation is None:
            assert made["displayName"] == "slime-bench: car" and groups == ["group"]
            assert filters == {("tags", "['car']")}
            return
        assert made["displayName"] == f"slime-bench: car, {ablation}"
        assert groups == [{"lr": "method.value.lr", "start": "method.value.start.kind"}[ablation], "group"]
        expected = {("tags", "['car']"), ("preset", "mini"), ("shots", "10"), ("method.maps", "was")}
        assert expected <= filters and not any(name in ("seed", f"method.{ablation}") for name, _ in filters)
        assert (("method.epochs", "0") in filters) is (ablation == "start")

    def test_without_the_extra(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
        assert workspace.main(["--entity", "team"]) == 2
        said = capsys.readouterr().err
        assert "not installed" in said and "slime-bench[workspaces]" in said and "Traceback" not in said

    def test_an_account_that_may_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> Mapping[str, Any]:
            raise RuntimeError("permission denied\nTraceback")

        monkeypatch.setattr(workspace, "workspace", refuse)
        with pytest.raises(SlimeBenchError, match="permission denied") as caught:
            workspace.save("car", "slime-bench", "team")
        assert "slime-bench report" in str(caught.value)
