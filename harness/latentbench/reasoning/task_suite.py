"""What a library of tasks gives to an evaluation and is given by it.

A `TaskSuite` knows tasks without torch, loads their problems, and makes a model under an intervention answer them. The one
there is, lm-eval's, is an adapter (adapters/latentbench_adapters/lm_eval/suite.py) that is found through the entry points
`latentbench.tasks`; specs do not name it, so there is no field for it and no key that depends on its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from latentbench.core.plugins import plugin
from latentbench.core.progress import Progress
from latentbench.core.spec_model import Json

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.core.protocols import LanguageModel, PromptForm
    from latentbench.interventions.intervention import Intervention, Receipt
    from latentbench.reasoning.answer_cache import AnswerCache, TaskAnswer


def is_path(task: str) -> bool:
    """Whether a task is named by its file."""
    return task.endswith((".yaml", ".yml")) or "/" in task


@dataclass(frozen=True)
class TaskOptions:
    """What a spec may change about a task; None leaves what the task itself says."""

    limit: int | None = None
    """Problems from the first on, of each task of a group; None: all."""
    num_fewshot: int | None = None
    """Worked examples in the prompt."""
    chat_template: bool = False
    """Whether questions are put in the model's chat template."""
    system: str | None = None
    """System instruction; None: none."""
    temperature: float = 0.0
    """Temperature of sampling; 0 decodes greedily. The task's own is never used, so that rows differ in what their specs say."""
    max_new_tokens: int | None = None
    """Longest answer."""
    metric: str | None = None
    """The task's metric that says whether an answer is right."""
    filter: str | None = None
    """The task's filter that extracts the answer."""


class TaskRequest(Protocol):
    """One thing that a model is asked."""

    @property
    def args(self) -> tuple[Any, ...]:
        """What is asked; the first is the text that the model reads."""


@dataclass(frozen=True)
class AnswerScore:
    """What one answer was worth."""

    correct: float
    """By the metric that says whether an answer is right, usually 0 or 1."""
    formatted: bool
    """Whether an answer could be found in it."""
    every: dict[str, float]
    """Every metric of the task, by `metric,filter`, as lm-eval calls them."""


class TaskProblems(Protocol):
    """The problems of one task with the requests that ask them, and how answers to them are scored."""

    @property
    def name(self) -> str:
        """The task's."""

    @property
    def generative(self) -> bool:
        """Whether the model writes answers; else it says how likely given ones are, one request for each."""

    @property
    def groups(self) -> Sequence[Sequence[TaskRequest]]:
        """The requests of each problem, in the order of the documents."""

    @property
    def documents_digest(self) -> str:
        """Digest of what is asked and what the right answers are."""

    def asked(self, group: Sequence[TaskRequest]) -> tuple[str, ...]:
        """What a problem asks and its right answer, white space folded: equal for problems that are one unit."""

    def gold(self, group: Sequence[TaskRequest]) -> Any:
        """The right answer of a problem, as the task states it."""

    def scores(self, responses: Sequence[Sequence[Any]]) -> list[AnswerScore]:
        """One score per problem. `responses` holds one response for each request of each problem: the text of an answer, or
        (log-likelihood, whether greedy decoding would write it)."""


class TaskModel(Protocol):
    """A language model under an intervention that answers requests. It leaves the model as it was."""

    @property
    def receipt(self) -> Receipt:
        """What happened in everything generated or scored so far; answers from the cache leave none."""

    @property
    def remembered(self) -> int:
        """Answers that came from the cache."""

    @property
    def shortened(self) -> int:
        """Questions that did not fit into the context and were cut on the left."""

    def answers(self, requests: Sequence[TaskRequest]) -> list[TaskAnswer]:
        """A written answer to every request, in order; the n-th of equal requests gets sample n, with a seed of its own."""

    def loglikelihood(self, requests: Sequence[TaskRequest]) -> list[tuple[float, bool]]:
        """For every given answer its log-likelihood and whether greedy decoding would write it, in order."""

    def apply_chat_template(self, conversation: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text in the model's own template."""


class TaskSuite(ABC):
    """A library of tasks, known by name or by a file of the user's.

    What validating and planning need is marked: it must import neither torch nor the library.
    """

    @abstractmethod
    def suite_version(self) -> str:
        """Version of the library that is installed. Without torch; raises NotAvailable when there is none."""

    @abstractmethod
    def identity(self, task: str, roots: Roots, commits: Mapping[str, str]) -> Json:
        """What determines a task's documents, prompts and scores; `commits` states those of its hub datasets.

        Without torch. Raises InvalidInput for an unknown task, RefusedFile or NotAvailable for a file that cannot be used.
        """

    @abstractmethod
    def open_datasets(self, task: str, roots: Roots) -> list[str]:
        """Hub datasets that a task reads at no stated revision, in alphabetical order. Without torch."""

    @abstractmethod
    def longest_answer(self, task: str, roots: Roots) -> int | None:
        """New tokens that a task asks for by itself, the most of a group; None where it names no number. Without torch."""

    @abstractmethod
    def tests_on(self, task: str, problems: Json, roots: Roots) -> bool:
        """Whether a task tests on the problems of a set with the identity `problems`; what cannot be told is no. Without
        torch."""

    @abstractmethod
    def prompt_form(self, task: str, options: TaskOptions, roots: Roots) -> PromptForm | None:
        """How a task puts its questions to the model; what cannot be told, or is not one way, is None. Without torch."""

    @abstractmethod
    def load(
        self, task: str, options: TaskOptions, roots: Roots, folder: Path, chat: Callable[..., str]
    ) -> Sequence[TaskProblems]:
        """The task, or every task of a group, with its requests made.

        `folder` takes what is unpacked of local data files, `chat` is the model's `apply_chat_template`. Raises NotAvailable
        when the library or a dataset refuses.
        """

    @abstractmethod
    def steered(
        self,
        lm: LanguageModel,
        intervention: Intervention | None,
        *,
        identity: Json,
        responses: AnswerCache,
        batch: int,
        seed: int,
        progress: Progress,
    ) -> TaskModel:
        """`lm` under an intervention, or as it is under None.

        `identity` names the model in the keys of `responses`, `batch` answers are generated together, and samples are seeded
        by what is asked, their number and `seed` alone, so that every intervention is tried with the same luck.
        """


def installed_suite() -> TaskSuite:
    """The library that tasks come from. Raises NotAvailable where its adapter is not installed."""
    suite: TaskSuite = plugin("tasks", "lm_eval")()
    return suite
