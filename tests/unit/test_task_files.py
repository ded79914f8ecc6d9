"""Every value of a task file is checked where it stands, and every name is one that the installed lm-eval has registered."""

from __future__ import annotations

import gzip
import inspect
import io
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from latentbench.core.errors import NotAvailable
from latentbench.core.paths import Roots
from latentbench_adapters.lm_eval import math_metric, task_schema
from latentbench_adapters.lm_eval.task_file import RefusedTask, read_task
from tests.conftest import Command
from tests.support.hostile_tasks import SOUND, lay_traps, sound_text
from tests.support.project import Workbench

CASES = Path(__file__).parents[3] / "shared/cases/tasks"


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return lay_traps(tmp_path / "project", tmp_path / "outside", tmp_path / "canary")


def problems(roots: Roots, text: str) -> list[str]:
    """What is said of a task file, one by one."""
    (roots.project / "t.yaml").write_text(text)
    with pytest.raises(RefusedTask) as caught:
        read_task("t.yaml", roots)
    return list(map(str, caught.value.problems))


def accepted(roots: Roots, **changes: Any) -> dict[str, Any]:
    (roots.project / "t.yaml").write_text(sound_text(SOUND[0], **changes))
    return read_task("t.yaml", roots)


# -- names -----------------------------------------------------------------------------------------------------------


def test_the_names_are_those_of_the_installed_lm_eval() -> None:
    import lm_eval.filters  # noqa: F401
    from lm_eval.api import metrics, registry, samplers, task  # noqa: F401

    # Ours is registered when the first task of the process is loaded; lm-eval must have none of its own by that name.
    ours = {name for name in task_schema.OWN_METRICS if name in registry.metric_registry}
    assert {registry.metric_registry[name].__module__ for name in ours} <= {math_metric.__name__}
    assert set(registry.metric_registry) - ours == task_schema.METRICS
    assert set(registry.aggregation_registry) == task_schema.AGGREGATIONS
    assert set(registry.filter_registry) == task_schema.FILTERS | {"custom"}
    assert set(samplers.SAMPLER_REGISTRY) == set(get_args(task_schema.Sampler))
    assert set(task.ALL_OUTPUT_TYPES) == set(get_args(task_schema.OutputType))


def test_the_options_of_filters_are_those_of_the_installed_lm_eval() -> None:
    import lm_eval.filters  # noqa: F401
    from lm_eval.api import registry

    for name, options in task_schema._OPTIONS.items():
        taken = inspect.signature(registry.filter_registry.get(name).__init__).parameters
        assert set(taken) - {"self", "kwargs"} == options - {"k"}, name


def test_the_keys_are_some_of_lm_evals() -> None:
    from lm_eval.config.task import FewshotConfig, TaskConfig

    assert set(task_schema.TaskFile.model_fields) < set(TaskConfig.__dataclass_fields__)
    assert set(task_schema.Fewshot.model_fields) < set(FewshotConfig.__dataclass_fields__)


def test_the_metrics_that_say_whether_an_answer_is_right_do(roots: Roots) -> None:
    from tests.unit.test_hostile_tasks import Trap

    trap = Trap(roots, roots.project, roots.project / "canary")
    for task, right in zip(SOUND, ("exact_match", "acc_mutual_info", "perplexity"), strict=True):
        assert right in task_schema.NUMBERS[task["output_type"]]
        for metric in task_schema.NUMBERS[task["output_type"]]:
            assert trap.outcome(sound_text(task, metric_list=[{"metric": metric}])) == "scored", metric


