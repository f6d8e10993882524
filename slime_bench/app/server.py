"""Serves the page: bound to this machine, with a policy by which the browser asks nobody else."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
import weakref
import webbrowser
import zipfile
from typing import TYPE_CHECKING, Any, Final

from slime_bench.console import environment
from slime_bench.errors import ConfigError

if TYPE_CHECKING:
    from slime_bench.app.session import Session

POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_TRIES = 100


def _guarded(app: Any) -> Any:
    """An ASGI application that adds the headers to every answer of another."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await app(scope, receive, sent)

    return answer


def application(hosts: list[str] | None = None) -> Any:
    """The ASGI application: the page at `/`, the archives of sessions at `/archive/<token>`.

    Args:
        hosts: names by which it may be asked for; None for any.
    """
    import gradio as gr
    from fastapi import FastAPI, Response
    from fastapi.middleware.trustedhost import TrustedHostMiddleware

    from slime_bench.app.page import CSS, THEME, Page

    tokens: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()

    def address(session: Session) -> str:
        token = next((token for token, each in tokens.items() if each is session), None) or secrets.token_urlsafe(16)
        tokens[token] = session
        return f"archive/{token}"

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/archive/{token}")
    def give(token: str) -> Response:
        session = tokens.get(token)
        if session is None or session.segmenter is None:
            return Response("This page is closed, or nothing is learned on it: load it again.", 404)
        named = {"content-disposition": 'attachment; filename="slime-bench.zip"'}
        return Response(archive(session), media_type="application/zip", headers=named)

    gr.mount_gradio_app(
        app, Page(address).blocks, "/", theme=THEME, css=CSS, footer_links=[], run_history=False, ssr_mode=False,
        mcp_server=False, enable_monitoring=False, show_error=False,
    )  # fmt: skip
    app.add_middleware(_guarded)
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    return app


def archive(session: Session) -> bytes:
    """A zip of label maps, overlays, areas, class list, painted masks and the embeddings, laid out as the folder of
    `slime-bench segment`; a ConfigError where nothing is learned."""
    from slime_bench.segment import folder, output

    segmenter = session.learned()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        file.writestr(folder.EMBEDDINGS, segmenter.content())
        file.writestr(folder.CLASSES, output.class_list(segmenter.classes))
        file.writestr(folder.AREAS, output.areas_csv(session.records.values(), segmenter.classes))
        for photo in session.photos.values():
            if photo.label is not None:
                file.writestr(f"painted/{photo.stem}.png", output.label_png(photo.label, session.colours))
            if photo.record is not None:
                for name in (f"{folder.LABELS}/{photo.stem}.png", f"{folder.OVERLAYS}/{photo.stem}.jpg"):
                    file.write(session.place / "results" / name, name)
    return buffer.getvalue()


def serve(host: str, port: int, *, browser: bool) -> int:
    """Serve the page until it is interrupted; returns the exit code.

    What is loaded into it lies in a temporary folder that goes with it.

    Raises:
        ConfigError: it cannot be bound to `host`.
    """
    with (
        tempfile.TemporaryDirectory(prefix="slime-bench-", ignore_cleanup_errors=True) as folder,
        bound(host, port) as at,
    ):
        silent = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        tempfile.tempdir = folder
        try:
            with environment({**silent, "GRADIO_TEMP_DIR": folder}):  # read when they are imported
                _serve(host, port, at, browser)
        finally:
            tempfile.tempdir = None
    print("the page is stopped; what was loaded into it is removed", file=sys.stderr)
    return 0


def _serve(host: str, port: int, at: socket.socket, browser: bool) -> None:
    number = int(at.getsockname()[1])
    if number != port:
        print(f"port {port} is taken: it is {number}", file=sys.stderr)
    print("starting the page, which takes some seconds", file=sys.stderr, flush=True)
    import uvicorn

    local = host in _LOOPBACK
    app = application([*_LOOPBACK, "[::1]"] if local else None)
    if not local:
        print(
            f"whoever can reach port {number} of this machine can use the page, without a password; without --host "
            "nobody but this machine can",
            file=sys.stderr,
        )
    shown = "127.0.0.1" if local or host in ("0.0.0.0", "::") else host
    url = f"http://{f'[{shown}]' if ':' in shown else shown}:{number}"
    print(f"open {url} (Ctrl-C ends it)", flush=True)
    if browser and _has_display():
        webbrowser.open(url)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    # While the first picture is painted: the libraries of the backbones take seconds to import.
    threading.Thread(target=importlib.import_module, args=("slime_bench.methods.slime.method",), daemon=True).start()
    logging.getLogger("uvicorn.error").addFilter(_is_no_farewell)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[at])


def _is_no_farewell(record: logging.LogRecord) -> bool:
    """At Ctrl-C pages that are still open are cut off, which is as it should be."""
    return "graceful shutdown" not in f"{record.getMessage()} {record.exc_info[1] if record.exc_info else ''}"


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens at the port, or at the next free one.

    Raises:
        ConfigError: no such address, or no port that is free.
    """
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        for number in range(port, min(port + _TRIES, 65536)):
            try:
                at = (str(place[0]), number, *place[2:])
                return socket.create_server(at, family=family, backlog=64, dualstack_ipv6=both)
            except OSError as found:
                error = found
    except OSError as found:
        error = found
    raise ConfigError(
        "the page cannot be served there", path="--host, --port", found=f"{host}:{port}: {error}",
        expected="an address of this machine and a free port", remedy="leave --host out, or choose another --port",
    ) from error  # fmt: skip


def _has_display() -> bool:
    """Whether a browser could be seen: X11, Wayland, macOS, Windows."""
    if sys.platform in ("darwin", "win32"):
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
