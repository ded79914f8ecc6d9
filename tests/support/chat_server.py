"""A chat-completions server on localhost that does what a script says, request by request.

An answer of a script has a `body` (text or bytes), a `status` and `headers`; or it waits (`delay`), hangs up (`hang_up`),
sends a byte every `drip` seconds (`from: headers` those, too) or its body again and again (`endless`).
"""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = dict[str, Any]
Script = Callable[[int, Answer], Answer]


@dataclass
class ChatServer:
    """What it was asked, and what it answers: `script` takes the number of the request and its body."""

    script: Script
    bodies: list[Answer] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    times: list[float] = field(default_factory=list)
    under_way: int = 0
    most_at_once: int = 0
    port: int = 0
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def completion(text: Any, prompt: int = 11, written: int = 7) -> Answer:
    """A body of the protocol."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def said(text: Any) -> Answer:
    """The script's answer that is a good reply."""
    return {"body": json.dumps(completion(text))}


def packed(body: bytes, encoding: str = "gzip") -> Answer:
    """The script's answer with a body that is packed, or said to be."""
    return {"body": gzip.compress(body) if encoding == "gzip" else body, "headers": {"Content-Encoding": encoding}}


def refused(status: int, **headers: str) -> Answer:
    """The script's answer that is an error; the client is told to come back at once."""
    body = json.dumps({"error": {"message": f"status {status}", "type": "server_error"}})
    return {"status": status, "body": body, "headers": {"retry-after-ms": "5", **headers}}


@contextmanager
def serving(script: Script) -> Iterator[ChatServer]:
    """Serves on a free port of localhost until the block ends."""
    state = ChatServer(script)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                number = len(state.bodies)
                state.bodies.append(body)
                state.keys.add(self.headers.get("Authorization", ""))
                state.times.append(time.monotonic())
                state.under_way += 1
                state.most_at_once = max(state.most_at_once, state.under_way)
            try:
                self._send(state.script(number, {**body, "authorization": self.headers.get("Authorization", "")}))
            except OSError:
                pass  # the client is gone
            finally:
                with state.lock:
                    state.under_way -= 1

        def _send(self, answer: Answer) -> None:
            time.sleep(answer.get("delay", 0))
            if answer.get("hang_up"):
                self.connection.close()
                return
            body = answer["body"]
            content = body.encode() if isinstance(body, str) else body
            self.send_response(answer.get("status", 200))
            length = {} if answer.get("endless") else {"Content-Length": str(len(content))}
            for name, value in {"Content-Type": "application/json", **length, **answer.get("headers", {})}.items():
                self.send_header(name, value)
            if "drip" in answer and answer.get("from") == "headers":
                content = b"".join([*self._headers_buffer, b"\r\n", content])
                self._headers_buffer.clear()
            else:
                self.end_headers()
            self._write(content, answer.get("drip"))
            while answer.get("endless"):
                self._write(content, None)

        def _write(self, content: bytes, drip: float | None) -> None:
            """At once, or a byte every `drip` seconds."""
            for piece in [content] if drip is None else (content[i : i + 1] for i in range(len(content))):
                self.wfile.write(piece)
                state.sent += len(piece)
                time.sleep(drip or 0)

        def log_message(self, *arguments: Any) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 512  # all requests of a judge may come at once

    server = Server(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
