"""The mini world as a data set: rendered on demand, the same bytes on every machine."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from slime_bench.config.parts import located
from slime_bench.data.config import SPLITS, DataConfig, Natural, Positive
from slime_bench.data.folder import FolderData
from slime_bench.data.manifest import MANIFEST, read_manifest
from slime_bench.data.mini_world import render as mini_world
from slime_bench.data.verify import ensure_verified
from slime_bench.errors import DataError, StorageError
from slime_bench.storage import alone


@dataclass
class MiniConfig(DataConfig):
    """Settings of a mini data set: those of `DataConfig`, and

    Args:
        first_test: index of the first test picture; others than 0 are test sets on which nothing was chosen.
        pool: pictures of the support pool; null for the usual 30, which are the first of any larger pool.
    """

    first_test: Natural = field(default=0, metadata=located("data"))
    pool: Positive | None = field(default=None, metadata=located("data"))


class MiniData(FolderData):
    """One subject (car, horse or face) of the procedural world: support pool 30, validation 10, test 100 images."""

    Config = MiniConfig
    config: MiniConfig
    commands = dict.fromkeys(
        mini_world.SUBJECTS, ("mini-data", "python -m slime_bench.data.mini_world --root {root}/..")
    )

    def prepare_data(self) -> None:
        """Render the data set when it is absent or of another version, then check every file against the manifest.

        Raises:
            DataError: the folder holds something else, another subject, or files that were changed.
            ConfigError: `data.classes` is not the subject's class list.
            StorageError: the data set cannot be written.
        """
        if self._is_stale():
            try:
                # Trials that start together wait for the one that renders, instead of building over each other.
                with alone(self.root):
                    if self._is_stale():
                        self._render()
            except OSError as error:
                raise StorageError.of(error, self.root, "data_root=<folder>") from error
        self.check_manifest()
        # Whole, not only what this trial needs: a data set that was changed by hand is no mini data set any more.
        ensure_verified({name: self.split(name) for name in SPLITS}, self.root)

    def _is_stale(self) -> bool:
        if not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir())):
            return True
        if not (self.root / MANIFEST).is_file():
            # Rendering replaces the folder: what has no manifest was not made here and may be someone's work.
            raise DataError(
                "this is not a mini data set", path=self.root,
                found=f"a folder without {MANIFEST}" if self.root.is_dir() else "a file",
                expected="nothing, or a data set made by slime_bench.data.mini_world",
                remedy="choose another `data_root`, or move this folder away",
            )  # fmt: skip
        manifest = read_manifest(self.root)
        same = manifest["subject"] == self.config.subject  # what is another subject's is not replaced
        made = (str(manifest["version"]), int(manifest.get("first_test", 0)), manifest.get("pool"))
        return same and made != (
            str(mini_world.version_of(self.config.subject)),
            self.config.first_test,
            self.config.pool,
        )

    def _render(self) -> None:
        started, title = time.perf_counter(), f"mini {self.config.subject}"
        print(f"{title}: rendering the data set into {self.root} ...", file=sys.stderr, flush=True)
        mini_world.write_dataset(self.root, self.config.subject, self.config.first_test, self.config.pool)
        print(f"{title}: ready after {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
