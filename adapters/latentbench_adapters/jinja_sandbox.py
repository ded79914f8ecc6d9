"""Jinja templates of others, rendered in a sandbox that bounds what they read, make and cost.

Jinja's own sandbox keeps a template from Python's objects, but not from `'x' * 10**9`, from loops within loops or from
text that doubles itself. Here every rendering has a budget that loop turns, calls and all text made are paid from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, nodes
from jinja2.environment import Template
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

MAX_TEMPLATE = 100_000
"""Characters of a template."""
BUDGET = 1 << 27
"""What one rendering may spend: characters or items made, and `_STEP` for every turn of a loop and every call."""
_STEP = 100
_MAX_BITS = 100_000
_FORMATTING = frozenset({"format", "format_map", "%"})
_GROWING = _FORMATTING | frozenset(
    {"batch", "center", "expandtabs", "indent", "ljust", "regex_replace", "rjust", "slice", "tojson", "translate"}
    | {"urlize", "wordwrap", "zfill"}
)
"""Filters and methods of text that may make more than they are given, by a width, a repetition or a replacement."""
_WIDTH_ASKED = re.compile(r"\*|:[^}]*\{")
"""A format that takes a width from its arguments."""
_TURNS, _JOINED = "turns of a loop", "joined text"


def unusable(template: str) -> str | None:
    """Why a template of a task cannot be used; None where it can. Nothing of it is rendered."""
    if len(template) > MAX_TEMPLATE:
        return f"a template of {len(template):,} characters; at most {MAX_TEMPLATE:,} are read"
    try:
        task_templates().compile(template, raw=True)
    except TemplateSyntaxError as error:
        return f"not a Jinja template: {error.message} (line {error.lineno} of the template)"
    except (TemplateError, RecursionError, ValueError, OverflowError, MemoryError) as error:
        return f"not a Jinja template that can be used: {str(error)[:120] or type(error).__name__}"
    return None


def task_templates() -> Sandbox:
    """An environment like lm-eval's for the templates of tasks, bounded."""
    return Sandbox(undefined=StrictUndefined, keep_trailing_newline=True)


def bound_chat_templates() -> None:
    """From now on transformers renders the chat templates of models, which stand in their folders, within a budget."""
    from transformers.utils import chat_template_utils

    vars(chat_template_utils)[ImmutableSandboxedEnvironment.__name__] = ImmutableSandbox


class _Budgeted(Template):
    """A template whose every rendering starts with a full budget."""

    environment: _Bounded

    def new_context(self, *args: Any, **options: Any) -> Any:
        self.environment.left = BUDGET
        return super().new_context(*args, **options)


class _Filters(dict[str, Callable[..., Any]]):
    """Filters that pay before they make something."""

    def __init__(self, filters: dict[str, Callable[..., Any]], spend: Callable[[int], None]) -> None:
        super().__init__()
        self._spend = spend
        for name, function in filters.items():
            self[name] = function

    def __setitem__(self, name: str, function: Callable[..., Any]) -> None:
        @wraps(function)  # keeps Jinja's mark of functions that also take the context
        def paying(*args: Any, **options: Any) -> Any:
            given = args[1:] if hasattr(function, "jinja_pass_arg") else args
            self._spend(_STEP + _made(name, given[0] if given else "", (*given[1:], *options.values())))
            return function(*args, **options)

        super().__setitem__(name, paying)


