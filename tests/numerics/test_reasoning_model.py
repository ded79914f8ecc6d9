"""The steered model inside of lm-eval: equal to lm-eval's own model where nothing is steered, and never mistaken for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from latentbench.core.errors import InvalidInput
from latentbench.core.hashing import seed_of
from latentbench.core.paths import Roots
from latentbench.core.protocols import LanguageModel
from latentbench.interventions.generation import Stops, StopStrings
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.intervention import Untouched
from latentbench.interventions.vectors import SteeringVectors
from latentbench.reasoning.answer_cache import AnswerCache
from latentbench.reasoning.task_suite import TaskOptions
from latentbench_adapters.lm_eval.steered_model import SeededSampling, SteeredLM
from latentbench_adapters.lm_eval.tasks import LmEvalProblems, load, quiet
from latentbench_adapters.pocket.adapter import PocketModel

pytestmark = pytest.mark.usefixtures("one_thread")

ROOTS = Roots(Path())


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return PocketModel().load(ROOTS, torch.device("cpu"))


@pytest.fixture(scope="module")
def vectors() -> SteeringVectors:
    generator = torch.Generator().manual_seed(0)
    return SteeringVectors({layer: torch.randn(128, generator=generator) for layer in (2, 4)})


@pytest.fixture(autouse=True)
def untouched(lm: LanguageModel) -> Iterator[None]:
    """Whatever a test does, the shared model is as it was."""
    yield
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


def task(lm: SteeredLM, name: str = "pocket_problems", **options: Any) -> LmEvalProblems:
    (problems,) = load(name, TaskOptions(**{"limit": 24, **options}), ROOTS, Path("unused"), lm.apply_chat_template)
    return problems


def texts(lm: SteeredLM, problems: LmEvalProblems, samples: int = 1) -> list[str]:
    return lm.generate_until([i for group in problems.groups for i in group for _ in range(samples)])


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


def evaluated(model: Any, problems: LmEvalProblems) -> Any:
    """lm-eval's own evaluation of a task."""
    from lm_eval import evaluate

    with quiet():
        return evaluate(model, {"tasks": {problems.name: problems.task}}, limit=24, bootstrap_iters=0)


def own_model(lm: LanguageModel) -> Any:
    from lm_eval.models.huggingface import HFLM

    with quiet():
        return HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=16)


# -- parity with lm-eval's own model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled_to_zero", [False, True])
def test_without_steering_the_numbers_are_lm_evals_own(
    lm: LanguageModel, vectors: SteeringVectors, scaled_to_zero: bool
) -> None:
    ours = SteeredLM(lm, VectorInjection(vectors, 0.0) if scaled_to_zero else None, batch=16)
    theirs = own_model(lm)
    results = [evaluated(model, task(ours)) for model in (ours, theirs)]
    mine, reference = (result["results"]["pocket_problems"] for result in results)
    assert mine["exact_match,last-number"] == reference["exact_match,last-number"] > 0
    said = [[sample["resps"] for sample in result["samples"]["pocket_problems"]] for result in results]
    assert said[0] == said[1]


def test_stop_strings_end_answers_where_lm_eval_ends_them(lm: LanguageModel) -> None:
    prompts = [group[0].args[0] + " To find out, go step by step." for group in task(SteeredLM(lm)).groups[:12]]
    settings = {"until": ["= ", "So the", ".\n"], "do_sample": False, "max_gen_toks": 40}
    requests = instances("generate_until", *[(prompt, settings) for prompt in prompts])
    ours, theirs = SteeredLM(lm, batch=5), own_model(lm)
    with quiet():
        assert ours.generate_until(requests) == theirs.generate_until(requests)
    answers = ours.answers(requests)
    assert not any(answer.truncated for answer in answers)
    assert all(answer.text and "= " not in answer.text for answer in answers)


