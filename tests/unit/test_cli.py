"""The command line: help with examples, fast verbs, safe output, specs that start from shipped ones."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
import unicodedata
from pathlib import Path

import jsonschema
import pytest
import typer.main
import yaml

from latentbench.cli.app import app
from latentbench.cli.options import FolderOptions, StoreOptions, with_option_groups
from latentbench.core.errors import SpecProblem
from latentbench.core.text import one_line, printable, visible
from tests.conftest import Command
from tests.support.project import Workbench
from tests.unit.leaderboard_factory import Planted, write

REPOSITORY = Path(__file__).parents[2]
SHIPPED = sorted(path.relative_to(REPOSITORY) for path in (REPOSITORY / "specs").rglob("*.yaml"))
VERBS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_has_an_example(command: Command, verb: str) -> None:
    done = command(verb, "--help")
    assert done.code == 0
    assert f"latentbench {verb}" in " ".join(done.out.split()).replace("│", "") or verb == "store"


def test_no_arguments_show_help_and_unknown_ones_exit_with_2(command: Command) -> None:
    assert command("--help").code == 0
    assert command("frobnicate").code == 2
    assert command("plan", "--frobnicate").code == 2


def test_the_table_of_some_specs_and_some_columns(bench: Workbench, command: Command) -> None:
    write(bench.root / "results", Planted(name="a/one"), Planted(name="a/b/two"), Planted(name="c"))
    shown = command("leaderboard", "--suite", "a/b", "--column", "l0", "--column", "cross_entropy.increase").out
    assert "a/b/two" in shown
    assert "a/one" not in shown
    assert ("L0" in shown, "CE increase" in shown, "EV centred" in shown) == (True, True, False)
    for arguments, said in (
        (("--suite", "a/x"), "no records of a spec or folder 'a/x'; there are a, c"),
        (("--column", "cross_entropy.nope"), "there are cross_entropy.clean, "),
        (("--column", "nope"), "there are cross_entropy, dead_fraction, "),
        (("--column", "l0", "--format", "saebench", "--output", "made"), "leave --column out"),
    ):
        done = command("leaderboard", *arguments)
        assert (done.code, done.out) == (2, "")
        assert said in done.err


def test_validate_tells_every_problem_and_how_many(bench: Workbench, command: Command) -> None:
    bench.spec("good")
    assert command("validate").out == "1 spec, 1 cell: valid\n"
    bench.spec("bad", sae__k="x", layer=9)
    done = command("validate")
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith("1 problem\n")
    report = json.loads(command("validate", "--json").out)
    assert (report["valid"], report["specs"], report["cells"]) == (False, 2, 1)
    assert [(p["file"], p["path"]) for p in report["problems"]] == [("specs/bad.yaml", "sae.k")]


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_a_new_spec_says_what_the_one_it_started_from_says(
    tmp_path: Path, path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(REPOSITORY / "specs", tmp_path / "specs")
    monkeypatch.chdir(tmp_path)
    done = command("new", "specs/deep/er/mine", "--from", str(path))
    assert done.code == 0, done.err
    assert command("new", "specs/deep/er/mine.yaml", "--from", str(path)).code == 2
    from latentbench.spec.merge import load_tree

    old, new = (load_tree(tmp_path / p, tmp_path).plain() for p in (path, "specs/deep/er/mine.yaml"))
    assert {**new, "name": None} == {**old, "name": None}
    written = (tmp_path / "specs/deep/er/mine.yaml").read_text(encoding="utf-8")
    assert written.startswith(f"# Started from {path.relative_to('specs').with_suffix('')}. What else it could say: ")


@pytest.mark.parametrize(
    "extends", ["[base.yaml, 'other.yaml']", "base.yaml  # why", "\n  - base.yaml\n  - other.yaml", '"base.yaml"']
)
def test_a_new_spec_finds_its_parents_however_they_were_written(
    bench: Workbench, command: Command, extends: str
) -> None:
    bench.spec("base")
    bench.spec("other")
    bench.write("specs/child.yaml", f"name: child\nextends: {extends}\nlayer: 1\n")
    assert command("new", "specs/a/b.yaml", "--from", "child").code == 0
    done = command("show", "a/b", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["cells"] == ["a/b[seed=0]"]


@pytest.mark.parametrize("target", ["", ".", "specs", "specs/a.b", "data/train.jsonl/x.yaml", "x" * 300])
def test_new_writes_a_spec_or_says_why_not(bench: Workbench, command: Command, target: str) -> None:
    bench.spec()
    done = command("new", target, "--from", "mine")
    assert done.code in (0, 1, 2)
    assert "Traceback" not in done.err
    if target == "specs/a.b":
        assert (bench.root / "specs/a.b.yaml").is_file()


def test_show_origins_names_file_and_line_of_every_value(bench: Workbench, command: Command) -> None:
    bench.spec("_base/p")
    bench.write("specs/mine.yaml", "extends: _base/p.yaml\nsae:\n  k: 3\n")
    out = command("show", "mine", "--origins").out
    assert "sae.k: 3  (specs/mine.yaml:3)" in out
    assert "sae.width: 32  (specs/_base/p.yaml:" in out
    assert "metrics[0]: 'cross_entropy'  (specs/_base/p.yaml:" in out
    assert yaml.safe_load(command("show", "mine").out)["sae"] == {"variant": "topk", "width": 32, "k": 3}


def test_parents_are_not_run_unless_named(bench: Workbench, command: Command) -> None:
    bench.spec("_base/p")
    bench.spec("mine")
    assert [row["name"] for row in json.loads(command("list", "--json").out)] == ["mine"]
    assert "or set `name:`" in command("validate", "specs/_base/p.yaml").err


@pytest.mark.parametrize("what", ["models", "datasets", "variants", "sources", "metrics"])
def test_everything_that_can_be_named_is_listed_with_a_line_of_help(command: Command, what: str) -> None:
    rows = json.loads(command("list", what, "--json").out)
    assert rows
    assert all(row["name"] and row["help"] for row in rows)


def test_the_schema_is_valid_and_accepts_what_ships() -> None:
    from latentbench.spec.reference import json_schema

    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in SHIPPED:
        assert not list(validator.iter_errors(yaml.safe_load((REPOSITORY / path).read_text()))), path
    for wrong in ({"layers": 1}, {"seeds": 3}, {"sae": {"variant": "nothing"}}, {"metrics": ["nothing"]}):
        assert list(validator.iter_errors(wrong)), wrong


HOSTILE = "a\x1b]0;pwned\x07\x1b[2Jb\x9b31m\u202ec"


def test_escapes_of_terminals_are_inert_wherever_a_spec_is_shown(bench: Workbench, command: Command) -> None:
    bench.spec(description=HOSTILE, matrix={"dataset.train.field": [HOSTILE, "text"]}, cases=[{"label": "x"}])
    bench.write("specs/evil\x1b[31m.yaml", "a: 1\n")
    bench.spec("bad", **{HOSTILE: 1, "sae__variant": HOSTILE})
    for line in (
        "list|validate|plan|plan mine|status mine|show mine|show mine --origins|show mine --json|plan mine --json"
        f"|validate --json|plan {HOSTILE}|list {HOSTILE}"
    ).split("|"):
        arguments = line.split(" ")
        done = command(*arguments)
        shown = done.out + done.err
        assert not [c for c in shown if not c.isprintable() and c != "\n"], arguments
        if "--json" in arguments:
            json.loads(done.out)


@pytest.mark.parametrize("code", [*range(32), 0x7F, *range(0x80, 0xA0), 0x2028, 0x202E, 0x2066, 0xD800, 0x200F])
def test_printable_makes_every_control_character_visible(code: int) -> None:
    text = f"a{chr(code)}b"
    assert one_line(text) == f"a\\u{code:04x}b"
    assert printable(text) == (text if text[1] in "\n\t" else one_line(text))
    assert visible(text) == (text if text[1] == "\n" else one_line(text))


def test_exactly_what_unicode_calls_control_separator_surrogate_or_reordering_mark_is_escaped() -> None:
    marks = {"\u061c", "\u200e", "\u200f"}
    orders = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}

    def unsafe(character: str) -> bool:
        steers = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        return steers or character in marks or unicodedata.bidirectional(character) in orders

    every = [chr(code) for code in range(sys.maxunicode + 1)]
    assert one_line("".join(every)) == "".join(f"\\u{ord(c):04x}" if unsafe(c) else c for c in every)


def test_ordinary_text_of_any_language_is_left_alone() -> None:
    text = "naïve 日本語 Привет 🙂 → ≤ [bold]"
    assert one_line(text) == printable(text) == text


def test_a_problem_is_one_line() -> None:
    assert str(SpecProblem("a\nb", 1, 2, "p\r", "\x1b[1m")) == "a\\u000ab:1:2: p\\u000d: \\u001b[1m"


@pytest.mark.parametrize("text", ["x" * 5000, "a\0b", "**/[", "specs/*.yaml", "~", "["])
def test_names_that_lead_nowhere_are_invalid_input(bench: Workbench, command: Command, text: str) -> None:
    done = command("plan", text)
    assert done.code == 2
    assert "no spec matches" in done.err


def test_a_project_without_specs_says_how_to_get_one(command: Command) -> None:
    done = command("plan")
    assert done.code == 2
    assert "latentbench" in done.err


def test_a_group_of_options_is_unfolded_where_it_stands() -> None:
    seen: list[object] = []

    @with_option_groups
    def verb(name: str, *, most: int = 3, folders: FolderOptions, as_json: bool = False) -> None:
        """What it does."""
        seen.extend([name, most, folders, as_json])

    assert list(inspect.signature(verb).parameters) == ["name", "most", "results", "store", "allow", "as_json"]
    assert (verb.__name__, verb.__doc__) == ("verb", "What it does.")
    alone = typer.Typer()
    alone.command()(verb)
    alone(["a", "--store", "here", "--allow", "x", "--allow", "y", "--as-json"], standalone_mode=False)
    assert seen == ["a", 3, FolderOptions(None, Path("here"), [Path("x"), Path("y")]), True]


def test_two_groups_of_one_verb_have_no_option_in_common() -> None:
    def verb(folders: FolderOptions, others: StoreOptions) -> None: ...

    with pytest.raises(ValueError, match="duplicate parameter name: 'results'"):
        with_option_groups(verb)
