"""A chat-completions server on localhost that does what a script says, request by request."""

from __future__ import annotations

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
            content = answer["body"].encode()
            self.send_response(answer.get("status", 200))
            for name, value in {"Content-Type": "application/json", **answer.get("headers", {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
