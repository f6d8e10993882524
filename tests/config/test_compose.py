"""Trials of a sweep that differ in single values are composed once: they are what Hydra makes of each."""

from __future__ import annotations

import pytest

from slime_bench.config import compose
from slime_bench.config.schema import validate


@pytest.mark.parametrize(
    "sweep",
    [
        ["preset=mini,paper", "seed=0,1"],
        ["experiment=mini_horse_infoscore", "shots=0,1"],
        ["ablation=lr", "seed=0,1"],
        ["data=mini_car,mini_horse", "method.lr=0.1,1e-3"],
        ["backbone.dtype=fp32,bf16", "method.max_steps=null,3"],
        ["method.start.word=part,'a b'", "method.t_opt=[1,2],[3,4]"],
        ["seed=0,1", "++method.lr=0.5"],
    ],
)
def test_values_are_those_that_hydra_gives(sweep: list[str]) -> None:
    found = compose.plan(sweep, sweep=True)
    with compose._hydra():
        fixed = [text for text in sweep if not compose._parse([text])[0].is_sweep_override()]
        jobs = compose._jobs(sweep, compose._composed(fixed, with_hydra=True).hydra)
        alone = [validate(compose._composed(job)) for job in jobs]
    assert len(alone) > 1 and [each.plain for each in found.trials] == [each.plain for each in alone]