# -- values ----------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[int, str, str]] = {
    "a metric that is a folder": (
        0,
        "metric_list: [{metric: ./evil}]",
        r"metric_list\[0\]\.metric: .*no metric './evil'",
    ),
    "an aggregation": (0, "metric_list: [{metric: exact_match, aggregation: f}]", r"aggregation: .*no aggregation 'f'"),
    "a metric of the hub": (
        0,
        "metric_list: [{metric: exact_match, hf_evaluate: true}]",
        "hf_evaluate: .*code from the hub",
    ),
    "a typing error": (0, "metric_list: [{metric: exact_mach}]", r"did you mean 'exact_match'\?"),
    "an option of another metric": (0, "metric_list: [{metric: bleu, ignore_case: true}]", "ignore_case: .*only"),
    "no number": (0, "metric_list: [{metric: acc}]", "metric_list: none of these says .*: exact_match"),
    "a function as a filter": (0, "filter_list: [{name: a, filter: [{function: custom}]}]", "no filter 'custom'"),
    "an option of another filter": (
        0,
        "filter_list: [{name: a, filter: [{function: take_first, k: 3}]}]",
        r"filter_list\[0\]\.filter\[0\]\.k: is no option of the filter 'take_first'",
    ),
    "a bad pattern": (
        0,
        "filter_list: [{name: a, filter: [{function: regex, regex_pattern: '('}]}]",
        "regex_pattern: not a regular expression",
    ),
    "a bad pattern to ignore": (
        0,
        "metric_list: [{metric: exact_match, regexes_to_ignore: ['[']}]",
        r"regexes_to_ignore\[0\]: not a regular expression",
    ),
    "a sampler": (0, "fewshot_config: {sampler: mine}", "fewshot_config.sampler: must be 'default' or 'first_n'"),
    "a function for examples": (0, "fewshot_config: {process_docs: f}", "fewshot_config.process_docs: unknown key"),
    "an output type": (0, "output_type: mine", "output_type: must be"),
    "perplexity": (0, "output_type: loglikelihood_rolling", "output_type: measures perplexity"),
    "a number in quotes": (0, "num_fewshot: '5'", "num_fewshot: must be a whole number, not '5'"),
    "too large a number": (0, "num_fewshot: 5000", "num_fewshot: .*less than or equal to 1000"),
    "a number beyond all bounds": (0, "num_fewshot: 1" + "0" * 40, "num_fewshot: whole numbers have at most 64 bits"),
    "a split": (0, "test_split: [test]", "test_split: must be text"),
    "a split that is not there": (0, "test_split: tset", r"test_split: .*no split 'tset' .*known: test"),
    "examples that are not there": (0, "fewshot_config: {split: train}", r"fewshot_config\.split: .*no split 'train'"),
    "no string to stop at": (0, "generation_kwargs: {until: [1]}", r"generation_kwargs\.until\[0\]: must be text"),
    "endless answers": (0, "generation_kwargs: {max_gen_toks: 1000000000}", "max_gen_toks: .*less than or equal"),
    "an unknown setting": (0, "generation_kwargs: {penalty: 1}", "generation_kwargs.penalty: unknown key 'penalty'"),
    "an empty pattern": (0, "filter_list: [{name: a, filter: [{function: regex, regex_pattern: null}]}]", "is empty"),
    "an empty setting": (0, "generation_kwargs: {temperature: null}", r"generation_kwargs\.temperature: is empty"),
    "an empty delimiter": (0, "target_delimiter:", "target_delimiter: is empty"),
    "no value for the others": (
        0,
        "filter_list: [{name: a, filter: [{function: map, mapping_dict: {a: b}}]}]",
        r"filter_list\[0\]\.filter\[0\]: `map` needs `default_value:`",
    ),
    "beams": (0, "generation_kwargs: {num_beams: 4}", "num_beams: must be 1, not 4"),
    "a hot temperature": (0, "generation_kwargs: {temperature: hot}", "temperature: must be a number, not 'hot'"),
    "a template that is none": (
        0,
        "doc_to_text: '{{ q'",
        "doc_to_text: not a Jinja template: .*line 1 of the template",
    ),
    "an unknown filter of Jinja": (0, "doc_to_target: '{{ q | f }}'", "doc_to_target: .*No filter named 'f'"),
    "a template without end": (
        0,
        "description: '" + "x" * 200_000 + "'",
        "description: a template of 200,000 characters",
    ),
    "a template in examples": (
        0,
        "fewshot_config: {doc_to_text: '{% x %}'}",
        r"fewshot_config\.doc_to_text: not a Jinja",
    ),
    "a list for a question": (0, "doc_to_text: [1]", "doc_to_text: must be a template or a whole number$"),
    "no choices": (2, "output_type: multiple_choice", "needs `doc_to_choice:`"),
    "a list as a name": (0, "task: [a]", "task: must be text"),
    "code": (0, "process_results: utils.f", "process_results cannot be used here"),
    "unsafe code": (0, "unsafe_code: true", "unsafe_code cannot be used here"),
    "a function": (
        0,
        "doc_to_text: !function utils.f",
        "tag '!function' is not supported; task files are plain data, not code",
    ),
    "a local folder as a dataset": (0, "dataset_path: data/evil", "data_files. goes with"),
    "a pattern of files": (0, "dataset_kwargs: {data_files: {test: 'data/*.jsonl'}}", "one by one"),
    "an archive by address": (0, "dataset_kwargs: {data_files: {test: 'zip://a.jsonl::x.zip'}}", "one by one"),
    "two documents": (0, "--- {}", "not YAML"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_one_problem_at_its_line(roots: Roots, case: str) -> None:
    number, line, said = WRONG[case]
    key = line.partition(":")[0]
    rest = {name: value for name, value in SOUND[number].items() if name != key}
    text = f"{yaml.safe_dump(rest, sort_keys=False)}{line}\n"
    (found,) = problems(roots, text)
    assert re.search(said, found), found
    where = text.count("\n")
    assert found.startswith((f"t.yaml:{where}:", "t.yaml:1:1: a task file", "t.yaml:1:1: `output_type"))


def test_all_problems_are_said_at_once(roots: Roots) -> None:
    found = problems(roots, sound_text(SOUND[0], num_fewshot="x", metric_list=[{"metric": "./evil"}], use_prompt="y"))
    assert len(found) == 3
    assert all(problem.startswith("t.yaml:") for problem in found)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_fewshot": 0},
        {"doc_to_target": 1},
        {"doc_to_target": ["a", "b"]},
        {"generation_kwargs": {"until": "\n", "max_new_tokens": 3, "temperature": 1, "do_sample": True}},
        {"generation_kwargs": {"until": [], "top_p": 1.0, "num_beams": 1, "repetition_penalty": 1.0}},
        {"metric_list": None, "filter_list": None},
        {"fewshot_config": {"samples": [{"q": "1", "a": "2"}], "sampler": "first_n"}, "fewshot_split": None},
        {"metadata": {"version": 1.0, "note": ["anything"]}},
        {"dataset_kwargs": {"data_files": "data/rows.jsonl"}, "test_split": "train", "fewshot_split": "train"},
        {"dataset_path": "owner/name", "dataset_kwargs": {"revision": "main"}},
    ],
)
def test_what_lm_eval_can_use_passes_as_it_is(roots: Roots, changes: dict[str, Any]) -> None:
    found = accepted(roots, **changes)
    assert {key: found[key] for key in changes if key != "dataset_kwargs"} == {
        key: value for key, value in changes.items() if key != "dataset_kwargs"
    }


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the task files of the cases")
@pytest.mark.parametrize("name", ["choice.yaml", "words.yaml"])
def test_known_task_files_stay_valid(roots: Roots, name: str) -> None:
    text = (CASES / name).read_text()
    (roots.project / "data/mc.jsonl").write_text('{"q": "a", "gold": 0, "choices": ["x", "y"], "ans": "x"}\n')
    (roots.project / name).write_text(text)
    read = read_task(name, roots)
    assert {**read, "dataset_kwargs": None} == {**yaml.safe_load(text), "dataset_kwargs": None}


