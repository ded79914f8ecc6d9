"""Every change of hidden states against hooks that know nothing else, without a cache and without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from latentbench.activations.blocks import decoder_blocks
from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.interventions.ablation import Ablation, orthonormal
from latentbench.interventions.cached_steps import cached_steps
from latentbench.interventions.changes import Use
from latentbench.interventions.generation import left_padded
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.intervention import Intervention, Layout, Stack
from latentbench.interventions.places import Places
from latentbench.interventions.vectors import SteeringVectors
from tests.support.steering import CONFIGS, LAYERS, WIDTH, language_model

pytestmark = pytest.mark.usefixtures("one_thread")

NEW = 6
PROMPTS = [[0, 5, 9, 30, 7], [0, 8], [0, 50, 51]]
Plain = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, hidden states [1, T, d], positions [T]) → what is left."""


def drawn(rows: int, seed: int = 1) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(rows, WIDTH, generator=generator) for layer in range(LAYERS)}


VECTORS = SteeringVectors({layer: rows[0] for layer, rows in drawn(1).items()})
BASES = {layer: orthonormal(rows) for layer, rows in drawn(2, seed=2).items()}


def projected(basis: Tensor, hidden: Tensor) -> Tensor:
    """The part of [..., d] in the span of rows [k, d], by least squares in float64."""
    rows = basis.double()
    return (hidden.double() @ torch.linalg.pinv(rows)) @ rows


def by_hand(lm: LanguageModel, ids: list[int], change: Plain) -> Tensor:
    """Logits [T, vocabulary] of one text alone, uncached, with plain hooks."""
    order = torch.arange(len(ids))
    handles = [
        block.register_forward_hook(
            lambda module, args, output, layer=layer: (
                (change(layer, output[0], order).to(output[0]), *output[1:])
                if isinstance(output, tuple)
                else change(layer, output, order).to(output)
            )
        )
        for layer, block in enumerate(decoder_blocks(lm.model))
    ]
    logits: Tensor = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    return logits


def written(lm: LanguageModel, intervention: Intervention, cached: bool) -> tuple[list[list[int]], list[Tensor]]:
    """Greedy texts behind left-padded prompts, and the logits [NEW, vocabulary] that they were drawn from."""
    ids, mask = left_padded(PROMPTS, 1, torch.device("cpu"))
    model: Any = lm.model
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW, "use_cache": cached}
    with intervention.applied(lm):
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            pad_token_id=1,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
    texts = [prompt + row[ids.shape[1] :].tolist() for prompt, row in zip(PROMPTS, made.sequences, strict=True)]
    return texts, list(torch.stack(made.logits, 1))


def agreed(
    lm: LanguageModel, intervention: Intervention, change: Callable[[list[int], int], Plain], error: float
) -> Iterator[tuple[list[int], list[int], Tensor]]:
    """Prompt, text and the logits of plain hooks for every row, written with a cache and without, once they agree."""
    for cached in (True, False):
        for prompt, text, logits in zip(PROMPTS, *written(lm, intervention, cached), strict=True):
            expected = by_hand(lm, text[:-1], change(text, len(prompt)))
            assert (logits - expected[len(prompt) - 1 :]).abs().max() < error
            yield prompt, text, expected


def agree(
    lm: LanguageModel, intervention: Intervention, change: Callable[[list[int], int], Plain], error: float
) -> None:
    """Cached and uncached generation, and teacher forcing, say what plain hooks say; `change` is told text and prompt."""
    for prompt, text, expected in agreed(lm, intervention, change, error):
        with intervention.applied(lm, Layout(prompt_lengths=torch.tensor([len(prompt)]))):
            forced = lm.model(input_ids=torch.tensor([text[:-1]])).logits[0]
        assert (forced - expected).abs().max() < error
        assert (lm.model(input_ids=torch.tensor([text[:-1]])).logits[0] - expected).abs().max() > 100 * error


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_subspace_is_projected_out_on_every_architecture(name: str, scale: float) -> None:
    lm = language_model(name, torch.float32)

    def change(layer: int, hidden: Tensor, order: Tensor) -> Tensor:
        return hidden - scale * projected(BASES[layer], hidden)

    agree(lm, Ablation(BASES, scale), lambda text, prompt: change, 2e-4)


