"""Probes and what stands on them: sparse probing and feature absorption, against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from latentbench.latents.first_letter import Words, absorption_of, letters_of, main_latents
from latentbench.latents.probing import Probe, ProbedDocuments, by_mean_difference, f1, fit, sparse_matrix
from latentbench.sae.autoencoder import Codes

pytestmark = pytest.mark.usefixtures("one_thread")


def test_probe_separates_what_can_be_separated_and_keeps_the_direction() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5)) + 3
    labels = x @ [0, 2, 0, -1, 0] > 2
    probe = fit(x, labels)
    assert f1(probe.scores(x) > 0, labels) > 0.95
    unit = probe.direction / np.linalg.norm(probe.direction)
    assert unit @ np.array([0, 2, 0, -1, 0]) / 5**0.5 > 0.98


def test_f1_by_hand() -> None:
    truth = np.array([True, True, True, False, False])
    assert f1(np.array([True, True, False, True, False]), truth) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert f1(np.zeros(5, dtype=bool), truth) == 0


def test_mean_difference_against_dense() -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(30, 10, generator=generator, dtype=torch.float64)
    dense[dense < 0.6] = 0
    matrix = sparse_matrix(Codes.from_dense(dense), 10)
    np.testing.assert_array_equal(matrix.toarray(), dense.numpy())
    labels = np.arange(30) % 3 == 0
    gap = np.abs(dense.numpy()[labels].mean(0) - dense.numpy()[~labels].mean(0))
    assert by_mean_difference(matrix, labels, 4).tolist() == np.argsort(-gap)[:4].tolist()


def documents(signal: float, seed: int = 0) -> ProbedDocuments:
    """90 documents of three domains; latent c is larger by `signal` on domain c, the others are noise."""
    rng = np.random.default_rng(seed)
    domain = np.repeat(np.arange(3), 30)
    latents = rng.uniform(0, 1, (90, 20))
    latents[np.arange(90), domain] += signal
    return ProbedDocuments(csr_array(latents), rng.normal(size=(90, 4)), np.arange(90) % 2 == 1, domain)


def accuracy(data: ProbedDocuments, k: int | None) -> float:
    weights = data.weights()
    return float((data.correct(k) * weights).sum() / weights.sum())


def test_sparse_probing_finds_planted_latents_and_nothing_in_noise() -> None:
    assert accuracy(documents(3.0), 1) == 1
    assert accuracy(documents(3.0), None) < 0.65, "the hidden states hold nothing"
    noise = [accuracy(documents(0.0, seed), 2) for seed in range(8)]
    assert np.mean(noise) == pytest.approx(1 / 3, abs=0.1)


def test_sparse_probing_counts_every_domain_the_same() -> None:
    data = documents(3.0)
    kept = np.r_[0:30, 30:40, 60:90]
    small = ProbedDocuments(csr_array(data.latents[kept]), data.states[kept], data.held_out[kept], data.domain[kept])
    weights = small.weights()
    held = small.domain[small.held_out]
    assert [weights[held == c].sum() for c in range(3)] == pytest.approx([1 / 3] * 3)
    assert small.problem() is None
    assert "too few" in str(
        ProbedDocuments(small.latents[:6], small.states[:6], small.held_out[:6], small.domain[:6]).problem()
    )


def letters(count: int = 60, seed: int = 0) -> tuple[Words, np.ndarray]:
    """Words with `a` lie along the first axis, the others at 0, both with a little noise."""
    rng = np.random.default_rng(seed)
    texts = tuple(("a" if i % 2 else "b") + f"{i:03d}" for i in range(count))
    states = 0.05 * rng.normal(size=(count, 3))
    labels = np.array([text[0] == "a" for text in texts])
    states[labels, 0] += 1
    return Words(texts, torch.from_numpy(states).float(), np.arange(count) % 4 >= 2), labels


def test_letters_are_readable_only_where_they_are() -> None:
    words, _ = letters()
    found = letters_of(words)
    probes, scores = found.readable(0.6), found.scores
    assert sorted(probes) == ["a", "b"]
    assert min(scores.values()) > 0.95
    rng = np.random.default_rng(0)
    noise = Words(words.texts, torch.from_numpy(rng.normal(size=(60, 3))).float(), words.held_out)
    assert max(letters_of(noise).scores.values()) < 0.9
    assert letters_of(noise).readable(0.9) == {}


def test_absorption_by_hand() -> None:
    """Latent 0 is the letter's; latents 1 and 2 point its way too, 3 does not; unit directions along the axes."""
    words, labels = letters(8)
    rows = np.array([[1, 0, 0], [0.8, 0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    states = torch.zeros(8, 3)
    states[torch.from_numpy(labels), 0] = 1
    probe = Probe(np.array([2.0, 0, 0]), -1.0)
    words = Words(words.texts, states, np.ones(8, dtype=bool) & (np.arange(8) > 1))
    latents = np.zeros((8, 4))
    latents[3] = [1.0, 0.0, 0.0, 5.0]  # the letter's latent does all that is needed
    latents[5] = [0.2, 0.5, 0.0, 5.0]  # 0.2 against 0.4 absorbed
    latents[7] = [0.0, 0.5, 0.5, 5.0]  # nothing of its own, 0.4 and 0.3 absorbed
    found = absorption_of(words, labels, probe, csr_array(latents), np.array([0]), rows)
    np.testing.assert_allclose(found["fraction"], [0, 0.4 / 0.6, 1], atol=1e-12)
    np.testing.assert_array_equal(found["full"], [0, 0, 1])
    np.testing.assert_array_equal(found["words"], [1, 1, 1])


def test_main_latents_of_a_split_letter() -> None:
    """A letter on whose words either latent 4 or latent 7 fires has both; one whose latent always fires has one."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4 == 0
    latents = 0.01 * rng.uniform(size=(200, 10))
    latents[labels, 4] = 1
    assert main_latents(csr_array(latents), labels, 0.03).tolist() == [4]
    latents[:, 4] *= np.arange(200) % 8 == 0
    latents[labels & (np.arange(200) % 8 == 4), 7] = 1
    assert sorted(main_latents(csr_array(latents), labels, 0.03)) == [4, 7]
