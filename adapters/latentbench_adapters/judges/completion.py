"""What is used of an answer of the chat-completions protocol; everything used is checked before it is.

Something that is no such answer (a page of a proxy, half a JSON, a log-probability of 1e9) was not said by the judge: it
counts as no answer, and is asked for again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import exp
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from latentbench.core.judges import ones_of
from latentbench.core.protocols import Reply
from latentbench.core.spec_model import Json

_ROUNDING = 1e-3
"""How far above 0 a log-probability may be rounded."""
_MOST_ALTERNATIVES = 20
"""As many as the protocol allows."""
_MOST_TOKENS = 10**9
"""More than any model reads or writes; what a server counts beyond it is no count."""


class _Part(BaseModel):
    """A part of an answer. Of its lists only the first fault is looked for: a hostile one may have a million."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


def _whole(value: object) -> object:
    """Text without halves of surrogate pairs, which JSON may hold and files may not."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


_Token = Annotated[str, BeforeValidator(_whole)]
_LogProbability = Annotated[float, Field(le=_ROUNDING, allow_inf_nan=False)]


class _Alternative(_Part):
    token: _Token
    logprob: _LogProbability


class _Step(_Part):
    token: _Token
    logprob: _LogProbability | None = None
    top_logprobs: Annotated[list[_Alternative], Field(max_length=_MOST_ALTERNATIVES, fail_fast=True)] | None = None


class _Steps(_Part):
    content: Annotated[list[_Step], Field(fail_fast=True)] | None = None


class _Message(_Part):
    content: Annotated[Any, BeforeValidator(_whole)] = None


class _Choice(_Part):
    message: _Message

    @property
    def steps(self) -> Sequence[_Step]:
        """The tokens written, with how likely they and others were; none where that was not asked for."""
        return ()


class _GradedChoice(_Choice):
    logprobs: _Steps | None = None

    @property
    def steps(self) -> Sequence[_Step]:
        return (self.logprobs and self.logprobs.content) or ()


class _Completion(_Part):
    choices: Annotated[list[_Choice], Field(min_length=1, fail_fast=True)]
    usage: Any = None


class _GradedCompletion(_Completion):
    choices: Annotated[list[_GradedChoice], Field(min_length=1, fail_fast=True)]  # type: ignore[assignment]


def reply_in(body: bytes, *, graded: bool) -> Reply:
    """The text of an answer and its cost; with `graded` also how sure the judge was of its labels.

    An answer without text is a reply with an error. Raises ValueError, in one sentence, for what is no answer of the
    protocol.
    """
    answer = _checked(body, _GradedCompletion if graded else _Completion)
    read, written = (_count(answer.usage, name) for name in ("prompt_tokens", "completion_tokens"))
    choice = answer.choices[0]
    text = choice.message.content
    if not isinstance(text, str):
        return Reply(None, "the answer holds no text", read, written)
    return Reply(text, None, read, written, ones=_ones(choice.steps, text))


def _checked(body: bytes, kind: type[_Completion]) -> _Completion:
    try:
        data = json.loads(body)
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"the answer is no chat completion: {place}: {first['msg']}{_server_error(data)}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the answer is no chat completion: not JSON ({error})") from None


def _server_error(data: Json) -> str:
    """What the server says went wrong; some say so with status 200."""
    error = data.get("error") if isinstance(data, dict) else None
    return f"; the server says {json.dumps(error)[:200]}" if error else ""


def _ones(steps: Sequence[_Step], text: str) -> dict[int, float] | None:
    """See `Reply.ones`; None unless the log-probabilities are those of exactly this text."""
    if not steps or "".join(step.token for step in steps) != text:
        return None
    return ones_of((step.token, {a.token: exp(a.logprob) for a in step.top_logprobs or ()}) for step in steps)


def _count(usage: Json, name: str) -> int:
    """A number of tokens, 0 where the server gives none."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS else 0
