"""Loading lm-eval's tasks: shipped ones by name, the user's from a checked file; and scoring answers to them.

lm-eval runs sealed and quiet: its ways to code of others are out of reach while a task is loaded and scored, and it and
`datasets`, which talk a lot, print nothing.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentbench.core.border import foreign
from latentbench.core.errors import InvalidInput, NotAvailable
from latentbench.core.hashing import digest
from latentbench.core.hub import refuse_local
from latentbench.core.paths import Roots
from latentbench.core.spec_model import Json
from latentbench.core.text import folded
from latentbench.reasoning.task_suite import AnswerScore, TaskOptions, is_path
from latentbench_adapters.lm_eval.catalogue import (
    ARITHMETIC_TASKS,
    LENGTH,
    LENGTH_ALIASES,
    lm_eval_version,
    members,
    open_datasets,
)
from latentbench_adapters.lm_eval.math_metric import register
from latentbench_adapters.lm_eval.task_file import NONE, documents_commit, read_task, task_file_identity

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task


@contextmanager
def quiet() -> Iterator[None]:
    """While open, nothing below an error is logged by lm-eval, and no progress bar or message is shown."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_LAST_RESORT = "evaluate"
"""The library that lm-eval asks for a metric it does not know: it runs a module from a folder or from the hub."""


@contextmanager
def sealed() -> Iterator[None]:
    """While open, `evaluate` cannot be imported, templates are rendered in a bounded sandbox, and nothing is printed.

    The lists of a task file's names (task_schema.py) are what refuses code; this holds where they have a hole, and for
    the tasks that ship with lm-eval: their code is installed, but they may fetch more.
    """
    from lm_eval import utils

    from latentbench_adapters.jinja_sandbox import Sandbox, task_templates

    if not isinstance(utils.env, Sandbox):  # without it a template could reach any Python object
        utils.env = task_templates()
    before = {_LAST_RESORT: sys.modules[_LAST_RESORT]} if _LAST_RESORT in sys.modules else {}
    sys.modules[_LAST_RESORT] = None  # type: ignore[assignment]  # what Python has for "not to be imported"
    try:
        with quiet():
            yield
    finally:
        del sys.modules[_LAST_RESORT]
        sys.modules.update(before)


def asked_for_code(error: BaseException) -> bool:
    """Whether an error says that `evaluate` was wanted."""
    return isinstance(error, ImportError) and error.name == _LAST_RESORT


FEWSHOT_SEED = 1234
"""lm-eval's own default."""
_PREFERRED_METRICS = ("math_verify", "exact_match", "acc")
_PREFERRED_FILTERS = ("flexible-extract",)
_ANSWER = re.compile(r"\\boxed|\$[^$]+\$")


def task_identity(task: str, roots: Roots, commits: Mapping[str, str] = NONE) -> Json:
    """What determines a task's documents, prompts and scores, known without importing lm-eval.

    `commits` states those of its hub datasets, as far as they are known (`open_datasets`).
    """
    if is_path(task):
        return {"lm_eval": lm_eval_version(), "file": task_file_identity(task, roots, commits)}
    own = {path.name: _digest(path) for path in members(task) if path.parent.name == "tasks"}
    documents = [documents_commit(hub, commits.get(hub)) for hub in open_datasets(task, roots)]
    return {"lm_eval": lm_eval_version(), "task": task, "documents": documents or _generated(task), "files": own}


def _digest(path: Path) -> str:
    """Digest of a task file of ours.

    Where its functions are imported from is no part of what is asked: keys have the name that this package had when the
    first of them were made.
    """
    return hashlib.sha256(path.read_bytes().replace(b"latentbench_adapters.", b"adapters.")).hexdigest()


def _generated(task: str) -> Json:
    """The version of what makes a task's documents where no dataset holds them."""
    from latentbench_adapters.arithmetic import questions
    from latentbench_adapters.pocket import text

    if any(path.parent == ARITHMETIC_TASKS for path in members(task)):
        return {"arithmetic": questions.VERSION}
    return {"pocket": text.VERSION}


def load(task: str, options: TaskOptions, roots: Roots, folder: Path, chat: Callable[..., str]) -> list[LmEvalProblems]:
    """The task, or every task of a group, with its requests made.

    `folder` takes what `datasets` makes of local files, `chat` writes a conversation in the model's template. Raises
    NotAvailable when lm-eval or a dataset refuses, with what it said.
    """
    with _refused(task, "cannot load"):
        return [LmEvalProblems(made, options, chat) for made in _made(task, roots, folder)]


@contextmanager
def _refused(task: str, cannot: str) -> Iterator[None]:
    """Sealed; whatever lm-eval, `datasets`, a template or a pattern raises inside becomes NotAvailable."""
    failure = f"lm-eval {cannot} the task {task!r}"
    with sealed(), foreign(failure, kind=NotAvailable):
        try:
            yield
        except Exception as error:
            if asked_for_code(error):
                raise NotAvailable(
                    f"{failure}: it wants a metric of `evaluate`, which is code from elsewhere"
                ) from error
            raise


def _made(task: str, roots: Roots, folder: Path) -> list[Task]:
    from lm_eval.tasks import TaskManager

    register()
    if is_path(task):
        config = read_task(task, roots)
        config["dataset_kwargs"]["cache_dir"] = str(folder)
        return list(TaskManager(include_defaults=False).load(config)["tasks"].values())
    for hub in open_datasets(task, roots):
        refuse_local(hub)
    # The folders of this task alone: to index all of lm-eval's 14,000 files takes seconds.
    folders = sorted({path.parent for path in members(task)})
    return list(TaskManager(include_defaults=False, include_path=folders).load(task)["tasks"].values())


