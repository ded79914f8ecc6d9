"""lm-eval as the suite that reasoning tasks come from; registered as `latentbench.tasks`.

Validating and planning know tasks through here: importing it must import neither lm-eval, which takes seconds, nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentbench.core.paths import Roots
from latentbench.core.progress import Progress
from latentbench.core.spec_model import Json
from latentbench.reasoning.task_suite import TaskModel, TaskOptions, TaskProblems, TaskSuite
from latentbench_adapters.lm_eval import catalogue, tasks

if TYPE_CHECKING:
    from latentbench.core.protocols import LanguageModel, PromptForm
    from latentbench.interventions.intervention import Intervention
    from latentbench.reasoning.answer_cache import AnswerCache


class LmEvalTasks(TaskSuite):
    """The tasks of lm-eval, those of the pocket model, and task files of the user in lm-eval's format."""

    def suite_version(self) -> str:
        return catalogue.lm_eval_version()

    def identity(self, task: str, roots: Roots, commits: Mapping[str, str]) -> Json:
        return tasks.task_identity(task, roots, commits)

    def open_datasets(self, task: str, roots: Roots) -> list[str]:
        return catalogue.open_datasets(task, roots)

    def longest_answer(self, task: str, roots: Roots) -> int | None:
        return catalogue.longest_answer(task, roots)

    def tests_on(self, task: str, problems: Json, roots: Roots) -> bool:
        return catalogue.tests_on(task, problems, roots)

    def prompt_form(self, task: str, options: TaskOptions, roots: Roots) -> PromptForm | None:
        return catalogue.prompt_form(task, options, roots)

    def load(
        self, task: str, options: TaskOptions, roots: Roots, folder: Path, chat: Callable[..., str]
    ) -> Sequence[TaskProblems]:
        return tasks.load(task, options, roots, folder, chat)

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
        from latentbench_adapters.lm_eval.steered_model import SteeredLM  # imports lm-eval and torch

        return SteeredLM(
            lm,
            intervention,
            identity=identity,
            responses=responses,
            batch=batch,
            seed=seed,
            progress=progress,
        )
