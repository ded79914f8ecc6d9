"""Memory: what does not fit is run in smaller pieces with the same results, and logits are made only where they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentbench.activations import chosen_logits, fitting
from latentbench.activations.chosen_logits import logits_at, picks
from latentbench.activations.fitting import Pieces, free_bytes, out_of_memory, row_bytes, rows_that_fit
from latentbench.core.errors import CellFailed
from latentbench.core.protocols import LanguageModel
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.intervention import Layout
from latentbench.interventions.rollouts import Sampling, answers
from latentbench.interventions.vectors import SteeringVectors
from latentbench_adapters.lm_eval.steered_model import SteeredLM
from tests.support.architectures import FAST, SLOW, model_of
from tests.support.hybrids import hybrid
from tests.support.steering import LAYERS, WIDTH, language_model
from tests.support.writing import evaluated

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
PROMPTS = ["w3 w4 w5", "w9", "w10 w11", "w12 w13 w14 w15", "w30", "w31 w32", "w40 w41 w42"]
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
    ),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


# -- pieces --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("fits", [1, 3, 11])
@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_pieces_are_halved_until_they_fit(
    error: BaseException, fits: int, kind: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting.gc, "collect", lambda: None)  # a second each, beside all that other tests have made
    tried: list[int] = []

    def work(piece: Any) -> list[int]:
        tried.append(len(piece))
        if len(piece) > fits:
            raise error
        return [int(item) for item in piece]

    pieces = Pieces(16)
    assert [item for part in pieces.run(work, kind(list(range(11)))) for item in part] == list(range(11))
    assert sum(count > fits for count in tried) <= 4  # 11, 5, 2: what was learned is not forgotten
    again = len(tried)
    assert [item for part in pieces.run(work, kind(list(range(11)))) for item in part] == list(range(11))
    assert all(count <= fits for count in tried[again:])


def test_one_that_does_not_fit_is_one_sentence_and_other_errors_pass() -> None:
    def work(piece: Any) -> None:
        raise error

    error: BaseException = ERRORS[0]
    with pytest.raises(CellFailed, match=r"^memory does not suffice for one text at a time; shorten"):
        list(Pieces(4).run(work, [1, 2, 3]))
    error = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes"):
        list(Pieces(4).run(work, [1, 2, 3]))
    assert not out_of_memory(error)
    assert not out_of_memory(ValueError("out of memory"))


def test_no_more_than_planned_are_run_at_once() -> None:
    assert [len(part) for part in Pieces(4).run(lambda piece: piece, list(range(10)))] == [4, 4, 2]
    assert [len(part) for part in Pieces(4).run(lambda piece: piece, list(range(5)), planned=2)] == [2, 2, 1]
    assert list(Pieces(4).run(lambda piece: piece, [])) == []


# -- plans ---------------------------------------------------------------------------------------------------------


def test_plans_follow_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/meminfo": "MemTotal:  9000 kB\nMemAvailable:    1000 kB\nSwapFree:  5 kB\n"}
    monkeypatch.setattr(fitting, "_text", lambda path: files.get(path, ""))
    assert free_bytes(CPU) == 1_024_000
    assert rows_that_fit(1024, 10_000, CPU) == 800
    assert rows_that_fit(1024, 64, CPU) == 64
    assert rows_that_fit(1e12, 64, CPU) == 1  # whether it fits alone, only trying tells
    files |= {"/sys/fs/cgroup/memory.max": "2048000\n", "/sys/fs/cgroup/memory.current": "1536000\n"}
    assert free_bytes(CPU) == 512_000
    files["/sys/fs/cgroup/memory.stat"] = "anon 1\ninactive_file 1000\nactive_file 200\n"
    assert free_bytes(CPU) == 513_200
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert free_bytes(CPU) == 1_024_000
    files.clear()
    assert free_bytes(CPU) is None
    assert rows_that_fit(1e12, 64, CPU) == 64


def test_free_memory_of_a_gpu_counts_what_torch_holds_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert free_bytes(torch.device("cuda", 0)) == 140


def test_what_a_row_keeps_is_measured() -> None:
    config: Any = (lm := hybrid("llama")).model.config
    keys = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    need = row_bytes(lm)
    assert (need.fixed, need.token, need.logits) == (0, 4 * keys, 8 * config.vocab_size)
    assert row_bytes(hybrid("llama", torch.bfloat16)).token == 2 * keys
    assert need.writing(10, 30) == 40 * need.token + 10 * need.read + need.logits
    state = row_bytes(hybrid("mamba"))
    assert state.token == 0 < state.fixed
    assert row_bytes(hybrid("jamba")).fixed > 0 < row_bytes(hybrid("jamba")).token


# -- everything that can be halved ---------------------------------------------------------------------------------


@contextmanager
def exhausted(lm: LanguageModel, most: int, late: int = 0) -> Iterator[list[int]]:
    """While open, memory runs out in the midst of passes over more than `most` rows, from the `late`-th pass on."""
    rows: list[int] = []

    def entering(module: nn.Module, args: Any, kwargs: Any) -> None:
        rows.append(len(kwargs.get("input_ids", args[0] if args else None)))

    def inside(module: nn.Module, args: Any, kwargs: Any) -> None:
        if rows[-1] > most and len(rows) > late:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    middle = [part for part in lm.model.modules() if isinstance(part, nn.Linear)][-3]
    handles = [
        lm.model.register_forward_pre_hook(entering, with_kwargs=True),
        middle.register_forward_pre_hook(inside, with_kwargs=True),
    ]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def steering() -> VectorInjection:
    generator = torch.Generator().manual_seed(1)
    return VectorInjection(SteeringVectors({layer: torch.randn(WIDTH, generator=generator) for layer in range(LAYERS)}))


@pytest.mark.parametrize(("most", "late"), [(2, 0), (4, 3)])
def test_answers_survive_memory_that_runs_out(most: int, late: int) -> None:
    lm = language_model("llama")
    expected = answers(lm, PROMPTS, Sampling(8), samples=2)
    layout = Layout()
    with exhausted(lm, most, late), steering().applied(lm, layout):
        steered = answers(lm, PROMPTS, Sampling(8), samples=2, layout=layout)
    with steering().applied(lm, layout):
        assert steered == answers(lm, PROMPTS, Sampling(8), samples=2, layout=layout)
    with exhausted(lm, most, late) as rows:
        assert answers(lm, PROMPTS, Sampling(8), samples=2) == expected
    assert max(rows) > most


@pytest.mark.parametrize("late", [0, 3])
def test_a_second_attempt_draws_what_the_first_would_have(late: int) -> None:
    """As if the smaller batches had been asked for, whenever memory ran out."""
    lm = language_model("llama")

    def sampled(rows: int) -> tuple[Any, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return answers(
            lm, PROMPTS[:4], Sampling(8, 1.0), samples=2, generator=generator, rows=rows
        ), generator.get_state()

    expected, state = sampled(rows=4)
    with exhausted(lm, 4, late):
        found, after = sampled(rows=8)
    assert found == expected
    assert torch.equal(after, state)


def test_prompts_for_which_nothing_suffices_are_one_sentence() -> None:
    lm = language_model("llama")
    answers(lm, PROMPTS, Sampling(1))
    with exhausted(lm, 0), pytest.raises(CellFailed, match="memory does not suffice for one text at a time"):
        answers(lm, PROMPTS, Sampling(8))


@pytest.mark.parametrize(
    ("intervention", "sampling"),
    [(None, {"do_sample": True, "temperature": 1.0}), (steering(), {"do_sample": False})],
    ids=["plain", "steered"],
)
def test_evaluated_answers_survive_memory_that_runs_out(intervention: Any, sampling: dict[str, Any]) -> None:
    lm = language_model("llama")
    plain = SteeredLM(lm, intervention)
    expected = plain.answers(requests("generate_until", {"until": [], "max_gen_toks": 8, **sampling}))
    for most, late in ((1, 0), (3, 4)):
        small = SteeredLM(lm, intervention)
        with exhausted(lm, most, late) as rows:
            assert small.answers(requests("generate_until", {"until": [], "max_gen_toks": 8, **sampling})) == expected
        assert max(rows) > most
        assert (small.receipt.tokens, small.receipt.steered) == (plain.receipt.tokens, plain.receipt.steered)


@pytest.mark.parametrize("most", [1, 3])
def test_likelihoods_survive_memory_that_runs_out(most: int) -> None:
    lm = language_model("llama")
    whole, small = SteeredLM(lm, steering()), SteeredLM(lm, steering())
    expected = whole.loglikelihood(requests("loglikelihood", " w4 w8"))
    with exhausted(lm, most) as rows:
        found = small.loglikelihood(requests("loglikelihood", " w4 w8"))
    assert max(rows) > most
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-12)
    assert (small.receipt.tokens, small.receipt.steered) == (whole.receipt.tokens, whole.receipt.steered)


def test_little_memory_makes_small_batches_and_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = language_model("llama")
    expected, scored = evaluated(lm), SteeredLM(lm).loglikelihood(requests("loglikelihood", " w4"))
    written = answers(lm, PROMPTS, Sampling(8))
    monkeypatch.setattr(fitting, "_free_on_the_machine", lambda: 1)
    with exhausted(lm, 10**9) as rows:
        assert evaluated(lm) == expected
        found = SteeredLM(lm).loglikelihood(requests("loglikelihood", " w4"))
        assert answers(lm, PROMPTS, Sampling(8)) == written
    assert set(rows) == {1}
    assert [value for value, _ in found] == pytest.approx([value for value, _ in scored], rel=1e-12)


def requests(kind: str, more: Any) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, (prompt, more), number) for number, prompt in enumerate(PROMPTS)]  # type: ignore[arg-type]


# -- logits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_chosen_logits_are_those_of_all(name: str) -> None:
    model, generator = model_of(name), torch.Generator().manual_seed(0)
    ids, mask = torch.randint(3, 90, (3, 7), generator=generator), torch.rand(3, 7, generator=generator) < 0.3
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        found = logits_at(model, mask, lambda: model(input_ids=ids, use_cache=False))
        assert picks(model), name
    assert found.shape == (int(mask.sum()), whole.shape[-1])
    torch.testing.assert_close(found, whole[mask], rtol=1e-4, atol=1e-5)


def test_the_output_embedding_sees_only_what_is_asked_for() -> None:
    lm, seen = language_model("llama"), list[Any]()
    lm.model.get_output_embeddings().register_forward_hook(lambda head, args, output: seen.append(output.shape))
    SteeredLM(lm).loglikelihood(requests("loglikelihood", " w4 w8"))
    assert seen[-1] == (1, 2 * len(PROMPTS), lm.model.config.vocab_size)


def test_likelihoods_are_sums_of_log_probabilities_in_double_precision() -> None:
    lm = language_model("gpt_neox", torch.float64)
    found = SteeredLM(lm, batch=3).loglikelihood(requests("loglikelihood", " w4 w8 w60"))
    for prompt, (value, greedy) in zip(PROMPTS, found, strict=True):
        context, more = (lm.tokenizer(text)["input_ids"] for text in (prompt, " w4 w8 w60"))
        chances = lm.model(input_ids=torch.tensor([context + more])).logits[0, len(context) - 1 : -1].log_softmax(-1)
        assert value == pytest.approx(float(chances.gather(1, torch.tensor(more)[:, None]).sum()), rel=1e-6)
        assert greedy == (chances.argmax(-1).tolist() == more)


class Neighbourly(nn.Module):
    """A model around a model, whose logits depend on those of other positions: what a head before a hook cannot see."""

    def __init__(self, inner: Any, how: str) -> None:
        super().__init__()
        self.inner, self._how, self.config, self.dtype = inner, how, inner.config, inner.dtype
        self.get_input_embeddings = inner.get_input_embeddings
        self.get_output_embeddings = (lambda: None) if how == "no head" else inner.get_output_embeddings

    def forward(self, **given: Any) -> Any:
        output = self.inner(**given)
        if self._how == "centred":
            output.logits = output.logits - output.logits.mean(1, keepdim=True)
        if self._how == "strict":
            batch, length = given["input_ids"].shape
            output.logits = output.logits.view(batch, length, -1)
        return output


@pytest.mark.parametrize("how", ["centred", "strict", "no head"])
def test_a_model_that_needs_all_logits_gets_them(how: str) -> None:
    model = Neighbourly(language_model("llama").model, how)
    ids, mask = torch.arange(3, 15).view(2, 6), torch.tensor([[0, 1, 0, 0, 1, 1], [1, 0, 0, 0, 0, 1]]).bool()
    assert not picks(model)
    found = logits_at(model, mask, lambda: model(input_ids=ids, use_cache=False))
    assert torch.equal(found, model(input_ids=ids, use_cache=False).logits[mask])


def test_asking_a_model_is_in_no_receipt_and_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, asked = language_model("llama"), list[Any]()
    own = chosen_logits._agrees
    monkeypatch.setattr(chosen_logits, "_agrees", lambda model: asked.append(model) or own(model))
    first, second = SteeredLM(lm, steering()), SteeredLM(lm, steering())
    for one in (first, second):
        one.loglikelihood(requests("loglikelihood", " w4"))
    assert first.receipt == second.receipt
    assert len(asked) == 1
