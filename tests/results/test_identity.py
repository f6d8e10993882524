"""The signature changes with everything that decides the numbers, and with nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_bench.errors import ConfigError
from slime_bench.results import identity
from slime_bench.results.identity import (
    EXCLUDED,
    canonical_json,
    deciding,
    flatten,
    parse_trial_folder,
    recorded,
    redact,
    series,
    signature,
    trial_folder,
)

FINGERPRINTS = {"backbone": "ab" * 32, "data": "cd" * 32}
CONFIG: dict[str, Any] = {
    "preset": "mini",
    "shots": 1,
    "seed": 0,
    "data_root": "data",
    "output_root": "outputs",
    "force": False,
    "save_maps": 4,
    "method": {"name": "slime", "lr": 0.1, "t_opt": [5, 100], "maps": "was", "token_gate": 0.2},
    "backbone": {"name": "mini_sd", "weights": "mini_sd", "revision": None, "cross_layers": ["up.1", "up.2"]},
    "data": {
        "name": "mini_car",
        "root": "data/mini/car",
        "batch_size": 10,
        "num_workers": 0,
        "augment": {"flip_p": 0.5},
    },
    "protocol": {"name": "slime_code", "colour": "rgb"},
    "metric": {"convention": "slime", "background": True},
    "trainer": {"device": "cpu", "precision": "fp32", "threads": None, "progress": True, "checkpoint_every": 10},
    "logger": {"name": "none"},
    "launcher": {"name": "sequential"},
    "hydra": {"job": {"num": 3}},
}


def shuffled(value: Any, random: Any) -> Any:
    if isinstance(value, dict):
        keys = list(value)
        random.shuffle(keys)
        return {key: shuffled(value[key], random) for key in keys}
    return copy.deepcopy(value)


def leaves() -> list[tuple[str, Any]]:
    return list(flatten(CONFIG))


def excluded(key: str) -> bool:
    return any(key == pattern or key.startswith(f"{pattern}.") for pattern in EXCLUDED)


def changed(key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    *parents, last = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[last] = value
    return config


def test_form_and_stability(monkeypatch: pytest.MonkeyPatch) -> None:
    found = signature(CONFIG, FINGERPRINTS)
    assert len(found) == 16 and set(found) <= set("0123456789abcdef")
    assert found == signature(copy.deepcopy(CONFIG), dict(reversed(FINGERPRINTS.items())))
    # The hash of a fixed configuration is part of the format: a change would orphan every finished trial. It is the
    # first half of `sha256sum` of
    # {"config":{"method":{"lr":0.1,"name":"x"},"seed":0},"fingerprints":{},"results_version":1}
    monkeypatch.setattr(identity, "RESULTS_VERSION", 1)
    assert signature({"method": {"name": "x", "lr": 0.1}, "seed": 0}, {}) == "4a91f53f84b0f08f"


@given(st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_order_of_keys_does_not_matter(random: Any) -> None:
    assert signature(shuffled(CONFIG, random), FINGERPRINTS) == signature(CONFIG, FINGERPRINTS)


@pytest.mark.parametrize("key", [key for key, _ in leaves()])
def test_every_key_is_either_excluded_or_counts(key: str) -> None:
    other = signature(changed(key, "something else"), FINGERPRINTS)
    assert (other == signature(CONFIG, FINGERPRINTS)) is excluded(key)


@pytest.mark.parametrize("key", ["method.new", "trainer.new", "new", "data.augment.root", "method.force"])
def test_new_keys_count(key: str) -> None:
    """Exclusion is by whole dotted key: a method's own `force` or `root` further down is not a location."""
    assert signature(changed(key, 1), FINGERPRINTS) != signature(CONFIG, FINGERPRINTS)


def test_order_in_lists_and_fingerprints_count() -> None:
    base = signature(CONFIG, FINGERPRINTS)
    assert signature(changed("backbone.cross_layers", ["up.2", "up.1"]), FINGERPRINTS) != base
    assert signature(CONFIG, {**FINGERPRINTS, "backbone": "00"}) != base
    assert signature(CONFIG, {**FINGERPRINTS, "data": "00"}) != base
    assert signature(CONFIG, {**FINGERPRINTS, "extra": "00"}) != base


def test_version_of_the_results_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    base = signature(CONFIG, FINGERPRINTS)
    monkeypatch.setattr(identity, "RESULTS_VERSION", identity.RESULTS_VERSION + 1)
    assert signature(CONFIG, FINGERPRINTS) != base


