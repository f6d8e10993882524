"""The second paper's method through the command line: shots 0, 1, 2; what it leaves; what it says of mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from slime_bench.methods.infoscore.ranking import STUDY_FILE
from slime_bench.results.result import read_result
from tests.e2e.conftest import SPLITS, Outcome, command, contents
from tests.fixtures.blip_toys import save_blip

SIDE = 64


class Vlm:
    """The command line with small random weights and the small cars."""

    def __init__(self, weights: Path, data: Path, outputs: Path) -> None:
        self.weights, self.data, self.outputs = weights, data, outputs

    def __call__(self, *arguments: str, method: str = "infoscore") -> Outcome:
        names = ["data=pascal_part_car", "data.name=tiny_car", f"data.root={self.data}"]
        names += [f"method={method}", f"backbone.weights={self.weights}", f"output_root={self.outputs}"]
        small = [f"backbone.image_size={SIDE}", "method.prompts=mini_car", "data.batch_size=2", "save_maps=1"]
        fast = ["trainer=cpu", "trainer.progress=false", "trainer.threads=1"]
        if method == "infoscore":
            fast += ["method.epochs=2", "method.max_steps=3", "method.lr=0.01"]
        flags = [each for each in arguments if each.startswith("--")]
        rest = [each for each in arguments if not each.startswith("--")]
        return command(*flags, "preset=mini_infoscore", *names, *small, *fast, *rest)

    def folder(self, shots: int, method: str = "infoscore") -> Path:
        (found,) = (self.outputs / "runs" / "tiny_car" / method / f"{shots}-shot").glob("seed0-*")
        return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def ran(weights: Path, car_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    vlm = Vlm(weights, car_pictures, tmp_path_factory.mktemp("vlm"))
    outcome = vlm("--multirun", "shots=0,1,2")
    assert outcome.code == 0, outcome.err
    return vlm


@pytest.fixture
def vlm(weights: Path, car_pictures: Path, tmp_path: Path) -> Vlm:
    return Vlm(weights, car_pictures, tmp_path / "outputs")


def test_zero_shot_learns_nothing(ran: Vlm) -> None:
    result = read_result(ran.folder(0) / "result.json")
    assert result.shots == 0 and result.support_ids == [] and result.num_test_images == SPLITS["test"]
    assert result.facts["label"] == "InfoScore zero-shot" and result.facts["stated"]["prompts"].startswith("mini_car")
    assert load_file(ran.folder(0) / "state.safetensors") == {}
    facts = json.loads((ran.folder(0) / "ranking.json").read_text())
    assert facts["rank_on"] == "train" and facts["ranking"]["images"] == SPLITS["support"]
    assert set(facts["layers"]) == set(facts["ranking"]["order"][:2])
    assert facts["forwarded_images"] == SPLITS["support"] + SPLITS["test"]
    assert facts["prompts"][0] == "Image of grass."


def test_tuning_saves_what_it_tuned(ran: Vlm) -> None:
    base = load_file(ran.weights / "model.safetensors")
    for shots in (1, 2):
        path = ran.folder(shots) / "state.safetensors"
        state = load_file(path)
        assert state and all("word_embeddings" in name or "crossattention" in name for name in state)
        assert all(not value.equal(base[name]) for name, value in state.items() if "weight" in name)
        with safe_open(path, "pt") as file:
            assert json.loads(file.metadata()["protocol"])["name"] == "infoscore_mini"
        assert len(read_result(ran.folder(shots) / "result.json").support_ids) == shots


def test_the_same_trial_gives_the_same_result(ran: Vlm, vlm: Vlm) -> None:
    for shots in (0, 1):
        assert vlm(f"shots={shots}").code == 0
        assert (vlm.folder(shots) / "result.json").read_bytes() == (ran.folder(shots) / "result.json").read_bytes()


def test_a_finished_trial_is_not_run_again(ran: Vlm) -> None:
    before = contents(ran.folder(1))
    assert ran("shots=1").code == 0 and contents(ran.folder(1)) == before


def test_other_words_are_another_trial(vlm: Vlm, tmp_path: Path) -> None:
    words = tmp_path / "words.yaml"
    related = "related: {{body: [], light: [], plate: [], wheel: [], window: []}}\n"
    lines = "template: Image of {{}}.\nbackground: [sky, {}]\n" + related
    for word in ("image", "traffic sign"):
        words.write_text(lines.format(word))
        assert vlm("shots=0", f"method.prompts={words}").code == 0
    (tmp_path / "elsewhere").mkdir()
    moved = words.rename(tmp_path / "elsewhere" / "words.yaml")
    assert vlm("shots=0", f"method.prompts={moved}").code == 0  # the same words in another place
    folders = list((vlm.outputs / "runs" / "tiny_car" / "infoscore" / "0-shot").glob("seed*"))
    assert len(folders) == 2
    assert not [path for path in folders if (path / "curves.csv").exists()]  # there was no fit
    assert not [path for path in folders if str(tmp_path) in (path / "result.json").read_text()]


def test_ranking_on_the_test_images_reads_them_once(vlm: Vlm) -> None:
    assert vlm("shots=0", "method.rank_on=test").code == 0
    facts = json.loads((vlm.folder(0) / "ranking.json").read_text())
    assert facts["rank_on"] == "test" and facts["forwarded_images"] == SPLITS["test"]


def test_the_ranking_experiment(vlm: Vlm) -> None:
    outcome = vlm("experiment=infoscore_ranking", "shots=0", "seed=0", "method.resamples=5", method="infoscore_ranking")
    assert outcome.code == 0, outcome.err
    study = json.loads((vlm.folder(0, "infoscore_ranking") / STUDY_FILE).read_text())
    result = read_result(vlm.folder(0, "infoscore_ranking") / "result.json")
    assert study["layers"] == ["layer.0", "layer.1", "layer.2"] and study["test_images"] == SPLITS["test"]
    for convention, each in study["conventions"].items():
        assert each["selections"]["top-2"]["miou"] == pytest.approx(
            100 * result.under(convention, True).average, abs=1e-9
        ), convention


MISTAKES = {
    "unknown layer": (["shots=0", "method.layers=[layer.7]"], "no layer of this name", "layer.2"),
    "no layer": (["shots=0", "method.layers=[]"], "no layer is named", "at least one of"),
    "too many layers": (["shots=0", "method.top=9"], "more layers are asked for", "1 to 3"),
    "mode and shots": (["shots=1", "method.mode=zero_shot"], "does not fit the number of shots", "method.mode=auto"),
    "another paper's backbone": (["shots=0", "backbone=mini_sd"], "cannot use this backbone", "leave `backbone` out"),
    "another paper's protocol": (
        ["shots=0", "protocol=slime_code"],
        "cannot use this protocol",
        "leave `protocol` out",
    ),
    "slime without support": (["shots=0", "method=slime", "preset=mini"], "needs a support image", "shots=1"),
    "a class without words": (["shots=0", "method.prompts=mini_horse"], "prompt", "body"),
    "no such words": (["shots=0", "method.prompts=mini_cat"], "mini_cat", "mini_car"),
    "no patches": (["shots=0", "backbone.image_size=60"], "cannot be cut into patches", "multiples of 8"),
    "smaller than a patch": (["shots=0", "backbone.image_size=4"], "", "8"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str, vlm: Vlm) -> None:
    arguments, summary, more = MISTAKES[name]
    outcome = vlm(*arguments) if "method=slime" not in arguments else command(*arguments)
    assert outcome.code == 2 and "Traceback" not in outcome.err
    assert summary in outcome.err and more in outcome.err, outcome.err
    assert not list(vlm.outputs.glob("runs/**/result.json"))


def test_a_prompt_beyond_the_text_limit(vlm: Vlm, tmp_path: Path) -> None:
    words = tmp_path / "words.yaml"
    words.write_text(
        f"template: Image of {{}}.\nbackground: [sky, {'x' * 40}]\n"
        "related: {body: [], light: [], plate: [], wheel: [], window: []}\n"
    )
    outcome = vlm("shots=0", f"method.prompts={words}")
    assert outcome.code == 2 and "longer than the model's text limit" in outcome.err and "at most 24" in outcome.err


def test_segment_says_that_it_does_not_take_it(car_pictures: Path, tmp_path: Path) -> None:
    support = [car_pictures / "support" / kind / "car-support-0.png" for kind in ("images", "labels")]
    outcome = command(
        "segment", "--image", str(support[0]), "--mask", str(support[1]), "--images", str(car_pictures / "test/images"),
        "--out", str(tmp_path / "out"), "method=infoscore", "backbone=mini_blip", "protocol=infoscore_mini",
    )  # fmt: skip
    assert outcome.code == 2 and "does not take the method infoscore" in outcome.err


def test_one_pass_says_what_three_say(vlm: Vlm, capsys: pytest.CaptureFixture[str]) -> None:
    """The measurement of speed; not its figures, which depend on the machine."""
    from slime_bench.bench import vlm_passes

    overrides = ["data=pascal_part_car", f"data.root={vlm.data}", f"backbone.weights={vlm.weights}"]
    overrides += [f"backbone.image_size={SIDE}", "method.prompts=mini_car", "data.batch_size=2"]
    assert vlm_passes.main(overrides) == 0
    printed = capsys.readouterr().out
    assert "one pass: 1 passes per image" in printed and "plain: 3 passes per image" in printed
    assert " 0.0000 % of the pixels" in printed
    assert vlm_passes.main([*overrides, "method.top=9"]) == 2


def test_a_state_is_not_taken_by_segment(ran: Vlm, tmp_path: Path) -> None:
    for option, shots in (("--state", 1), ("--embeddings", 0)):
        path = ran.folder(shots) / "state.safetensors"
        images = ["--images", str(ran.data / "test/images"), "--out", str(tmp_path / option)]
        outcome = command("segment", option, str(path), *images)
        assert outcome.code == 2 and "does not take the method infoscore" in outcome.err, outcome.err


@pytest.mark.parametrize("name", ["lr", "was", "layers"])
def test_the_ablations_are_slimes(name: str) -> None:
    outcome = command("--multirun", "experiment=mini_car_infoscore", f"ablation={name}")
    assert outcome.code == 2 and "is one of the method slime" in outcome.err, outcome.err


def test_half_precision_is_for_zero_shot(vlm: Vlm) -> None:
    outcome = vlm("shots=1", "trainer.precision=bf16")
    assert outcome.code == 2 and "full precision" in outcome.err and "trainer.precision=fp32" in outcome.err
    assert vlm("shots=0", "trainer.precision=bf16").code == 0
