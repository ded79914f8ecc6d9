"""A pass goes on: one SAE that raises costs itself, nothing is computed twice, and what was measured survives storage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentbench.activations import batching
from latentbench.core.errors import InvalidInput
from latentbench.core.progress import Count
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.metrics.base import SHARED
from latentbench.reconstruction.shared_pass import MeasurementRequest, measure
from latentbench.reconstruction.statistics import Baseline, Measurement
from latentbench.sae.autoencoder import Codes
from tests.support.passes import (
    LAST,
    LM,
    MIDDLE,
    TOKENIZER,
    TOKENS,
    VOCABULARY,
    BrokenSAE,
    Identity,
    ToySAE,
    flat,
    language_model,
    requests,
)


def test_an_sae_that_raises_is_dropped_and_the_others_are_untouched() -> None:
    class WrongShape(ToySAE):
        def decode(self, codes: Codes) -> Tensor:
            return super().decode(codes)[:, :1]  # would broadcast silently

    broken = [
        MeasurementRequest("broken", BrokenSAE(), MIDDLE, splice=True),
        MeasurementRequest("narrow", WrongShape(), LAST),
    ]
    results = measure(LM, TOKENS, [broken[0], *requests(), broken[1]], forward_tokens=40)
    assert {name: type(error) for name, error in results.failures.items()} == {
        "broken": ArithmeticError, "narrow": ValueError
    }  # fmt: skip
    assert "in decode" in results.failures["broken"].__notes__[0]
    assert {m.name for m in results.measurements} == {"a", "b", "c", "d"}
    healthy, expected = flat(results), flat(measure(LM, TOKENS, requests(), forward_tokens=40))
    assert all((healthy[name] == values).all() for name, values in expected.items())
    with pytest.raises(ValueError, match="same name"):
        measure(LM, TOKENS, [broken[0], broken[0]])


def forwards(action) -> int:
    calls = []
    handle = LM.model.register_forward_pre_hook(lambda module, args: calls.append(1))
    action()
    handle.remove()
    return len(calls)


def test_only_what_is_missing_is_computed() -> None:
    measure(LM, TOKENS, sites=[MIDDLE])  # the probe of a block's return value is behind us
    first = measure(LM, TOKENS, requests())
    known = first.baselines
    again = measure(LM, TOKENS, requests(), baselines=known)
    for name, values in flat(first).items():
        assert (flat(again)[name] == values).all()
    assert forwards(lambda: measure(LM, TOKENS, baselines=known, sites=[MIDDLE], splice_sites=[LAST])) == 0
    # One clean forward and one resumed: neither means nor ablations are run again.
    assert forwards(lambda: measure(LM, TOKENS, requests()[2:3], baselines=known)) == 2
    # A pass for the mean, a clean forward, zero, mean and the SAE.
    assert forwards(lambda: measure(LM, TOKENS, requests()[2:3])) == 5
    # Without splicing two short passes.
    assert forwards(lambda: measure(LM, TOKENS, requests()[1:2])) == 2


def test_a_large_vocabulary_means_smaller_batches(monkeypatch) -> None:
    known = measure(LM, TOKENS, requests()).baselines
    monkeypatch.setattr(batching, "LOGITS_PER_FORWARD", 40 * VOCABULARY)
    padded = []
    hook = lambda module, args, kwargs: padded.append(kwargs["input_ids"].numel())  # noqa: E731
    handle = LM.model.register_forward_pre_hook(hook, with_kwargs=True)
    measure(LM, TOKENS, requests()[2:3], baselines=known)
    handle.remove()
    assert len(padded) > 2
    assert max(padded) <= 40


def test_a_baseline_is_completed_when_a_later_request_splices() -> None:
    cheap = measure(LM, TOKENS, sites=[MIDDLE]).baselines
    assert not cheap[MIDDLE].spliced
    assert "ce_clean" not in cheap[MIDDLE].statistics
    full = measure(LM, TOKENS, splice_sites=[MIDDLE], baselines=cheap).baselines
    assert full[MIDDLE].spliced
    direct = measure(LM, TOKENS, splice_sites=[MIDDLE]).baselines[MIDDLE]
    assert all((direct.statistics[name] == full[MIDDLE].statistics[name]).all() for name in SHARED)


def test_baselines_and_measurements_survive_storage(tmp_path) -> None:
    results = measure(LM, TOKENS, requests())
    for made in (*results.baselines.values(), *results.measurements):
        tensors, meta = made.to_tensors()
        save_file(tensors, tmp_path / "x.safetensors")
        read = load_file(tmp_path / "x.safetensors")
        if isinstance(made, Baseline):
            back = Baseline.from_tensors(read, meta)
            assert back.site == made.site
            assert (back.mean == made.mean).all()
        else:
            back = Measurement.from_tensors(made.name, read, meta)
            assert (back.budget, back.firing.tolist()) == (made.budget, made.firing.tolist())
        assert back.spliced == made.spliced
        assert back.statistics.keys() == made.statistics.keys()
        assert all((back.statistics[name] == values).all() for name, values in made.statistics.items())


def test_progress_of_every_pass_ends_at_the_total() -> None:
    seen: dict[str, list[tuple[float, float, float, float]]] = {}

    def progress(
        done: float, total: float, unit: str = "", *, part: str = "", pace: Count | None = None, **_: Any
    ) -> None:
        assert unit == "documents"
        assert pace is not None
        seen.setdefault(part, []).append((done, total, pace.done, pace.total))

    measure(LM, TOKENS, requests(), forward_tokens=30, progress=progress)
    assert list(seen) == ["pass 1 of 2", "pass 2 of 2"], "the documents for the means, and once more"
    tokens = int(TOKENS.lengths.sum())
    for told in seen.values():
        assert told[0] == (0, 9, 0, tokens)
        assert told[-1] == (9, 9, tokens, tokens)
        assert told == sorted(told)
        assert len(set(told)) > 2


def test_low_precision_models_are_measured_in_float32() -> None:
    lm = LanguageModel(language_model().model.to(torch.bfloat16), TOKENIZER, torch.device("cpu"))
    results = measure(lm, TOKENS, [MeasurementRequest("identity", Identity(), MIDDLE, splice=True)])
    assert (results.measurements[0].statistics["kl_sae"] == 0).all()  # the round trip through float32 is exact
    with pytest.raises(InvalidInput, match="layer 3 does not exist"):
        measure(lm, TOKENS, sites=[Site(index=3)])