def test_likelihoods_are_lm_evals_own(lm: LanguageModel) -> None:
    pairs = [
        ("Tom has 3 pens.", " Ann"),
        ("Tom has 3 pens.", " Ann has 4 apples."),
        ("", "Practice: 1 + 2 = 3."),
        ("a ", "b"),
    ]
    requests, ours, theirs = instances("loglikelihood", *pairs), SteeredLM(lm, batch=3), own_model(lm)
    with quiet():
        expected = theirs.loglikelihood(requests, disable_tqdm=True)
    found = ours.loglikelihood(requests, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    rolling = instances("loglikelihood_rolling", ("Tom has 3 pens. Ann has 4 apples.",))
    with quiet():
        assert ours.loglikelihood_rolling(rolling) == pytest.approx(theirs.loglikelihood_rolling(rolling), abs=1e-4)


# -- steering -------------------------------------------------------------------------------------------------------


def test_steered_likelihoods_are_those_of_a_bias(lm: LanguageModel, vectors: SteeringVectors) -> None:
    pairs = [("Tom has 3 pens.", " Ann has 4 apples."), ("Practice:", " 1 + 2 = 3.")]
    requests = instances("loglikelihood", *pairs)
    steered = SteeredLM(lm, VectorInjection(vectors, 0.5)).loglikelihood(requests, disable_tqdm=True)
    plain = SteeredLM(lm).loglikelihood(requests, disable_tqdm=True)
    with _biased(lm, vectors, 0.5):
        biased = SteeredLM(lm).loglikelihood(requests, disable_tqdm=True)
    assert [v for v, _ in steered] == pytest.approx([v for v, _ in biased], rel=1e-5)
    assert all(abs(a - b) > 0.1 for (a, _), (b, _) in zip(steered, plain, strict=True))


class _biased:  # noqa: N801
    """`down_proj` with a bias: what steering with vectors is, without hooks."""

    def __init__(self, lm: LanguageModel, vectors: SteeringVectors, scale: float) -> None:
        self.places: list[Any] = [
            (lm.model.model.layers[n].mlp.down_proj, scale * v) for n, v in vectors.vectors.items()
        ]

    def __enter__(self) -> None:
        for module, bias in self.places:
            module.bias = torch.nn.Parameter(bias, requires_grad=False)

    def __exit__(self, *_: Any) -> None:
        for module, _ in self.places:
            module.bias = None


def test_steered_answers_are_those_of_a_bias(lm: LanguageModel, vectors: SteeringVectors) -> None:
    steered = SteeredLM(lm, VectorInjection(vectors, 0.5), batch=8)
    problems = task(steered)
    said = texts(steered, problems)
    with _biased(lm, vectors, 0.5):
        assert texts(SteeredLM(lm, batch=8), problems) == said
    assert said != texts(SteeredLM(lm, batch=8), problems)
    assert steered.receipt.steered == steered.receipt.tokens > 0


def test_a_prefix_ends_every_prompt(lm: LanguageModel) -> None:
    lead = " To find out, go step by step."
    prefixed, plain = SteeredLM(lm, Untouched(lead), batch=8), SteeredLM(lm, batch=8)
    problems = task(plain)
    prompts = [(group[0].args[0] + lead, group[0].args[1]) for group in problems.groups]
    assert texts(prefixed, problems) == plain.generate_until(instances("generate_until", *prompts))
    scores = problems.scores([[text] for text in texts(prefixed, problems)])
    assert sum(score.correct for score in scores) > 20  # led to go step by step, the model can do it
    scored = prefixed.loglikelihood(instances("loglikelihood", ("Tom has 3 pens.", " Ann")), disable_tqdm=True)
    assert scored == plain.loglikelihood(
        instances("loglikelihood", ("Tom has 3 pens." + lead, " Ann")), disable_tqdm=True
    )


# -- answers that were kept -----------------------------------------------------------------------------------------


def test_another_scale_scope_or_model_never_gets_a_kept_answer(
    lm: LanguageModel, vectors: SteeringVectors, tmp_path: Path
) -> None:
    def steered(scale: float = 0.5, scope: Any = "all", identity: str = "pocket", **more: Any) -> SteeredLM:
        kept = AnswerCache(tmp_path / "answers")
        return SteeredLM(lm, VectorInjection(vectors, scale, scope), identity=identity, responses=kept, **more)

    problems = task(SteeredLM(lm), limit=6)
    first, again = steered(), steered()
    said = texts(first, problems)
    assert texts(again, problems) == said
    assert first.receipt.calls > 0
    assert again.receipt.calls == 0  # everything was kept
    for other in (steered(0.51), steered(scope="generated"), steered(identity="another")):
        texts(other, problems)
        assert other.receipt.calls > 0
    fresh = SteeredLM(lm, VectorInjection(vectors, 5.0))
    assert texts(steered(5.0), problems) == texts(fresh, problems) != said


def test_settings_and_samples_are_part_of_the_key(lm: LanguageModel, tmp_path: Path) -> None:
    model = SteeredLM(lm, identity="pocket", responses=AnswerCache(tmp_path / "answers"))
    prompts = [
        ("Question: Tom has 3 pens.", {"do_sample": True, "temperature": t, "max_gen_toks": 12}) for t in (1.0, 2.0)
    ]
    questions = model._questions(instances("generate_until", prompts[0], prompts[0], prompts[1]))
    assert len({question.key for question in questions}) == 3
    assert (
        len({question.key for question in SteeredLM(lm, seed=1)._questions(instances("generate_until", prompts[0]))})
        == 1
    )


def test_a_run_that_was_cut_short_gives_the_same_answers(lm: LanguageModel, tmp_path: Path) -> None:
    problems = task(SteeredLM(lm), temperature=1.0, limit=10, max_new_tokens=24)
    whole = texts(SteeredLM(lm, batch=4), problems)
    kept = AnswerCache(tmp_path / "answers")
    some = SteeredLM(lm, batch=4, identity=1, responses=kept)
    questions = some._questions([i for group in problems.groups for i in group])
    first = next(some._batches(questions))
    kept.add(dict(zip((q.key for q in first[:2]), some._generated(first)[:2], strict=True)))
    assert texts(SteeredLM(lm, batch=4, identity=1, responses=kept), problems) == whole


# -- sampling -------------------------------------------------------------------------------------------------------


def test_samples_do_not_depend_on_the_batch(lm: LanguageModel) -> None:
    problems = task(SteeredLM(lm), temperature=1.0, limit=9, max_new_tokens=24)
    wide, narrow = (texts(SteeredLM(lm, batch=size), problems, samples=3) for size in (27, 4))
    assert sum(a == b for a, b in zip(wide, narrow, strict=True)) >= 26  # padding moves the last bits
    assert len(set(wide)) > 9
    torch.manual_seed(5)
    assert texts(SteeredLM(lm, batch=27), problems, samples=3) == wide
    assert texts(SteeredLM(lm, batch=27, seed=1), problems, samples=3) != wide


def test_sampled_tokens_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0, -3.0]).repeat(20_000, 1)
    sampling = SeededSampling([seed_of(number) for number in range(20_000)], 0.7, prompt=3, steps=4)
    for step in range(2):
        drawn = sampling(torch.zeros(20_000, 3 + step, dtype=torch.long), logits).argmax(-1)
        found = torch.bincount(drawn, minlength=5) / 20_000
        expected = torch.softmax(logits[0] / 0.7, -1)
        assert (found - expected).abs().max() < 4 * (0.25 / 20_000) ** 0.5
        assert found[2] == 0


