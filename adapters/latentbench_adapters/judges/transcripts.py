"""Answers that were paid for, kept by the sha256 of the whole request, so that none is asked twice."""

from __future__ import annotations

from pathlib import Path

from latentbench.canonical import digest
from latentbench.errors import StoreError
from latentbench.section import Json
from latentbench.store.files import read_json, write_json
from latentbench_adapters.protocols import Reply


class Transcripts:
    """A folder of JSON files, one per request; only successful replies are kept. Requests hold neither key nor header."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "judges"

    def get(self, request: Json) -> Reply | None:
        """The reply to exactly this request, or None; a damaged file counts as none."""
        try:
            kept = read_json(self._path(request))
            return _reply(kept["reply"]) if kept["request"] == request else None
        except (StoreError, KeyError, TypeError, ValueError, AttributeError):
            return None

    def put(self, request: Json, reply: Reply) -> None:
        """Keeps a successful reply."""
        counts = {"prompt_tokens": reply.prompt_tokens, "reply_tokens": reply.reply_tokens}
        graded = {} if reply.ones is None else {"ones": {str(place): one for place, one in reply.ones.items()}}
        write_json(self._path(request), {"request": request, "reply": {"text": reply.text, **counts, **graded}})

    def _path(self, request: Json) -> Path:
        key = digest("judge request", request)
        return self._folder / key[:2] / f"{key}.json"


def _reply(kept: Json) -> Reply:
    """A reply as it was written. Raises ValueError or what Python raises for one that is damaged."""
    read, written = kept["prompt_tokens"], kept["reply_tokens"]
    ones = {int(place): one for place, one in kept["ones"].items()} if "ones" in kept else None
    if not isinstance(kept["text"], str) or not (isinstance(read, int) and isinstance(written, int)):
        raise ValueError("no reply")
    if not all(isinstance(one, int | float) and 0 <= one <= 1 for one in (ones or {}).values()):
        raise ValueError("no probabilities")
    return Reply(kept["text"], None, read, written, ones=ones)