class LmEvalProblems:
    """The problems of one task: documents with their requests, and how answers are scored."""

    def __init__(self, task: Any, options: TaskOptions, chat: Callable[..., str]) -> None:
        self.task = task
        self.name: str = task.task_name
        self.generative = task.OUTPUT_TYPE == "generate_until"
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            raise InvalidInput(f"{self.name} measures perplexity: it has no problems with right answers")
        self.metric = self._chosen("metric", options.metric, list(task._metric_fn_list), _PREFERRED_METRICS)
        """The metric that says whether an answer is right."""
        self.filter = self._chosen("filter", options.filter, [f.name for f in task._filters], _PREFERRED_FILTERS)
        """The filter that extracts the answer."""
        if task._metric_fn_list[self.metric] is None and task.config.process_results is None:
            raise NotAvailable(f"{self.name}: lm-eval knows no metric {self.metric!r} of its own")
        self._configure(options)
        task.build_all_requests(
            limit=options.limit,
            system_instruction=options.system,
            apply_chat_template=options.chat_template,
            chat_template=chat if options.chat_template else None,
        )

    def _configure(self, options: TaskOptions) -> None:
        if options.num_fewshot is not None:
            self.task.set_config("num_fewshot", options.num_fewshot)
        self.task.set_fewshot_seed(seed=FEWSHOT_SEED)
        if self.generative:
            generation: dict[str, Any] = {"do_sample": options.temperature > 0, "temperature": options.temperature}
            if options.max_new_tokens is not None:
                for alias in LENGTH_ALIASES:  # beside our limit it would be a second one
                    (self.task.config.generation_kwargs or {}).pop(alias, None)
                generation[LENGTH] = options.max_new_tokens
            self.task.set_config("generation_kwargs", generation, update=True)

    @cached_property
    def groups(self) -> list[list[Instance]]:
        """The requests of each problem, in the order of the documents."""
        made: dict[int, list[Instance]] = {}
        for instance in self.task.instances:
            made.setdefault(instance.doc_id, []).append(instance)
        return [sorted(group, key=lambda instance: instance.idx) for group in made.values()]

    @cached_property
    def documents_digest(self) -> str:
        """Digest of what is asked and what the right answers are."""
        asked = [[list(map(repr, group[0].args)), str(self.gold(group))] for group in self.groups]
        return digest("documents", asked)

    def asked(self, group: Sequence[Instance]) -> tuple[str, ...]:
        """What is asked and what the right answer is, white space folded."""
        texts = [arg for instance in group for arg in instance.args if isinstance(arg, str)]
        return tuple(map(folded, (*texts, str(self.gold(group)))))

    def gold(self, group: Sequence[Instance]) -> Any:
        """The right answer, as the task states it."""
        with _refused(self.name, "cannot state the answers of"):
            return self.task.doc_to_target(group[0].doc)

    def scores(self, responses: Sequence[Sequence[Any]]) -> list[AnswerScore]:
        """One score per problem. `responses` holds one response for each request of each problem."""
        for group, given in zip(self.groups, responses, strict=True):
            for instance, response in zip(group, given, strict=True):
                instance.resps, instance.filtered_resps = [response], {}
        with _refused(self.name, "cannot score answers to"):
            self.task.apply_filters()
            return [self._score(group) for group in self.groups]

    def _score(self, group: Sequence[Instance]) -> AnswerScore:
        results = {
            name: self.task.process_results(group[0].doc, [instance.filtered_resps[name] for instance in group])
            for name in group[0].filtered_resps
        }
        every = {
            f"{metric},{name}": float(value)
            for name, found in results.items()
            for metric, value in found.items()
            if isinstance(value, int | float) or hasattr(value, "__float__")
        }
        if f"{self.metric},{self.filter}" not in every:
            raise InvalidInput(
                f"{self.name} gives no number for {self.metric!r}; it gives {', '.join(every) or 'none'}"
            )
        return AnswerScore(every[f"{self.metric},{self.filter}"], self._formatted(group), every)

    def _chosen(self, kind: str, wanted: str | None, known: list[str], preferred: Sequence[str]) -> str:
        """What is asked for, else what is preferred, else the first."""
        if not known or (wanted is not None and wanted not in known):
            raise InvalidInput(f"{self.name} has no {kind} {wanted!r}; it has {', '.join(known) or 'none'}")
        return wanted or next((name for name in preferred if name in known), known[0])

    def _formatted(self, group: Sequence[Instance]) -> bool:
        """Whether the filter found an answer; where it looks for none, whether there is a formula or nothing else."""
        if not self.generative:
            return True
        if self.filter in self._fallbacks:
            return bool(group[0].filtered_resps[self.filter] != self._fallbacks[self.filter])
        answer = str(group[0].resps[0])
        alone = 0 < len(answer.split()) <= max(1, len(str(self.gold(group)).split()))
        return alone or _ANSWER.search(answer) is not None

    @cached_property
    def _fallbacks(self) -> dict[str, Any]:
        """Filter to what it gives where it finds no answer, of filters that look for one."""
        return {
            ensemble.name: step.fallback
            for ensemble in self.task._filters
            for step in (make() for make in ensemble.filters)
            if hasattr(step, "fallback")
        }