def test_extreme_uniforms_draw_possible_tokens() -> None:
    sampling = SeededSampling([0, 1], 1.0, prompt=0, steps=1)
    sampling._uniforms = torch.tensor([[0.0, 1 - 2**-53]], dtype=torch.float64)
    scores = torch.full((2, 6), -torch.inf)
    scores[:, 2], scores[:, 3] = 1.0, 0.5
    assert sampling(torch.zeros(2, 0, dtype=torch.long), scores).argmax(-1).tolist() == [2, 3]


def test_stop_strings_are_found_across_tokens_and_only_once(lm: LanguageModel) -> None:
    ids = lm.tokenizer("one two stop three stop", return_tensors="pt", add_special_tokens=False)["input_ids"]
    criterion = StopStrings(Stops(lm, ["o st"]), prompt=0, rows=1)
    ended = [bool(criterion(ids[:, : n + 1], None)[0]) for n in range(ids.shape[1])]
    cut = criterion.ended[0]
    assert cut is not None
    assert "o st" in lm.tokenizer.decode(ids[0, :cut])
    assert "o st" not in lm.tokenizer.decode(ids[0, : cut - 1])
    assert ended == [n + 1 >= cut for n in range(len(ended))]


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"do_sample": True, "temperature": 1.0, "top_p": 0.9}, "top_p"),
        ({"num_beams": 4}, "num_beams"),
        ({"custom_generate": "someone/code"}, "custom_generate"),
        ({"max_gen_toks": 512}, "no room"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(lm: LanguageModel, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        SteeredLM(lm).generate_until(instances("generate_until", ("Question:", settings)))


def test_lengths_and_truncation_are_told(lm: LanguageModel) -> None:
    model = SteeredLM(lm)
    (group,) = task(model, limit=1).groups
    prompt, settings = group[0].args
    free, short = (
        model.answers(instances("generate_until", (prompt, {**settings, "max_gen_toks": most})))[0] for most in (64, 2)
    )
    assert not free.truncated
    assert free.tokens == len(lm.tokenizer(free.text, add_special_tokens=False)["input_ids"])
    assert (short.truncated, short.tokens) == (True, 2)


def test_questions_that_do_not_fit_are_counted(lm: LanguageModel) -> None:
    model = SteeredLM(lm)
    model.answers(instances("generate_until", ("word " * 2000, {"max_gen_toks": 3}), ("word", {"max_gen_toks": 3})))
    assert model.shortened == 1


def test_the_model_keeps_its_tokenizer(lm: LanguageModel) -> None:
    before: Callable[[], Any] = lambda: (lm.tokenizer.pad_token, lm.tokenizer.padding_side)  # noqa: E731
    kept = before()
    texts(SteeredLM(lm), task(SteeredLM(lm), limit=2))
    assert before() == kept