def test_nothing_is_left_along_what_was_projected_out_and_padding_keeps_every_bit() -> None:
    lm, seen = language_model("llama", torch.bfloat16), list[Tensor]()
    ids, mask = left_padded(PROMPTS, 1, torch.device("cpu"))
    with Ablation({1: BASES[1]}).applied(lm) as receipt:
        handle = decoder_blocks(lm.model)[1].register_forward_hook(lambda module, args, output: seen.append(output))
        lm.model(input_ids=ids, attention_mask=mask)
        handle.remove()
    plain: list[Tensor] = []
    handle = decoder_blocks(lm.model)[1].register_forward_hook(lambda module, args, output: plain.append(output))
    lm.model(input_ids=ids, attention_mask=mask)
    handle.remove()
    left, hidden, real = seen[0], plain[0], mask.bool()
    assert torch.equal(left[~real], hidden[~real])
    along = projected(BASES[1], left[real]).norm(dim=-1) / hidden[real].double().norm(dim=-1)
    assert along.max() < 2**-8  # what rounding to bfloat16 puts back
    assert (projected(BASES[1], hidden[real]).norm(dim=-1) / hidden[real].double().norm(dim=-1)).min() > 2**-5
    ratios = (left - hidden)[real].double().norm(dim=-1) / hidden[real].double().norm(dim=-1)
    assert (receipt.steered, receipt.calls) == (int(real.sum()), 1)
    assert receipt.relative_size == pytest.approx(float(ratios.mean()), rel=1e-4)


