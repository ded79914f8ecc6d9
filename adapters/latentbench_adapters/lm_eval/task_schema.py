"""What a task file of the user may say: lm-eval's keys with values of known kinds, and names that lm-eval has registered.

A name that is not registered makes lm-eval look for code of that name, so only registered ones pass. They stand here as
lists, because importing lm-eval takes seconds and torch; a test holds them against the installed version. One metric is ours
(`math_metric`): whoever names it runs code of this package and no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from latentbench.core.errors import SpecProblem
from latentbench.core.spec_model import Json, SpecModel
from latentbench.core.validation_errors import problems_of, suggestion
from latentbench.core.yaml_tree import YamlNode
from latentbench_adapters.jinja_sandbox import unusable
from latentbench_adapters.lm_eval.math_metric import MATH_VERIFY

METRICS = frozenset(
    {"acc", "acc_all", "acc_bytes", "acc_mutual_info", "acc_norm", "bits_per_byte", "bleu", "brier_score", "bypass"}
    | {"byte_perplexity", "chrf", "chrf++", "exact_match", "f1", "likelihood", "mcc", "perplexity", "ter"}
    | {"word_perplexity"}
)
OWN_METRICS = frozenset({MATH_VERIFY})
"""Metrics that we register with lm-eval before a task is loaded."""
AGGREGATIONS = frozenset(
    {"bits_per_byte", "bleu", "brier_score", "bypass", "chrf", "chrf++", "f1", "matthews_corrcoef", "mean", "median"}
    | {"nanmean", "perplexity", "ter", "weighted_perplexity"}
)
OutputType = Literal["generate_until", "loglikelihood", "multiple_choice", "loglikelihood_rolling"]
Sampler = Literal["default", "first_n"]
NUMBERS: Mapping[str, frozenset[str]] = {
    "generate_until": frozenset({"exact_match", *OWN_METRICS}),
    "multiple_choice": frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"}),
    "loglikelihood": frozenset({"acc", "perplexity"}),
}
"""Metrics that give a number for one problem, by output type; the others only mean something over all problems."""
MAX_TOKENS = 1 << 20


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


def _renders(template: str) -> str:
    if wrong := unusable(template):
        raise ValueError(wrong)
    return template


def _registered(known: Iterable[str], what: str) -> AfterValidator:
    names = frozenset(known)

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(
                f"lm-eval has registered no {what} {name[:80]!r}{suggestion(name, names)}; code is not run"
            )
        return name

    return AfterValidator(check)


def _given(value: Any) -> Any:
    if value is None:
        raise ValueError("is empty; leave the key out where lm-eval's default is meant")
    return value


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "other")


def _by_kind(words: str) -> Discriminator:
    """Tells alternatives apart by the kind of the value, so that a wrong one is one problem and not one for each."""
    return Discriminator(_kind, custom_error_type="kind", custom_error_message=f"must be {words}")


T = TypeVar("T")
Set = Annotated[T | None, BeforeValidator(_given)]
"""Optional, and not to be left empty: lm-eval takes an empty value for one that was meant."""
_KINDS: Mapping[type, str] = {str: "text", int: "whole", float: "real", bool: "bool", list: "list", dict: "map"}

Word = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(max_length=20_000)]
Pattern = Annotated[str, Field(max_length=2_000), AfterValidator(_compiles)]
Patterns = Annotated[list[Pattern], Field(max_length=100)]
Template = Annotated[str, AfterValidator(_renders)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
AsText, AsList = Tag("text"), Tag("list")
Path = Annotated[str, Field(min_length=1, max_length=500)]
PathOrList = Annotated[
    Annotated[Path, AsText] | Annotated[list[Path], AsList], _by_kind("the path of a file or a list of them")
]
Files = Annotated[
    Annotated[Path, AsText] | Annotated[list[Path], AsList] | Annotated[dict[str, PathOrList], Tag("map")],
    _by_kind("the path of a file, a list of them, or a map of splits to them"),
]
Texts = Annotated[list[Text], Field(max_length=1000)]
Scalar = Annotated[
    Annotated[Text, AsText]
    | Annotated[int, Tag("whole")]
    | Annotated[float, Tag("real")]
    | Annotated[bool, Tag("bool")],
    _by_kind("text, a number, true or false"),
]
Question = Annotated[
    Annotated[Template, AsText] | Annotated[int, Tag("whole")], _by_kind("a template or a whole number")
]
Target = Annotated[
    Annotated[Template, AsText] | Annotated[int, Tag("whole")] | Annotated[list[Scalar], AsList],
    _by_kind("a template, a whole number or a list"),
]
Choices = Annotated[
    Annotated[Template, AsText] | Annotated[Texts, AsList] | Annotated[dict[str, Text], Tag("map")],
    _by_kind("a template, a list of texts, or a map to texts"),
]


class _Part(SpecModel):
    """Values are what YAML says they are: a number in quotes is text."""

    model_config = ConfigDict(strict=True)


class DatasetOptions(_Part):
    """`dataset_kwargs`."""

    data_files: Files | None = None
    revision: Annotated[str, Field(pattern=r"^[\w./-]+$", max_length=100)] | None = None
    field: Word | None = None


class MetricEntry(_Part):
    """An entry of `metric_list`."""

    metric: Annotated[str, _registered(METRICS | OWN_METRICS, "metric")]
    aggregation: Annotated[str, _registered(AGGREGATIONS, "aggregation")] | None = None
    higher_is_better: bool | None = None
    hf_evaluate: bool | None = None
    ignore_case: bool | None = None
    ignore_punctuation: bool | None = None
    ignore_numbers: bool | None = None
    regexes_to_ignore: Patterns | None = None

    @field_validator("hf_evaluate")
    @classmethod
    def _no_code(cls, asked: bool | None) -> bool | None:
        if asked:
            raise ValueError("`hf_evaluate` metrics are code from the hub and are not run")
        return asked

    @field_validator("ignore_case", "ignore_punctuation", "ignore_numbers", "regexes_to_ignore")
    @classmethod
    def _of_matching(cls, value: Any, info: ValidationInfo) -> Any:
        if info.data.get("metric", "exact_match") != "exact_match":
            raise ValueError("is an option of `exact_match` only and would be ignored")
        return value


_OPTIONS: Mapping[str, frozenset[str]] = {
    "format_span": frozenset(),
    "lowercase": frozenset(),
    "majority_vote": frozenset(),
    "map": frozenset({"mapping_dict", "default_value"}),
    "multi_choice_regex": frozenset(
        {"regex_pattern", "group_select", "fallback", "ignore_case", "ignore_punctuation", "regexes_to_ignore"}
    ),
    "regex": frozenset({"regex_pattern", "group_select", "fallback"}),
    "regex_pos": frozenset({"regex_pattern", "group_select", "fallback"}),
    "remove_whitespace": frozenset(),
    "take_first": frozenset(),
    "take_first_k": frozenset({"k"}),
    "uppercase": frozenset(),
}
FILTERS = frozenset(_OPTIONS)
"""lm-eval has one more, `custom`, which is handed a function."""


class Step(_Part):
    """A function of a filter with its options."""

    function: Annotated[str, _registered(FILTERS, "filter")]
    _set = field_validator("*", mode="before")(_given)
    regex_pattern: Pattern | None = None
    group_select: Annotated[int, Field(ge=-1000, le=1000)] | None = None
    fallback: Text | None = None
    ignore_case: bool | None = None
    ignore_punctuation: bool | None = None
    regexes_to_ignore: Patterns | None = None
    mapping_dict: dict[str, Scalar] | None = None
    default_value: Scalar | None = None
    k: Annotated[int, Field(ge=1, le=1000)] | None = None

    @field_validator("*")
    @classmethod
    def _of_function(cls, value: Any, info: ValidationInfo) -> Any:
        function = info.data.get("function")
        if function is not None and info.field_name not in _OPTIONS[function]:
            takes = ", ".join(sorted(_OPTIONS[function])) or "none"
            raise ValueError(f"is no option of the filter {function!r} (its options: {takes})")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Step:
        if self.function == "map" and self.default_value is None:
            raise ValueError("`map` needs `default_value:`, what an answer becomes that is not in mapping_dict")
        if self.function == "take_first_k" and self.k is None:
            raise ValueError("`take_first_k` needs `k:`")
        return self


class Filter(_Part):
    """An entry of `filter_list`."""

    name: Word
    filter: Annotated[list[Step], Field(min_length=1, max_length=50)]


class Generation(_Part):
    """`generation_kwargs`; what would change answers but is not supported here is refused."""

    _set = field_validator("*", mode="before")(_given)
    until: Annotated[Annotated[Text, AsText] | Annotated[Texts, AsList], _by_kind("text or a list of texts")] | None = (
        None
    )
    max_gen_toks: Tokens | None = None
    max_new_tokens: Tokens | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKENS)] | None = None
    num_beams: Literal[1] | None = None
    repetition_penalty: Annotated[float, Field(ge=1, le=1)] | None = None


class _Prompt(_Part):
    """How a question is written: for the task, and where given for its worked examples."""

    doc_to_text: Question | None = None
    doc_to_target: Target | None = None
    doc_to_choice: Choices | None = None
    gen_prefix: Template | None = None
    target_delimiter: Set[Text] = None
    fewshot_delimiter: Set[Text] = None


class Fewshot(_Prompt):
    """`fewshot_config`."""

    sampler: Set[Sampler] = None
    split: Word | None = None
    samples: Annotated[list[dict[str, Any]], Field(max_length=1000)] | None = None
    fewshot_indices: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=1000)] | None = None


class TaskFile(_Prompt):
    """A task file."""

    task: Word
    task_alias: Text | None = None
    dataset_path: Annotated[str, Field(min_length=1, max_length=200)]
    dataset_name: Word | None = None
    dataset_kwargs: DatasetOptions | None = None
    training_split: Word | None = None
    validation_split: Word | None = None
    test_split: Word | None = None
    fewshot_split: Word | None = None
    description: Template | None = None
    fewshot_config: Fewshot | None = None
    num_fewshot: Annotated[int, Field(ge=0, le=1000)] | None = None
    output_type: Set[OutputType] = None
    metric_list: Annotated[list[MetricEntry], Field(min_length=1, max_length=100)] | None = None
    generation_kwargs: Generation | None = None
    filter_list: Annotated[list[Filter], Field(min_length=1, max_length=100)] | None = None
    metadata: Json = None

    @field_validator("output_type")
    @classmethod
    def _with_answers(cls, kind: str | None) -> str | None:
        if kind == "loglikelihood_rolling":
            raise ValueError("measures perplexity: it has no problems with right answers")
        return kind

    @field_validator("metric_list")
    @classmethod
    def _scored(cls, metrics: list[MetricEntry] | None, info: ValidationInfo) -> list[MetricEntry] | None:
        kind = info.data.get("output_type") or get_args(OutputType)[0]
        if metrics and not NUMBERS[kind] & {entry.metric for entry in metrics}:
            known = ", ".join(sorted(NUMBERS[kind]))
            raise ValueError(f"none of these says whether a single answer is right; with {kind}, these do: {known}")
        return metrics

    @model_validator(mode="after")
    def _whole(self) -> TaskFile:
        if self.doc_to_text is None or self.doc_to_target is None:
            raise ValueError("a task file needs `doc_to_text:` and `doc_to_target:`, the question and its right answer")
        if self.test_split is None and self.validation_split is None:
            raise ValueError("a task file needs `test_split:` or `validation_split:`, the problems it asks")
        if self.output_type == "multiple_choice" and self.doc_to_choice is None:
            raise ValueError("`output_type: multiple_choice` needs `doc_to_choice:`, the answers to choose from")
        return self


def problems_in(tree: YamlNode) -> list[SpecProblem]:
    """All that is wrong with the keys and values of a task file, each at its place."""
    known = TaskFile.model_fields
    listed = ", ".join(sorted(known))
    problems = [
        (node.key_mark or node.mark).problem(f"{key[:80]} cannot be used here; known keys: {listed}")
        for key, node in tree.children()
        if key not in known
    ]
    try:
        TaskFile.model_validate({key: node.plain() for key, node in tree.children() if key in known})
    except ValidationError as error:
        problems += problems_of(error, tree, TaskFile)
    return problems
