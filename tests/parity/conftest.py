"""Fixtures of the parity suite: the golden folder, comparisons that go into the printed table."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from slime_bench.methods.slime.protocol import SlimeProtocol
from tests.parity.golden import VARIABLE, Golden, chosen_folder
from tests.parity.models import GoldenBackbone, golden_backbone, slime_code
from tests.parity.table import Checks, pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Golden:
    """The golden folder. One that the environment names has to be there; without the default one: skip, in CI fail."""
    if os.environ.get(VARIABLE) is None:
        request.getfixturevalue("shared")
    folder = chosen_folder()
    if not folder.is_dir():
        pytest.fail(f"no golden folder {folder} ({VARIABLE}={os.environ.get(VARIABLE)})")
    return Golden(folder)


@pytest.fixture(scope="session")
def protocol() -> SlimeProtocol:
    """The bundle slime_code."""
    return slime_code()


@pytest.fixture(scope="session")
def backbone_of(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], GoldenBackbone]:
    """The models of a flavour, loaded once."""
    loaded: dict[str, GoldenBackbone] = {}
    encoded: dict[bytes, object] = {}

    def load(flavour: str) -> GoldenBackbone:
        if flavour not in loaded:
            loaded[flavour] = golden_backbone(golden, flavour, tmp_path_factory.mktemp("sd"), encoded)
        return loaded[flavour]

    return load


@pytest.fixture
def checks(record_property: Callable[[str, object], None]) -> Callable[..., Checks]:
    """`with checks(file, part) as check:` collects comparisons of one part of one golden file."""
    return lambda source, where="": Checks(record_property, source, where)