def test_the_projects_own_task_files_hold_only_what_is_known() -> None:
    from latentbench_adapters.lm_eval.catalogue import OWN_TASKS, find_task

    code = {"custom_dataset", "include", "process_docs", "process_results"}
    paths = [path for folder in OWN_TASKS for path in folder.glob("*.yaml")]
    assert len(paths) >= 6
    for path in paths:
        text = path.read_text().replace("!function ", "")  # they ship with the project, so they may name its code
        said = yaml.safe_load(text)
        if "group" in said:  # it only names tasks
            assert said.keys() == {"group", "task", "metadata"}
            assert all(find_task(task).parent == path.parent for task in said["task"])
        else:
            assert set(said) - code <= set(task_schema.TaskFile.model_fields)


# -- documents -------------------------------------------------------------------------------------------------------


def test_archives_are_not_unpacked(roots: Roots) -> None:
    """`datasets` would: it looks at the first bytes of a file, not at its name."""
    row = b'{"q": "1", "a": "1"}\n'
    tar, zipped = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        member = tarfile.TarInfo("x.jsonl")
        member.size = len(row)
        archive.addfile(member, io.BytesIO(row))
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("x.jsonl", row)
    packed = {
        "gz": gzip.compress(row),
        "tar": tar.getvalue(),
        "zip": zipped.getvalue(),
        "both": row + zipped.getvalue(),
    }
    for name, content in packed.items():
        (roots.project / f"data/{name}.jsonl").write_bytes(content)
        files = {"data_files": {"test": f"data/{name}.jsonl"}}
        (found,) = problems(roots, sound_text(SOUND[0], dataset_kwargs=files))
        assert "archives are not unpacked" in found, name


