"""The signature changes with everything that decides the numbers, and with nothing else."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from slime_bench.config.compose import plan
from slime_bench.config.parts import FILE_NAME, NO_NUMBERS, located
from slime_bench.config.schema import PARTS, TrialConfig
from slime_bench.config.secrets import redact
from slime_bench.errors import ConfigError
from slime_bench.results import identity
from slime_bench.results.identity import (
    canonical_json,
    deciding,
    parse_trial_folder,
    recorded,
    series,
    signature,
    signature_of,
    trial_folder,
)

FINGERPRINTS = {"backbone": "ab" * 32, "data": "cd" * 32, "start": "ef" * 32}
EXCLUDED = {
    # what cannot change a number, whoever declares it; everything else counts
    "data_root", "output_root", "force", "save_maps", "per_preset", "ablates", "logger", "launcher", "metric",
    "trainer.progress", "trainer.threads", "trainer.checkpoint_every", "data.root", "data.splits", "data.first_test",
    "data.pool", "data.batch_size", "data.num_workers", "backbone.weights", "backbone.revision",
    "backbone.single_file_config", "backbone.memory_gb", "backbone.encoder_cache_mb",
    "backbone.checkpoint_activations", "backbone.compile", "backbone.layer_groups", "method.start.path",
}  # fmt: skip


@pytest.fixture(scope="module")
def cfg() -> TrialConfig:
    return plan(["preset=mini", "seed=0", "trainer=cpu"]).trials[0]


def other(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x" if isinstance(value, str) else value


def leaves(config: Any, path: str = "") -> list[tuple[str, Any]]:
    found = []
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            found += leaves(value, f"{path}{each.name}.")
        elif each.name != "parts":
            found.append((f"{path}{each.name}", value))
    return found


def changed(config: Any, key: str, value: Any) -> Any:
    """`config` with another value at a dotted key; nothing is checked."""
    name, _, rest = key.partition(".")
    copy = dataclasses.replace(config)
    object.__setattr__(copy, name, changed(getattr(config, name), rest, value) if rest else value)
    return copy


def excluded(key: str) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in EXCLUDED)


def test_form_and_stability(monkeypatch: pytest.MonkeyPatch) -> None:
    # The hash of fixed settings is part of the format: a change would orphan every finished trial. It is the first half
    # of `sha256sum` of {"config":{"method":{"lr":0.1,"name":"x"},"seed":0},"fingerprints":{},"results_version":1}
    monkeypatch.setattr(identity, "RESULTS_VERSION", 1)
    assert signature_of({"method": {"name": "x", "lr": 0.1}, "seed": 0}, {}) == "4a91f53f84b0f08f"
    assert signature_of({"seed": 0, "method": {"lr": 0.1, "name": "x"}}, {}) == "4a91f53f84b0f08f"


def test_every_key_is_either_excluded_or_counts(cfg: TrialConfig) -> None:
    base, seen = signature(cfg, FINGERPRINTS), set()
    for key, value in leaves(cfg):
        if other(value) == value and value is not None:
            continue  # lists and mappings
        found = signature(changed(cfg, key, "something" if value is None else other(value)), FINGERPRINTS)
        assert (found == base) is excluded(key), key
        seen.add(key)
    assert len(seen) > 40


def test_order_in_lists_classes_and_fingerprints_count(cfg: TrialConfig) -> None:
    base = signature(cfg, FINGERPRINTS)
    layers = list(reversed(cfg.backbone.cross_layers))
    assert signature(changed(cfg, "backbone.cross_layers", layers), FINGERPRINTS) != base
    for name in ("backbone", "data", "extra"):
        assert signature(cfg, {**FINGERPRINTS, name: "00"}) != base
    assert signature(cfg, dict(reversed(FINGERPRINTS.items()))) == base

    class Another(cfg.parts["method"]):  # type: ignore[misc, name-defined]
        pass

    assert signature(cfg.replace(parts={**cfg.parts, "method": Another}), FINGERPRINTS) != base


def test_series_is_the_trial_without_its_seed(cfg: TrialConfig) -> None:
    assert series(cfg, FINGERPRINTS) == series(cfg.replace(seed=7), FINGERPRINTS)
    assert series(cfg, FINGERPRINTS) != series(changed(cfg, "method.lr", 1.0), FINGERPRINTS)
    assert series(cfg, FINGERPRINTS) != signature(cfg, FINGERPRINTS)


def test_whole_numbers_of_either_type_are_equal_but_truth_is_not_one() -> None:
    assert canonical_json({"b": (1.0, 0.1), "a": None}) == '{"a":null,"b":[1,0.1]}'
    assert canonical_json({"a": True}) != canonical_json({"a": 1}) != canonical_json({"a": "1"})


def test_location_needs_a_fingerprint(cfg: TrialConfig) -> None:
    for name, key in (("backbone", "backbone.weights"), ("data", "data.root")):
        without = {each: value for each, value in FINGERPRINTS.items() if each != name}
        with pytest.raises(ConfigError) as caught:
            signature(cfg, without)
        assert key in str(caught.value) and name in str(caught.value)
    started = changed(cfg, "method.start.path", "folder")
    with pytest.raises(ConfigError, match=r"method\.start\.path"):
        signature(started, {name: FINGERPRINTS[name] for name in ("backbone", "data")})


def test_each_part_says_itself_what_cannot_change_a_number(cfg: TrialConfig) -> None:
    @dataclass
    class Inner:
        speed: int = field(default=1, metadata=NO_NUMBERS)
        size: int = 1

    @dataclass
    class Own:
        name: str = "own"
        words: str = field(default="folder/words.yaml", metadata=FILE_NAME)
        place: str = field(default="here", metadata=located("own"))
        inner: Inner = field(default_factory=Inner)

    own = cfg.replace(method=Own())
    assert deciding(own)["method"] == {
        "_target_": cfg.plain["method"]["_target_"], "name": "own", "words": "words.yaml", "inner": {"size": 1},
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"method\.place"):
        signature(own, FINGERPRINTS)
    assert signature(own, {**FINGERPRINTS, "own": "1"}) == signature(
        own.replace(method=Own(words="words.yaml", place="there")), {**FINGERPRINTS, "own": "1"}
    )


def test_record_has_no_path_and_no_secret_but_the_metric(cfg: TrialConfig) -> None:
    @dataclass
    class Own:
        name: str = "own"
        hub_token: str = "canary-1"

    own = changed(changed(cfg.replace(method=Own()), "backbone.weights", "/somewhere/weights"), "output_root", "/o")
    text = json.dumps(recorded(own))
    assert "canary" not in text and "/somewhere" not in text and "/o" not in text and cfg.data.root not in text
    assert recorded(cfg)["metric"] == {"convention": "slime", "background": True} and "metric" not in deciding(cfg)
    assert set(PARTS) <= set(recorded(cfg))
    # Hidden in the record, but still told apart.
    other_token = own.replace(method=Own(hub_token="other"))
    assert signature(own, FINGERPRINTS) != signature(other_token, FINGERPRINTS)


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


@pytest.mark.parametrize("name", ["../x", "a b"])
def test_names_that_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        trial_folder("outputs", name, "slime", 1, 0, "0" * 16)
    with pytest.raises(ConfigError):
        trial_folder("outputs", "mini_car", name, 1, 0, "0" * 16)
