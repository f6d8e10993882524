"""Secrets: which keys hold them, and how they are kept out of every file and command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

REDACTED: Final = "<redacted>"
_SECRET_KEYS: Final = re.compile("(.*_)?(api_?key|access_key|token|secret|passw.*)|secret.*")


def redact(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `config` whose secrets are replaced by `<redacted>`.

    Only text under a key such as `api_key`, `hub_token`, `secret` or `password` is a secret: `token_gate: 0.2`,
    `num_tokens` or `key_layers` belong to methods and stay.
    """

    def clean(value: Any, secret: bool) -> Any:
        if isinstance(value, Mapping):
            return {key: clean(item, secret or is_secret(str(key))) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item, secret) for item in value]
        return REDACTED if secret and isinstance(value, str) and value else value

    return {key: clean(value, is_secret(str(key))) for key, value in config.items()}


def is_secret(key: str) -> bool:
    """Whether text under this configuration key (its last segment) has to be kept out of every file."""
    name = key.rsplit(".", 1)[-1].lower().replace("-", "_")
    return _SECRET_KEYS.fullmatch(name) is not None