def test_tables_are_read_as_tables(roots: Roots) -> None:
    files = {"data_files": {"test": "data/rows.jsonl"}}
    (found,) = problems(roots, sound_text(SOUND[0], dataset_path="parquet", dataset_kwargs=files))
    assert "is no Parquet file" in found


def test_a_missing_data_file_is_named_at_its_place(roots: Roots) -> None:
    with pytest.raises(
        NotAvailable, match=r"t\.yaml:\d+:\d+: dataset_kwargs\.data_files: there is no data file 'data/x'"
    ):
        accepted(roots, dataset_kwargs={"data_files": {"test": "data/x"}})


def test_a_hub_dataset_is_no_folder_here(roots: Roots) -> None:
    (found,) = problems(roots, sound_text(SOUND[0], dataset_path="data/evil", dataset_kwargs=None))
    assert "dataset_path: 'data/evil' is the id of a repository on the hub, but also" in found


# -- validate --------------------------------------------------------------------------------------------------------


def test_validate_says_where_in_the_task_file(bench: Workbench, command: Command, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bench.write("evil/evil.py", f"open({str(canary)!r}, 'w')\n")
    bench.write("data/rows.jsonl", '{"q": "1", "a": "1"}\n')
    bench.write("evil.yaml", sound_text(SOUND[0], num_fewshot="x", metric_list=[{"metric": "./evil"}]))
    spec = {
        "model": {"adapter": "pocket"},
        "steering": {"method": "none"},
        "metrics": [{"reasoning_accuracy": {"task": "evil.yaml"}}],
    }
    bench.write("specs/mine.yaml", yaml.safe_dump(spec))
    for verb in ("validate", "run"):
        done = command(verb, "mine")
        assert done.code == 2
        assert "evil.yaml:24:11: metric_list[0].metric: lm-eval has registered no metric './evil'" in done.err
        assert "num_fewshot: must be a whole number" in done.err
        assert verb == "run" or "specs/mine.yaml:" in done.err
        assert "Traceback" not in done.err
    assert not canary.exists()


def test_reading_a_task_file_imports_neither_lm_eval_nor_torch(roots: Roots) -> None:
    (roots.project / "t.yaml").write_text(sound_text(SOUND[0]))
    code = (
        "import sys; from pathlib import Path; from latentbench.core.protocols import Roots\n"
        "from latentbench_adapters.lm_eval.tasks import task_identity; task_identity('t.yaml', Roots(Path('.').resolve()))\n"
        "print(sorted({'torch', 'lm_eval', 'numpy', 'datasets', 'transformers', 'evaluate'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=roots.project)
    assert done.stdout.strip() == "[]", done.stderr