class _Bounded(SandboxedEnvironment):
    """What both sandboxes share."""

    template_class = _Budgeted
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "optimized": False})  # nothing is worked out before it is rendered
        self.left = BUDGET
        filters = {**self.filters, "regex_replace": _regex_replace, _JOINED: self._joined}
        self.filters = _Filters(filters, self.spend)
        dict.__setitem__(self.filters, _TURNS, self._turns)
        self.globals["range"] = self._range
        self.globals.pop("lipsum", None)

    def spend(self, amount: int) -> None:
        """Raises SecurityError when nothing is left."""
        # Paid before anything is made: text that was made first would already have filled the memory.
        self.left -= amount
        if self.left < 0:
            raise SecurityError("the template asks for too much: it repeats or widens text beyond all bounds")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """The tree, with loops and joined text (`~`) led through functions that pay."""
        tree = super()._parse(source, name, filename)
        # Loops and `~` are compiled to plain Python, which no hook of the environment sees; filters are, so both are made of them.
        for loop in list(tree.find_all(nodes.For)):
            if loop.recursive:
                raise TemplateSyntaxError("recursive loops are not supported", loop.lineno, name, filename)
            loop.iter = nodes.Filter(loop.iter, _TURNS, [], [], None, None, lineno=loop.lineno)
        for joined in list(tree.find_all(nodes.Concat)):
            parts = nodes.List(joined.nodes, lineno=joined.lineno)
            joined.nodes = [nodes.Filter(parts, _JOINED, [], [], None, None, lineno=joined.lineno)]
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.spend(_result(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **options: Any) -> Any:  # noqa: N805 (as Jinja has it)
        method = getattr(__obj, "__wrapped__", __obj)  # of `format`, which Jinja wraps
        owner = getattr(method, "__self__", None)
        text = isinstance(owner, str | bytes)
        cost = _made(getattr(method, "__name__", ""), owner, (*args, *options.values())) if text else 0
        __self.spend(_STEP + cost)
        return super().call(__context, __obj, *args, **options)

    def concat(self, pieces: Iterable[str]) -> str:
        made = []
        for piece in pieces:
            self.spend(len(piece))
            made.append(piece)
        return "".join(made)

    def _turns(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.spend(_STEP)
            yield item

    def _joined(self, parts: list[Any]) -> str:
        return self.concat(map(str, parts))

    def _range(self, *args: int) -> range:
        try:
            made = range(*args)
            self.spend(len(made))
        except OverflowError:
            raise SecurityError("the template asks for too much: a range that no machine can count") from None
        return made


class Sandbox(_Bounded):
    """The sandbox for templates of tasks."""


class ImmutableSandbox(_Bounded, ImmutableSandboxedEnvironment):
    """The sandbox for chat templates, which may change nothing they are given."""


def _regex_replace(string: str, pattern: str, repl: str, count: int = 0) -> str:
    """The filter that lm-eval adds."""
    return re.sub(pattern, repl, string, count=count)


def _result(operator: str, left: Any, right: Any) -> int:
    """Characters, items or bits that an operator makes at most."""
    whole = isinstance(left, int) and isinstance(right, int)
    if operator == "**":
        bits = left.bit_length() * right if whole else 0
        return BUDGET + 1 if bits > _MAX_BITS else 0
    if operator == "*":
        if whole:
            return BUDGET + 1 if left.bit_length() + right.bit_length() > _MAX_BITS else 0
        times = [side for side in (left, right) if isinstance(side, int)]
        return max(0, *times) * max(_size(left), _size(right)) if times else 0
    if operator == "%":
        return _made("%", left, (right,)) if isinstance(left, str | bytes) else 0
    return _size(left) + _size(right)


def _made(name: str, text: Any, args: tuple[Any, ...]) -> int:
    """Characters that a filter or a method of text makes at most of `text`."""
    if name == "replace" and isinstance(text, str) and len(args) >= 2:
        return len(text) + text.count(str(args[0])) * len(str(args[1]))
    if name == "join":  # a method of the separator, a filter of the parts
        parts, between = (args[0] if args else "", text) if isinstance(text, str) else (text, args[0] if args else "")
        return _weight(parts) + _size(parts) * _size(between)
    if name not in _GROWING:
        return 0
    if name in _FORMATTING:
        widths = [int(digits[:12]) for digits in re.findall(r"\d{4,}", str(text))]
        asked = _WIDTH_ASKED.search(str(text)) is not None
        return (_size(text) + 1) * (1 + sum(_weight(value, asked) for value in args)) + max(widths, default=0)
    return (_size(text) + 1) * (1 + sum(_weight(value, numbers=True) for value in args))


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | dict | set | range) else 0


def _weight(value: Any, numbers: bool = False, depth: int = 3) -> int:
    """Characters in a value and all it holds; where `numbers` may be widths, they count as what they say."""
    if isinstance(value, int) and numbers:
        return abs(value)
    if isinstance(value, list | tuple | set | dict) and depth:
        held = value.values() if isinstance(value, dict) else value
        return len(value) + sum(_weight(item, numbers, depth - 1) for item in held)
    return _size(value)
