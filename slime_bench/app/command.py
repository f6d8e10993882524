"""`slime-bench app`: a page in the browser on which parts are painted in one picture and found in others.

It is served on this machine alone, and asks nothing of any other.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence

from slime_bench.errors import ConfigError
from slime_bench.paths import advised


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until it is interrupted; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="slime-bench app", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at; default: this machine alone")
    parser.add_argument("--port", type=int, default=7860, help="default 7860; the next free one where it is taken")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    args = parser.parse_args(argv)
    if not 0 < args.port < 65536:
        raise ConfigError(
            "there is no such port", path="--port", found=args.port, expected="1 to 65535", remedy="leave it out"
        )
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError(
            "the page needs Gradio, which is not installed", path="slime-bench app", found="no package `gradio`",
            expected="the extra `app` of slime-bench", remedy=advised("app", "pip install 'slime-bench[app]'"),
        )  # fmt: skip
    from slime_bench.app.server import serve

    return serve(args.host, args.port, browser=not args.no_browser)
