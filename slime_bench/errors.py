"""Typed errors of slime-bench: each names the thing, what was found, what was expected and what to do.

The command line prints them without a traceback and exits with `exit_code`; set
`HYDRA_FULL_ERROR=1` to see the traceback as well.
"""

from __future__ import annotations

from pathlib import Path


class SlimeBenchError(Exception):
    """A mistake that the user can mend, or a condition of the machine that the user can change.

    Args:
        summary: one sentence that says what is wrong.
        path: the file, folder or configuration key at fault.
        found: what is there.
        expected: what should be there.
        remedy: what to do about it, as an instruction.
    """

    exit_code = 2

    def __init__(
        self,
        summary: str,
        *,
        path: str | Path | None = None,
        found: object | None = None,
        expected: object | None = None,
        remedy: str | None = None,
    ) -> None:
        self.summary = summary
        self.path = path
        self.found = found
        self.expected = expected
        self.remedy = remedy
        super().__init__(self._message())

    def _message(self) -> str:
        parts = [("where", self.path), ("found", self.found), ("expected", self.expected), ("what to do", self.remedy)]
        return "\n".join([self.summary, *(f"  {name}: {value}" for name, value in parts if value is not None)])

    def __reduce__(self) -> tuple:
        # Keyword arguments do not survive the default pickling, and worker processes pickle exceptions.
        fields = (self.summary, self.path, self.found, self.expected, self.remedy)
        return _rebuild, (type(self), *fields)


def _rebuild(kind, summary, path, found, expected, remedy):  # type: ignore[no-untyped-def]
    return kind(summary, path=path, found=found, expected=expected, remedy=remedy)


class ConfigError(SlimeBenchError):
    """An unknown, missing or ill-typed configuration key, or values that contradict each other."""


class DataError(SlimeBenchError):
    """A data set, image or file list that is missing, unreadable or inconsistent."""


class LabelError(DataError):
    """A label map with values outside the declared classes, or of another size than its image."""


class BackboneError(SlimeBenchError):
    """Backbone weights that are missing, corrupt or of another architecture."""


class DeviceError(SlimeBenchError):
    """A device that was asked for and is not there, or has too little memory."""


class GpuMemoryError(DeviceError):
    """The GPU has too little memory for what the configuration asks for; no setting was changed to make do."""


class ResultError(SlimeBenchError):
    """A result file that is missing, unreadable or does not hold what it declares."""


class StorageError(SlimeBenchError):
    """A file that could not be written: full disk, no permission, a locked folder."""

    @classmethod
    def of(
        cls, error: OSError, path: str | Path | None = None, option: str | None = "output_root=<folder>"
    ) -> StorageError:
        """What the system says about a file, with a remedy.

        Args:
            option: by which the command is told where to write; None where it only reads.
        """
        elsewhere = f", or choose another place with {option}" if option else ""
        return cls(
            "a file cannot be written or read",
            path=path or error.filename,
            found=error.strerror or error,
            expected="a folder with the right permissions, on a disk with free space",
            remedy=f"free space or mend the permissions{elsewhere}; what is finished stays valid",
        )
