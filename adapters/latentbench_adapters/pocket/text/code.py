"""Small Python-like functions whose names persist from signature to return statement."""

from __future__ import annotations

import random

from latentbench_adapters.pocket.text.grammar import Lexicon, Scene

LEXICON: Lexicon = {
    "verb": (
        "count",
        "sum",
        "filter",
        "collect",
        "merge",
        "update",
        "parse",
        "index",
        "group",
        "scan",
        "resize",
        "flatten",
        "rotate",
        "encode",
        "split",
        "sort",
        "trim",
        "search",
        "walk",
        "hash",
    ),
    "noun": (
        "row",
        "item",
        "node",
        "record",
        "token",
        "line",
        "value",
        "edge",
        "entry",
        "pixel",
        "event",
        "word",
        "vertex",
        "frame",
        "packet",
        "column",
        "tile",
        "user",
        "chunk",
        "sample",
        "cell",
    ),
    "attr": (
        "size",
        "weight",
        "label",
        "score",
        "length",
        "depth",
        "price",
        "kind",
        "key",
        "width",
        "offset",
        "color",
        "rank",
        "height",
        "parent",
        "status",
        "version",
        "count",
    ),
    "acc": ("total", "result", "output", "found", "buffer", "best", "cache", "queue", "state"),
    "limit": ("limit", "threshold", "maximum", "minimum", "cutoff", "budget"),
    "num": range(65),
    "error": ("ValueError", "KeyError", "TypeError", "IndexError", "RuntimeError"),
    "module": ("math", "json", "os", "re", "itertools", "collections", "random"),
    "klass": (
        "Parser",
        "Buffer",
        "Graph",
        "Matrix",
        "Stack",
        "Reader",
        "Cache",
        "Tree",
        "Vector",
        "Scheduler",
        "Socket",
        "Logger",
        "Iterator",
        "Table",
    ),
    "op": ("<", ">", "<=", ">=", "==", "!="),
    "step": ("+", "-", "*", "**", "%"),
}

FUNCTIONS: tuple[tuple[str, ...], ...] = (
    (
        "def {verb}_{noun}s({noun}s, {limit}={num}):\n",
        '    """Return the {attr} of every {noun} within the {limit}."""\n',
        "    {acc} = []\n    for {noun} in {noun}s:\n",
        "        if {noun}.{attr} {op} {limit}:\n            {acc}.append({noun}.{attr})\n",
        "        elif {noun}.{attr} is None:\n            continue\n",
        "    return {acc}\n",
    ),
    (
        "def {verb}_{attr}({noun}s: list[int]) -> int:\n",
        "    {acc} = {num}\n",
        "    if not {noun}s:\n        raise {error}('no {noun}s')\n",
        "    for i, {noun} in enumerate({noun}s):\n        {acc} = {acc} {step} {noun}\n",
        "        if {acc} {op} {num2}:\n            break\n",
        "    print('{attr}', {acc})\n",
        "    return {acc}\n",
    ),
    (
        "class {klass}:\n",
        "    def __init__(self, {attr}, {limit}={num}):\n        self.{attr} = {attr}\n"
        "        self.{limit} = {limit}\n",
        "        self.{acc} = []\n",
        "\n    def {verb}(self, {noun}):\n        self.{acc}.append({noun})\n",
        "        if len(self.{acc}) {op} self.{limit}:\n            self.{acc}.pop()\n",
        "        return self.{attr}\n",
        "\n    def __len__(self):\n        return len(self.{acc})\n",
    ),
    (
        "import {module}\n\n\n",
        "def {verb}_{noun}(path, {limit}={num}):\n",
        "    with open(path, encoding='utf-8') as {acc}:\n        {noun}s = {acc}.read().split()\n",
        "    while {noun}s and len({noun}s) {op} {limit}:\n        {noun}s.pop()\n",
        "    try:\n        {attr} = int({noun}s[{num2}])\n",
        "    except {error}:\n        {attr} = None\n",
        "    return {attr}, {module}\n",
    ),
    (
        "def {verb}({noun}, {attr}={num}):\n",
        "    # base case: the {noun} has no {attr} left\n",
        "    if {noun}.{attr} {op} {num}:\n        return {attr}\n",
        "    left = {verb}({noun}.left, {attr} {step} {num2})\n"
        "    right = {verb}({noun}.right, {attr} {step} {num2})\n",
        "    assert left {op} right, '{attr} of {noun}'\n",
        "    return max(left, right)\n",
    ),
    (
        "from {module} import {klass}\n\n\ndef {verb}_{noun}s({noun}s):\n",
        "    {acc} = dict()\n    for {noun} in sorted({noun}s, reverse=True):\n",
        "        {acc}.setdefault({noun}.{attr}, []).append({noun})\n",
        "    assert {acc}, 'every {noun} needs a {attr}'\n",
        "    return list({acc}.items())\n",
    ),
    (
        "async def {verb}(self, {noun}, *, {limit}=None):\n",
        "    # wait until the {noun} is ready\n",
        "    {acc} = await self.{attr}({noun})\n    if {limit} is not None and {acc} {op} {limit}:\n",
        "        raise {error}(f'{noun} exceeds {limit}')\n",
        "    self.logger.debug('{verb} %s', {noun})\n",
        "    return {acc}\n",
    ),
    (
        "@property\ndef {attr}(self) -> float:\n",
        '    """The mean {attr} of all {noun}s, or zero when there are none."""\n',
        "    {acc} = [{noun}.{attr} for {noun} in self.{noun}s if {noun}.{attr} {op} {num}]\n",
        "    return sum({acc}) / len({acc}) if {acc} else 0.0\n",
    ),
    (
        "def {verb}(a, b):\n",
        "    {acc} = [[0] * len(b) for _ in range(len(a))]\n    for i in range(len(a)):\n",
        "        for j in range(len(b)):\n            {acc}[i][j] = a[i] {step} b[j]\n",
        "            if {acc}[i][j] {op} {num}:\n                {acc}[i][j] = {num2}\n",
        "    return {acc}\n",
    ),
    (
        "{limit} = {num}\n{noun}s = [{num2}, {num3}, {num4}]\n\n",
        "{acc} = lambda {noun}: {noun} {step} {limit}\n",
        "print('{verb} the {noun}s', list(map({acc}, {noun}s)))\n",
        "{attr} = any({noun} {op} {limit} for {noun} in {noun}s)\n",
    ),
)
TESTS: tuple[str, ...] = (
    "\n\ndef test_{verb}():\n    {noun}s = [{num3}, {num4}, {num5}]\n    assert {verb}({noun}s) {op} {num6}\n",
    "\n\nif __name__ == '__main__':\n    {acc} = {verb}([{num3}, {num4}])\n    print({acc})\n",
    "\n\nx = {num3} {step} {num4}\nwhile x {op} {num5}:\n    x = x {step} {num6}\n",
)


def document(rng: random.Random) -> str:
    """One function or class, usually followed by a use of it."""
    scene = Scene(rng, LEXICON)
    required, *body, last = rng.choice(FUNCTIONS)
    lines = [required, *(line for line in body if _keep(rng, line)), last]
    return "".join(scene.fill(line) for line in (*lines, rng.choice(TESTS))).rstrip("\n")


def _keep(rng: random.Random, line: str) -> bool:
    """Only self-contained lines may be left out, so that the code still parses."""
    optional = line.lstrip().startswith(("#", '"""', "print", "assert"))
    return not optional or rng.random() < 0.6
