"""Whether W&B is online, offline or disabled, and what of the machine it may write down: nothing."""

from __future__ import annotations

import netrc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from slime_bench.errors import ConfigError

ONLINE: Final = "online"
OFFLINE: Final = "offline"
DISABLED: Final = "disabled"
_SPELLINGS: Final = {ONLINE: ONLINE, "run": ONLINE, OFFLINE: OFFLINE, "dryrun": OFFLINE, DISABLED: DISABLED}
_PUBLIC: Final = ("wandb.ai", "coreweave.com")  # one account, and so one key, for all of them

_PRIVATE: Final[dict[str, Any]] = {
    "console": "off",
    "silent": True,
    "symlink": False,  # one of them would lead to the user's home
    # The code's state is in the trial's environment file; its text may hold anything.
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "label_disable": True,
    # No command line, user, host, path, package list or load of the machine.
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    # Seconds of the curve that a killed process may cost. (W&B's 15 would reach back before the last checkpoint.)
    "x_transaction_log_flush_interval": 0.25,
    "host": "",
    "username": "",
    "email": "",
}


def asked_for(configured: str | None, environ: Mapping[str, str]) -> str | None:
    """The mode of `logger.mode`, else of WANDB_MODE; None where neither says anything.

    Raises:
        ConfigError: WANDB_MODE holds something else.
    """
    text = configured or environ.get("WANDB_MODE")
    if not text:
        return None
    if text not in _SPELLINGS:
        raise ConfigError(
            "WANDB_MODE does not name a mode that a trial can be logged in", path="WANDB_MODE", found=repr(text),
            expected=f"{ONLINE}, {OFFLINE} or {DISABLED}", remedy="unset it, or say logger.mode=offline",
        )  # fmt: skip
    return _SPELLINGS[text]


def has_key(environ: Mapping[str, str], base_url: str) -> bool:
    """Whether W&B will find a key for the server at `base_url`, in the environment or in the file of `wandb login`.

    The key itself is not kept.
    """
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(base_url).netloc
    hosts = [host, *(["api.wandb.ai"] if host.endswith(_PUBLIC) else [])]
    home = Path(environ.get("HOME") or Path.home())
    files = [Path(environ["NETRC"])] if environ.get("NETRC") else [home / ".netrc", home / "_netrc"]
    for file in files:
        try:
            known = netrc.netrc(file)
        except (OSError, netrc.NetrcParseError):
            continue
        if any((entry := known.authenticators(name)) and entry[2] for name in hosts):
            return True
    return False


def settings(mode: str, timeout: float, finish_timeout: float, known: Mapping[str, Any]) -> dict[str, Any]:
    """W&B's settings for a run.

    Args:
        timeout: seconds to wait for the server at the start. finish_timeout: seconds to wait for the last upload.
        known: the settings that the installed W&B has; others are left out.
    """
    wanted = {**_PRIVATE, "init_timeout": timeout}
    wanted |= {"finish_timeout": finish_timeout, "finish_timeout_raises": True}
    if mode == OFFLINE:
        wanted["entity"] = ""  # often the user's own name, in WANDB_ENTITY; `wandb sync` asks for it again
    return {name: value for name, value in wanted.items() if name in known}


def tells_who(path: str, environ: Mapping[str, str]) -> bool:
    """Whether the user's name stands in `path`, as it does in that of most homes."""
    home = environ.get("HOME") or str(Path.home())
    names = {environ.get(name) for name in ("USER", "LOGNAME", "USERNAME")} | {Path(home).name}
    return any(name in path for name in names if name)