def test_the_span_is_what_counts_and_not_how_it_is_given() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(2, WIDTH, generator=generator)
    given = torch.stack([rows[0], 1e-4 * rows[1], rows[0] - 3 * rows[1], torch.zeros(WIDTH)])
    basis, hidden = orthonormal(given), torch.randn(5, WIDTH, generator=generator)
    assert basis.shape == (2, WIDTH)
    torch.testing.assert_close(projected(basis, hidden), projected(rows, hidden), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(basis @ basis.T, torch.eye(2))
    with pytest.raises(InvalidInput, match="no direction"):
        orthonormal(torch.zeros(2, WIDTH))


def strengths(places: Places, scope: str, text: list[int], prompt: int, marker: int | None = None) -> Tensor:
    """[T] what the definition says, token by token; `marker` is the id of a one-token text."""
    start = prompt - 1 if scope == "generated" else 0
    if marker is not None:
        looked = range(prompt if scope == "generated" else 0, len(text))
        start = max(start, next((place for place in looked if text[place] == marker), len(text)))
    found = []
    for place in range(len(text)):
        inside = {"all": True, "generated": place >= prompt - 1, "prompt": place < prompt - 1}[scope]
        number = place - start
        chosen = inside and number >= 0
        chosen = chosen and (places.first is None or number < places.first)
        chosen = chosen and (places.listed is None or number in places.listed)
        found.append(max(0.0, 1 - number / places.decay) if chosen and places.decay else float(chosen))
    return torch.tensor(found)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("scope", ["all", "generated", "prompt"])
@pytest.mark.parametrize(
    "places", [Places(first=2), Places(listed=(0, 3)), Places(decay=4), Places(first=3, decay=9)], ids=str
)
def test_tokens_by_number_are_those_counted_by_hand(name: str, scope: Any, places: Places) -> None:
    lm = language_model(name, torch.float32)

    def change(text: list[int], prompt: int) -> Plain:
        weights = strengths(places, scope, text[:-1], prompt)
        return lambda layer, hidden, order: hidden + weights[order][:, None] * VECTORS.vectors[layer]

    assert any(strengths(places, scope, [*row, 0], len(row)).any() for row in PROMPTS)
    agree_where_changed(lm, VectorInjection(VECTORS, scope=scope, use=Use(places)), change, 2e-4)


def agree_where_changed(
    lm: LanguageModel, intervention: Intervention, change: Callable[[list[int], int], Plain], error: float
) -> None:
    """As `agree`, for what may change nothing in some row."""
    for _ in agreed(lm, intervention, change, error):
        pass


@pytest.mark.parametrize("scope", ["all", "generated"])
def test_what_follows_a_text_is_found_with_a_cache_as_without(scope: Any) -> None:
    """The text is one that the model writes, and one that stands in a prompt; rows without it are left alone."""
    lm = language_model("gpt_neox", torch.float32)
    plain, untouched = written(lm, Stack([]), True)
    for marker in (plain[0][len(PROMPTS[0]) + 1], PROMPTS[0][2]):
        places = Places(after=f"w{marker}", decay=5)

        def change(text: list[int], prompt: int, marker: int = marker, places: Places = places) -> Plain:
            weights = strengths(places, scope, text[:-1], prompt, marker)
            return lambda layer, hidden, order: hidden + weights[order][:, None] * VECTORS.vectors[layer]

        use = VectorInjection(VECTORS, 3.0, scope=scope, use=Use(places))
        agree_where_changed(lm, use, lambda text, prompt, c=change: tripled(c(text, prompt)), 5e-4)
        _, logits = written(lm, use, True)
        # In a prompt it is no generated token, so that the scope `generated` does not find it there.
        found = scope == "all" or marker == plain[0][len(PROMPTS[0]) + 1]
        assert torch.equal(logits[0], untouched[0]) != found


def tripled(change: Plain) -> Plain:
    return lambda layer, hidden, order: hidden + 3 * (change(layer, hidden, order) - hidden)


def test_our_own_steps_find_texts_too_when_rows_are_dropped() -> None:
    """Each prompt is read once for two samples; the text stands in the first prompt, and in what three rows go on to write."""
    lm, marker, steps = language_model("gpt_neox", torch.float32), 40, 8
    prompts = [[0, 5, marker, 30, 7], [0, 8], [0, 50, 51]]
    forced = torch.randint(60, 110, (6, steps), generator=torch.Generator().manual_seed(7))
    forced[2, 1], forced[4, 5], forced[5, 2] = marker, marker, marker
    logits: dict[int, list[Tensor]] = {row: [] for row in range(6)}

    def draw(given: Tensor, rows: Sequence[int]) -> Tensor:
        for row, own in zip(rows, given, strict=True):
            logits[row].append(own)
        return forced[list(rows), len(logits[rows[-1]]) - 1][:, None]

    places, layout, over = Places(after=f"w{marker}", decay=6), Layout(), [False] * 6
    with VectorInjection(VECTORS, use=Use(places)).applied(lm, layout) as receipt:
        for number, _ in enumerate(cached_steps(lm, prompts, draw, over, most=steps, samples=2, layout=layout)):
            over[0] = over[3] = number >= 2
    assert [len(found) for found in logits.values()] == [3, steps, steps, 3, steps, steps]
    steered = 0.0
    for row, found in logits.items():
        prompt = prompts[row // 2]
        text = [*prompt, *forced[row, : len(found) - 1].tolist()]
        weights = strengths(places, "all", text, len(prompt), marker)
        steered += float((weights > 0).sum())
        expected = by_hand(
            lm, text, lambda layer, hidden, order, w=weights: hidden + w[:, None] * VECTORS.vectors[layer]
        )
        assert (torch.stack(found) - expected[len(prompt) - 1 :]).abs().max() < 2e-4
    shared = float((strengths(places, "all", prompts[0], 5, marker) > 0).sum())  # read once for two rows
    assert receipt.steered == LAYERS * (steered - shared)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_kept_length_only_turns(name: str) -> None:
    lm, half = language_model(name, torch.float32), language_model(name, torch.bfloat16)

    def change(layer: int, hidden: Tensor, order: Tensor) -> Tensor:
        left = hidden.double() + 2.0 * VECTORS.vectors[layer].double()
        return left * hidden.double().norm(dim=-1, keepdim=True) / left.norm(dim=-1, keepdim=True)

    turning = VectorInjection(VECTORS, 2.0, use=Use(keeps_length=True))
    agree(lm, turning, lambda text, prompt: change, 2e-4)
    seen: list[Tensor] = []
    ids = torch.tensor(PROMPTS[:1])
    with VectorInjection(VECTORS.only(1), 2.0, use=Use(keeps_length=True)).applied(half):
        handle = decoder_blocks(half.model)[1].register_forward_hook(lambda module, args, output: seen.append(output))
        half.model(input_ids=ids)
        handle.remove()
    handle = decoder_blocks(half.model)[1].register_forward_hook(lambda module, args, output: seen.append(output))
    half.model(input_ids=ids)
    handle.remove()
    after, before = ((one[0] if isinstance(one, tuple) else one).double().norm(dim=-1) for one in seen)
    assert ((after - before).abs() / before).max() < 2**-8
    assert not torch.equal(*(one[0] if isinstance(one, tuple) else one for one in seen))


def test_a_stack_takes_turns() -> None:
    """Adding and then projecting out leaves nothing along the direction; the other way round the vector stays."""
    lm = language_model("llama", torch.float32)
    basis = {1: orthonormal(VECTORS.vectors[1][None])}
    parts: Mapping[str, list[Intervention]] = {
        "added first": [VectorInjection(VECTORS.only(1), 3.0), Ablation(basis)],
        "projected first": [Ablation(basis), VectorInjection(VECTORS.only(1), 3.0)],
    }
    along = {}
    for name, turns in parts.items():
        seen: list[Tensor] = []
        with Stack(turns).applied(lm) as receipt:
            handle = decoder_blocks(lm.model)[1].register_forward_hook(
                lambda m, a, output, seen=seen: seen.append(output)
            )
            lm.model(input_ids=torch.tensor(PROMPTS[:1]))
            handle.remove()
        along[name] = seen[0][0] @ basis[1][0]
        assert (receipt.passes, receipt.calls) == (1, 2)
    length = 3 * float(VECTORS.vectors[1].norm())
    torch.testing.assert_close(along["added first"], torch.zeros(len(PROMPTS[0])), atol=1e-4, rtol=0)
    torch.testing.assert_close(along["projected first"], torch.full((len(PROMPTS[0]),), length), atol=1e-4, rtol=1e-5)


def test_ids_that_are_not_known_are_asked_for() -> None:
    lm = language_model("llama", torch.float32)
    use = VectorInjection(VECTORS, use=Use(Places(after="w9")))
    embedded = lm.model.get_input_embeddings()(torch.tensor(PROMPTS[:1]))  # type: ignore[operator]
    with pytest.raises(InvalidInput, match="token ids"), use.applied(lm):
        lm.model(inputs_embeds=embedded)
