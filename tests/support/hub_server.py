"""A hub on localhost that answers as badly as the name of the repository says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "c" * 40


@dataclass
class Hub:
    """Where it is, and which repositories it was asked for."""

    asked: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def use(url: str, patch: pytest.MonkeyPatch) -> None:
    """Makes the hub's client ask there, online whatever this machine is told."""
    from huggingface_hub import close_session, constants

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        patch.delenv(name, raising=False)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "ENDPOINT", url)
    close_session()


BODIES: dict[str, tuple[int, dict[str, str], str]] = {
    "sound": (200, {}, json.dumps({"id": "a/sound", "sha": COMMIT})),
    "no-commit": (200, {}, json.dumps({"id": "a/no-commit"})),
    "odd-commit": (200, {}, json.dumps({"id": "a/odd-commit", "sha": "main"})),
    "list": (200, {}, "[]"),
    "number": (200, {}, "7"),
    "null": (200, {}, "null"),
    "page": (200, {}, "<html>log in to the network first</html>"),
    "cut-short": (200, {}, '{"id": "a/cut'),
    "deep": (200, {}, "[" * 100_000),
    "empty": (200, {}, ""),
    "absent": (404, {"X-Error-Code": "RepoNotFound"}, '{"error": "Repository not found"}'),
    "private": (401, {"X-Error-Message": "Invalid username or password."}, ""),
    "gated": (403, {"X-Error-Code": "GatedRepo"}, '{"error": "Access is restricted"}'),
    "no-revision": (404, {"X-Error-Code": "RevisionNotFound"}, '{"error": "Invalid rev id"}'),
    "bad-request": (400, {}, '{"error": "no"}'),
    "disabled": (403, {"X-Error-Message": "Access to this resource is disabled."}, ""),
    "too-many": (429, {"RateLimit": '"api";r=0;t=1'}, ""),
    "broken": (500, {}, "oh"),
    "busy": (503, {}, ""),
    "teapot": (418, {}, ""),
    "circle": (307, {"Location": "/api/models/a/circle"}, ""),
    "astray": (307, {"Location": "http://[nowhere"}, ""),
}
"""Status, headers and body by the repository's name."""


@contextmanager
def serving() -> Iterator[Hub]:
    """Serves on a free port of localhost until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith(("/api/models/", "/api/datasets/")):  # the client asks for other things by itself
                hub.asked.append(self.path)
            name = self.path.split("/")[-1] if "/revision/" not in self.path else self.path.split("/")[-3]
            if name == "silent":
                time.sleep(3)
            echo = (400, {"X-Error-Message": str(self.headers.get("authorization"))}, "")
            if name == "hangs-up":
                self.connection.close()
            else:
                self._answer(*{**BODIES, "echo": echo}.get(name, (404, {}, "")))

        def do_HEAD(self) -> None:
            self._answer(200, {}, "")

        def _answer(self, status: int, headers: dict[str, str], body: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body.encode()))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that has given up is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
