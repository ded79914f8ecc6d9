"""Every exception that libraries of others define, as something that can be raised."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator
from functools import cache

from latentbench.core.border import ENDING

LIBRARIES = {
    "builtins": ("builtins",),
    "transformers": ("transformers.utils.import_utils", "transformers.utils.chat_template_utils"),
    "tokenizers": ("tokenizers",),
    "safetensors": ("safetensors",),
    "gguf": ("gguf",),
    "jinja2": ("jinja2.exceptions",),
    "lm_eval": ("lm_eval.api.task", "lm_eval.tasks"),
    "datasets": ("datasets.exceptions",),
    "huggingface_hub": ("huggingface_hub.errors",),
    "httpx": ("httpx",),
    "httpx2": ("httpx2",),
    "pyarrow": ("pyarrow",),
    "torch": ("torch",),
}
"""Modules after whose import all exceptions of a library are there. Not every library defines some of its own."""


@cache
def upstream() -> dict[str, list[type[BaseException]]]:
    """Classes by library, those that end a process excepted."""
    for modules in LIBRARIES.values():
        for module in modules:
            importlib.import_module(module)
    found: dict[str, list[type[BaseException]]] = {library: [] for library in LIBRARIES}
    for cls in sorted(set(_below(BaseException)), key=lambda cls: f"{cls.__module__}.{cls.__qualname__}"):
        library = cls.__module__.partition(".")[0].removesuffix("_rust")
        private = cls.__name__.startswith("_")  # raised and caught inside of their library
        if library in found and not private and not issubclass(cls, (*ENDING, Warning)):
            found[library].append(cls)
    found["tokenizers"].append(type(panic()))
    return found


def made(cls: type[BaseException]) -> BaseException:
    """An instance, whatever its constructor asks for."""
    if issubclass(cls, BaseExceptionGroup):
        return cls(TEXT, [ValueError(TEXT) if issubclass(cls, Exception) else BaseException(TEXT)])
    error = cls.__new__(cls, TEXT)
    error.args = (TEXT,)
    return error


@cache
def panic() -> BaseException:
    """What Python sees of code in Rust that panics: a pattern that backtracks without end."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(ENDLESS), "isolated")
    null, kept = os.open(os.devnull, os.O_WRONLY), os.dup(2)
    os.dup2(null, 2)  # Rust tells the terminal, too
    try:
        tokenizer.encode("a" * 5000 + "c")
    except BaseException as error:  # that it is no Exception is the point
        return error.with_traceback(None)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
    raise AssertionError("no panic")


TEXT = "first line\nsecond line"
ENDLESS = "(a?)(a?)*(b|a|aa)*$"


def _below(cls: type[BaseException]) -> Iterator[type[BaseException]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for below in cls.__subclasses__():
            yield below
            yield from _below(below)