def test_series_is_the_trial_without_its_seed() -> None:
    assert series(CONFIG, FINGERPRINTS) == series(changed("seed", 7), FINGERPRINTS)
    assert series(CONFIG, FINGERPRINTS) != series(changed("method.lr", 1.0), FINGERPRINTS)
    assert series(CONFIG, FINGERPRINTS) != signature(CONFIG, FINGERPRINTS)


def test_whole_numbers_of_either_type_are_equal_but_truth_is_not_one() -> None:
    assert signature(changed("method.lr", 1), FINGERPRINTS) == signature(changed("method.lr", 1.0), FINGERPRINTS)
    assert signature(changed("method.lr", 1), FINGERPRINTS) != signature(changed("method.lr", True), FINGERPRINTS)
    assert signature(changed("method.lr", 1), FINGERPRINTS) != signature(changed("method.lr", "1"), FINGERPRINTS)
    assert canonical_json({"b": (1.0, 0.1), "a": None}) == '{"a":null,"b":[1,0.1]}'


def test_location_needs_a_fingerprint() -> None:
    for name, key in (("backbone", "backbone.weights"), ("data", "data.root")):
        without = {other: value for other, value in FINGERPRINTS.items() if other != name}
        with pytest.raises(ConfigError) as caught:
            signature(CONFIG, without)
        assert key in str(caught.value) and name in str(caught.value)
        assert signature(changed(key, None), without)


@pytest.mark.parametrize("value", [Path("x"), float("nan"), float("inf"), {1: 2}, {"a": {3, 4}}, b"x"])
def test_values_that_have_no_fixed_text_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"method\.lr"):
        signature(changed("method.lr", value), FINGERPRINTS)


def test_record_has_no_path_and_no_secret_but_the_metric() -> None:
    config = changed("method.hub_token", "canary-1")
    config["logger"] = {"api_key": "canary-2"}
    config["backbone"]["weights"] = "/somewhere/weights"
    text = json.dumps(recorded(config))
    assert "canary" not in text and "/somewhere" not in text and "data/mini" not in text
    assert recorded(config)["metric"] == CONFIG["metric"]
    assert "metric" not in deciding(config)
    # Hidden in the record, but still told apart.
    assert signature(config, FINGERPRINTS) != signature(changed("method.hub_token", "other"), FINGERPRINTS)


def test_redaction_keeps_the_keys_of_methods() -> None:
    secrets = {"api_key": "c", "WANDB_API_KEY": "c", "hf_token": "c", "secret": "c", "secrets": {"a": "c", "n": ["c"]}}
    secrets |= {"password": "c", "passwd": "c", "client-secret": "c"}
    harmless = {
        "token_gate": 0.2,
        "prompt_tokens": "part",
        "key_layers": "a",
        "num_token": 3,
        "api_key": "",
        "keys": "k",
    }
    harmless |= {"tokenizer": "clip", "token_ids": [1, 2], "passes_per_epoch": 1, "secretary": None}
    found = redact({"deep": {"list": [secrets]}, "ok": harmless})
    assert '"c"' not in json.dumps(found)
    assert found["ok"] == harmless
    assert secrets["api_key"] == "c"


def test_trial_folder_and_back() -> None:
    folder = trial_folder("outputs", "mini_car", "slime", 10, 0, "0123456789abcdef")
    assert folder.as_posix() == "outputs/runs/mini_car/slime/10-shot/seed0-0123456789abcdef"
    expected = {"data": "mini_car", "method": "slime", "shots": 10, "seed": 0, "signature": "0123456789abcdef"}
    assert parse_trial_folder(folder) == expected
    assert parse_trial_folder(folder.parent) is None
    assert parse_trial_folder(Path("seed0-0123456789abcdef")) is None


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b"])
def test_names_that_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        trial_folder("outputs", name, "slime", 1, 0, "0" * 16)
    with pytest.raises(ConfigError):
        trial_folder("outputs", "mini_car", name, 1, 0, "0" * 16)


@pytest.mark.parametrize(("seed", "text"), [(-1, "0" * 16), (0, "0" * 15), (0, "G" * 16)])
def test_malformed_identities_are_refused(seed: int, text: str) -> None:
    with pytest.raises(ConfigError):
        trial_folder("outputs", "mini_car", "slime", 1, seed, text)
