"""Hostile task files: sound ones into which something is put that would run, fetch, read elsewhere, blow up or be no task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from latentbench.core.paths import Roots
from tests.support.hostile import STRANGE, changed, places, values, written

_ROWS = [
    {"q": f"{a} + {a}?", "a": str(2 * a), "c": [str(a), str(2 * a)], "g": 1, "choices": ["x", "y"]} for a in range(4)
]
_LOCAL = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "data/rows.jsonl"}}, "test_split": "test"}
SOUND: list[dict[str, Any]] = [
    {
        "task": "writes",
        **_LOCAL,
        "output_type": "generate_until",
        "doc_to_text": "Q: {{q}}\nA:",
        "doc_to_target": "{{a}}",
        "description": "Add.\n",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False, "temperature": 0.0},
        "metric_list": [
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}
        ],
        "filter_list": [
            {
                "name": "number",
                "filter": [{"function": "regex", "regex_pattern": r"(\d+)"}, {"function": "take_first"}],
            },
            {"name": "plain", "filter": [{"function": "lowercase"}, {"function": "take_first"}]},
        ],
        "fewshot_split": "test",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": 1,
        "metadata": {"version": 1},
    },
    {
        "task": "chooses",
        **_LOCAL,
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_target": "g",
        "doc_to_choice": "c",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
    },
    {
        "task": "continues",
        **_LOCAL,
        "output_type": "loglikelihood",
        "doc_to_text": "{{q}}",
        "doc_to_target": " {{a}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean"}, {"metric": "perplexity"}],
        "gen_prefix": "so",
    },
]
"""Task files that hold."""

_EVIL = "open({!r}, 'a').write(__name__ + '\\n')\n"
_METRIC = "import evaluate\nclass Evil(evaluate.Metric):\n    pass\n"


def lay_traps(project: Path, outside: Path, canary: Path) -> Roots:
    """Rows for sound tasks, and everything that an attack could lead to: whatever is run writes to `canary`."""
    (project / "data").mkdir(parents=True)
    outside.mkdir()
    rows = "".join(json.dumps(row) + "\n" for row in _ROWS)
    (project / "data/rows.jsonl").write_text(rows)
    (outside / "rows.jsonl").write_text(rows)
    (project / "data/link.jsonl").symlink_to(outside / "rows.jsonl")
    evil = _EVIL.format(str(canary))
    (project / "utils.py").write_text(evil + "def f(*a, **k): return 'x'\n")
    for folder in (project / "evil", outside / "evil", project / "data/evil"):
        folder.mkdir()
        (folder / "evil.py").write_text(evil + _METRIC)
    (outside / "task.yaml").write_text("doc_to_text: !function utils.f\n")
    return Roots(project)


def attacks(outside: Path, canary: Path) -> st.SearchStrategy[Any]:
    """Values that want code, files of others, or more than a machine has."""
    touch = f"touch {canary}"
    names = ["./evil", "evil", "evil/evil.py", "data/evil", str(outside / "evil"), "utils.f", "code_eval", "lvwerra/x"]
    names += ["custom", "decontaminate", "os.system", "__import__", "eval", "pandas", "hf://datasets/x/y", touch]
    files = [str(outside / "rows.jsonl"), "../outside/rows.jsonl", "data/link.jsonl", "zip://*::x.zip", "data/*.jsonl"]
    files += ["https://example.org/x.json", "hf://datasets/x/y/z.json", "file:///etc/passwd", "data", "/dev/zero"]
    templates = [
        "{{ 'x' * 10**9 }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ q }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x=q) %}{% for i in range(90) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{{ 'x'.ljust(10**10) }}{{ '%9999999999d' % 1 }}",
        "{{ q.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('" + touch + "') }}",
        "{{ self._TemplateReference__context }}",
        f"{{% include '{outside / 'task.yaml'}' %}}",
        "{% import 'os' as os %}{{ os.system('" + touch + "') }}",
        "{{ q | map('attr', '__class__') | list }}",
        "{{ q | regex_replace('(', 'x') }}",
        "{{ 10 ** 10 ** 10 }}{{ 1 // 0 }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ nothing }}{{ q.nothing.more }}",
        "{{ q",
        "((" * 3000,
        "[" * 3000 + "]" * 3000,
        "x" * 200_000,
        "[__import__('os').system('" + touch + "')]",
    ]
    patterns = ["(", "*", "(?P<", "[", r"\p{L}", "(" * 2000, "a{99999999999}", "x" * 10_000, "(?i", "\\"]
    shapes: list[Any] = [{"metric": name} for name in names] + [[{"metric": name}] for name in names]
    shapes += [{"metric": "exact_match", "hf_evaluate": True}, {"function": "custom", "filter_fn": "utils.f"}]
    shapes += [{"data_files": {"test": file}} for file in files] + [
        {"function": "regex", "regex_pattern": p} for p in patterns
    ]
    return st.sampled_from([*names, *files, *templates, *patterns, *shapes, *STRANGE])


_TEMPLATES = ["{{q}}", "Q: {{q}}\n{% for x in c %}{{ loop.index }}. {{ x }}\n{% endfor %}", "{{ [q, a] | join(' ') }}"]
_TEMPLATES += ["{{ q * 2 ~ '!' }}", "{{ '%s = ' % q }}", "{{ q | regex_replace('\\\\d', 'n') | upper }}"]
_KEYS = ["process_docs", "process_results", "custom_dataset", "unsafe_code", "include", "class", "use_prompt", "group"]
_KEYS += ["doc_to_image", "should_decontaminate", "repeats", "tag", "hf_evaluate", "filter_fn", "trust_remote_code"]
_KEYS += ["samples", "name", "path", "field", "data_dir", "k", "mapping_dict", "group_select", "fallback", "metadata"]
_TAGS = [
    "!function utils.f",
    "!!python/name:os.system",
    "!!python/object/apply:os.system [true]",
    "!x y",
    "*a",
    "&a [*a]",
]


@st.composite
def hostile_tasks(draw: st.DrawFn, outside: Path, canary: Path) -> str:
    """A sound task file with up to three attacks or mutations, and sometimes a YAML tag in the place of a value."""
    tree: Any = {**draw(st.sampled_from(SOUND)), "doc_to_text": draw(st.sampled_from(_TEMPLATES))}
    attack = attacks(outside, canary)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 1, 2, 3]))):
        if isinstance(tree, dict | list):
            path = draw(st.sampled_from(places(tree)[1:] or [()]))
            how = draw(st.sampled_from(["replace"] * 6 + ["remove", "wrap", "add", "rename", "key"]))
            value = draw(attack | attack | attack | values)
            if how == "key":
                tree = _with_key(tree, path[:-1], draw(st.sampled_from(_KEYS)), value)
            else:
                tree = changed(tree, path, how, value)
    text = written(tree)
    if draw(st.sampled_from([True, False, False, False])):
        text = _tagged(text, draw(st.integers(0, 200)), draw(st.sampled_from(_TAGS)))
    return text


def _with_key(tree: Any, path: tuple[Any, ...], key: str, value: Any) -> Any:
    """The tree with one more key in the map at `path`."""
    held = tree
    for step in path:
        held = held[step]
    return changed(tree, path, "replace", {**held, key: value}) if isinstance(held, dict) and path else tree


def _tagged(text: str, number: int, tag: str) -> str:
    """The text with the value of one of its lines replaced by something tagged."""
    lines = text.splitlines()
    chosen = number % len(lines)
    key, colon, _ = lines[chosen].partition(":")
    lines[chosen] = f"{key}{colon} {tag}"
    return "\n".join(lines) + "\n"


def sound_text(task: dict[str, Any], **changes: Any) -> str:
    """A sound task as YAML, with other values."""
    return str(yaml.safe_dump({**task, **changes}, sort_keys=False))
