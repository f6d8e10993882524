"""A small twin of W&B's server on 127.0.0.1: enough of its protocol to start, resume and end a run and to take files.

It keeps what it was told: runs with the arguments they were made with, rows of history as (offset, row), files by name.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ACCOUNT = "twin-account"


@dataclass
class Told:
    """What clients have said.

    Attributes:
        runs: id -> arguments of the mutation that made or changed the run, and `exit_code`.
        history: id -> rows, each where its offset puts it. files: names of uploaded files.
    """

    url: str = ""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error."""


@contextmanager
def wandb_server() -> Iterator[Told]:
    """The server runs as long as the block does."""
    told = Told()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"told": told}))
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    told: Told

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._reply({})

    def do_PUT(self) -> None:
        self._body()
        self.told.files.add(self.path.removeprefix("/upload/"))
        self._reply({})

    def do_POST(self) -> None:
        body = json.loads(self._body() or b"{}")
        if self.path == "/graphql":
            name = re.search(r"(?:query|mutation)\s+(\w+)", body["query"])
            self._reply({"data": self._answer(name[1] if name else "", body.get("variables") or {})})
        else:
            if self.path.endswith("/file_stream"):
                self._stream(self.path.split("/")[-2], body)
            self._reply({})

    def _stream(self, run: str, body: dict[str, Any]) -> None:
        for name, part in (body.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                rows = self.told.history.setdefault(run, [])
                rows[part["offset"] :] = [json.loads(line) for line in part["content"]]
        if body.get("complete"):
            self.told.runs[run]["exit_code"] = body["exitcode"]

    def _answer(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "project", "name": given.get("project"), "entity": {"id": "entity", "name": ACCOUNT}}
        run = given.get("name")
        if name == "UpsertBucket":
            new = run not in self.told.runs
            self.told.runs.setdefault(str(run), {}).update({k: v for k, v in given.items() if v is not None})
            bucket = {"id": run, "name": run, "displayName": run, "config": "{}", "historyLineCount": 0}
            return {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": new}}
        if name == "RunResumeStatus":
            return {"model": {**project, "bucket": self._resumed(str(run))} if run in self.told.runs else None}
        if name == "Viewer":
            return {"viewer": {"id": "user", "username": ACCOUNT, "entity": ACCOUNT, "teams": {"edges": []}}}
        if name == "CreateRunFiles":
            files = [{"name": each, "uploadUrl": self._upload(each)} for each in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        return self._artifact(name, given)

    def _resumed(self, run: str) -> dict[str, Any]:
        rows = self.told.history.get(run, [])
        counts = {"historyLineCount": len(rows), "logLineCount": 0, "eventsLineCount": 0}
        texts = {"historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]), "eventsTail": "[]"}
        facts = {"config": self.told.runs[run].get("config") or "{}", "summaryMetrics": "{}", "tags": []}
        return {"id": run, "name": run, "displayName": run, **counts, **texts, **facts, "wandbConfig": '{"t": 1}'}

    def _artifact(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        if name == "ArtifactType":  # of a collection that does not exist yet
            return {"project": {"artifactType": None, "artifact": None}}
        if name == "CreateArtifact":
            artifact = {"id": "artifact", "state": "PENDING", "artifactSequence": {"id": "s", "latestArtifact": None}}
            return {"createArtifact": {"artifact": artifact}}
        if name == "CreateArtifactManifest":
            file = {"id": "file", "name": "m", "displayName": "m", "uploadUrl": self._upload("m"), "uploadHeaders": []}
            return {"createArtifactManifest": {"artifactManifest": {"id": "manifest", "file": file}}}
        if name == "CreateArtifactFiles":
            nodes = [
                {"id": each["name"], "name": each["name"], "displayName": each["name"], "storagePath": each["name"]}
                | {"uploadUrl": self._upload(f"artifact/{each['name']}"), "uploadHeaders": []}
                | {"uploadMultipartUrls": None, "artifact": {"id": "artifact"}}
                for each in given["input"]["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if name == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": "artifact", "digest": "d"}}}
        return {}

    def _upload(self, name: str) -> str:
        return f"{self.told.url}/upload/{name}"

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _reply(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
