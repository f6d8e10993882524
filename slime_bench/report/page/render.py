"""The page as one HTML file: template, style sheet and script of this package, put into each other."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from slime_bench.report.page.view import Page
from slime_bench.storage import write_atomic

ASSETS = Path(__file__).parent / "assets"


def render(page: Page) -> str:
    """The HTML. It loads nothing, and its Content-Security-Policy lets it run no script and style but its own."""
    import jinja2
    from markupsafe import Markup

    style, script = _asset("page.css"), _asset("page.js")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("page.html.j2").render(
        page=page, style=Markup(style), script=Markup(script), policy=policy, data=Markup(script_json(page.data))
    )


def write_page(path: Path, page: Page) -> Path:
    """Writes the page.

    Raises:
        StorageError: the file cannot be written.
    """
    write_atomic(path, render(page).encode())
    return path


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element: no text of it can close the element or open another."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8").strip("\n")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names an inline element's content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
