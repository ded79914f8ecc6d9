"""A language model under an intervention, as one of lm-eval's models.

With nothing switched on it gives what lm-eval's own `HFLM` gives. Beyond that, answers are kept under keys that name the
intervention, sampling is seeded per answer, and every batch leaves a receipt that the intervention happened. How tokens are
drawn and when a row ends is settled per row, so that an answer does not depend on what it is batched with.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from torch import Tensor
from transformers import LogitsProcessor

from latentbench.activations.chosen_logits import logits_at
from latentbench.activations.fitting import Pieces, row_bytes, rows_that_fit
from latentbench.activations.vocabulary import check_ids, embedding_rows, padding_of
from latentbench.core.errors import InvalidInput
from latentbench.core.hashing import digest, seed_of
from latentbench.core.progress import Count, Progress, unwatched
from latentbench.core.protocols import LanguageModel
from latentbench.core.spec_model import Json
from latentbench.interventions.generation import Stops, StopStrings, generate
from latentbench.interventions.intervention import Intervention, Layout, Receipt, Untouched
from latentbench.interventions.writing_ways import generate_way
from latentbench.reasoning.answer_cache import AnswerCache, TaskAnswer
from latentbench_adapters.lm_eval.tasks import quiet

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


class SeededSampling(LogitsProcessor):
    """Draws from softmax(logits / temperature) by inverting its distribution function at one uniform per row and step.

    The uniforms of a row come from a seed of its own. Two models that are given the same seeds are therefore compared
    with common random numbers, and a row's answer does not change with its neighbours, the device's generator or what
    was drawn before. The rest of decoding is told to be greedy: every score but the drawn token's is −∞.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, prompt: int, steps: int) -> None:
        self._temperature, self._prompt = temperature, prompt
        self._uniforms = torch.stack([_uniforms(seed, steps) for seed in seeds], dim=1)  # [steps, B] float64

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """`input_ids` [B, T], `scores` [B, vocabulary]; returns scores of the same shape."""
        uniform = self._uniforms[input_ids.shape[1] - self._prompt].to(scores.device)
        reached = torch.softmax(scores.float() / self._temperature, -1).double().cumsum(-1)
        # A point just below the total keeps the last token with any probability the last that can be drawn.
        point = (uniform[:, None] * reached[:, -1:]).clamp_max(reached[:, -1:] * (1 - 1e-12))
        drawn = torch.searchsorted(reached, point, right=True)
        return torch.full_like(scores, -torch.inf).scatter_(-1, drawn, 0.0)


def _uniforms(seed: int, steps: int) -> Tensor:
    # On the CPU whatever the device, whose generators differ.
    return torch.rand(steps, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "top_p": (1, None),
    "top_k": (0, -1, None),
    "num_beams": (1, None),
    "repetition_penalty": (1, None),
}
"""Further settings a task may state, and the values that change nothing."""


@dataclass(frozen=True)
class GenerationSettings:
    """How an answer is generated."""

    until: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    """0 is greedy."""

    @staticmethod
    def of(generation: Mapping[str, Any], default_max: int) -> GenerationSettings:
        """From a request's generation arguments. Raises InvalidInput for settings that would be ignored."""
        known = normalize_gen_kwargs(dict(generation), default_max)
        until, most, sampled = known.pop("until"), known.pop("max_gen_toks"), known.pop("do_sample")
        temperature = float(known.pop("temperature", 1.0)) if sampled else 0.0
        known.pop("temperature", None)
        for name, value in known.items():
            # Greedy decoding takes the most likely token, which neither top_p nor top_k ever leaves out.
            if value not in _NEUTRAL.get(name, ()) and not (name in ("top_p", "top_k") and not temperature):
                raise InvalidInput(f"the task generates with {name} = {value!r}, which is not supported here")
        return GenerationSettings(tuple(string for string in until if string), most, temperature)


@dataclass(frozen=True)
class _Question:
    """One answer asked for."""

    context: str
    settings: GenerationSettings
    seed: int | None
    """Seed of its random numbers; None where greedy."""
    key: str


_Pair = tuple[list[int], list[int]]
"""Tokens of a context, and of what is asked to follow it."""


class SteeredLM(HFLM):  # type: ignore[misc]
    """`lm`, which stays as it was, under `intervention`.

    `identity` names the model in cache keys. Of equal requests the n-th gets sample number n, whose seed depends on the
    context (without the prefix), the number and `seed` only, so that every intervention is tried with the same luck.
    Batches depend on the requests alone, not on what is known already, so that a continued run gives the same answers.
    """

    def __init__(
        self,
        lm: LanguageModel,
        intervention: Intervention | None = None,
        *,
        identity: Json = None,
        responses: AnswerCache | None = None,
        batch: int = 64,
        seed: int = 0,
        progress: Progress = unwatched,
    ) -> None:
        with quiet():
            # A copy, because lm-eval may set a padding token.
            super().__init__(pretrained=lm.model, tokenizer=copy.deepcopy(lm.tokenizer), batch_size=batch)
        self.language_model, self.intervention = lm, intervention or Untouched()
        self.receipt = Receipt()
        """What happened in everything generated or scored so far; answers from the cache leave none."""
        self.remembered = 0
        """Answers that came from the cache."""
        self.shortened = 0
        """Contexts that did not fit and were cut on the left."""
        self._model_identity, self._responses, self._seed = identity, responses, seed
        self._progress = progress
        self._pieces = Pieces(batch)

    # -- generation --------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The text of every answer, in the order of the requests."""
        return [answer.text for answer in self.answers(requests)]

    def answers(self, requests: Sequence[Instance]) -> list[TaskAnswer]:
        """Every answer, in the order of the requests. Raises CellFailed when the intervention did not happen."""
        asked = self._questions(requests)
        unique = list({question.key: question for question in asked}.values())
        done = self._responses.known([question.key for question in unique]) if self._responses else {}
        self.remembered += len(done)
        batches = list(self._batches(unique))
        writing = [len(batch) if any(question.key not in done for question in batch) else 0 for batch in batches]
        self._tell_answers(batches, writing, 0)
        for number, batch in enumerate(batches, 1):
            if writing[number - 1]:
                fresh = dict(zip((question.key for question in batch), self._written(batch), strict=True))
                if self._responses:
                    self._responses.add(fresh)
                done = fresh | done
            self._tell_answers(batches, writing, number)
        return [done[question.key] for question in asked]

    def _tell_answers(self, batches: Sequence[Sequence[_Question]], writing: Sequence[int], done: int) -> None:
        """Says that so many batches are done; of the time taken only what had to be written tells."""
        pace = Count(sum(writing[:done]), sum(writing), "problems")
        self._progress(sum(map(len, batches[:done])), sum(map(len, batches)), "problems", pace=pace)

    def _questions(self, requests: Sequence[Instance]) -> list[_Question]:
        seen: Counter[str] = Counter()
        questions = []
        for context, generation, *_ in (request.args for request in requests):
            settings = GenerationSettings.of(generation, self.max_gen_toks)
            number = seen[context]
            seen[context] += 1
            seed = seed_of("answer", self._seed, context, number) if settings.temperature else None
            prompt = context + self.intervention.prefix
            questions.append(_Question(prompt, settings, seed, self._key(prompt, settings, seed)))
        return questions

    def _key(self, prompt: str, settings: GenerationSettings, seed: int | None) -> str:
        about = {"model": self._model_identity, "intervention": self.intervention.identity}
        return digest("answer", about | {"prompt": prompt, "settings": asdict(settings), "seed": seed})

    def _batches(self, questions: Sequence[_Question]) -> Iterator[list[_Question]]:
        """Questions of equal settings together, longest first: memory runs out at once or never.

        Where the model cannot be told of padding, all of a batch have the same length.
        """
        if not questions:
            return
        lengths = [len(ids) for ids in self.tokenizer([question.context for question in questions])["input_ids"]]
        if not all(lengths):
            raise InvalidInput("a question is empty, and the model's tokenizer has no bos_token to stand for it")
        order = sorted(
            zip(lengths, questions, strict=True),
            key=lambda pair: (repr(pair[1].settings), -pair[0], pair[1].context, pair[1].seed or 0),
        )
        alike = generate_way(self.language_model) == "equal lengths"
        size, batch, before = int(self.batch_size), list[_Question](), 0
        for length, question in order:
            room = self._room(question.settings)
            self.shortened += length > room
            unlike = alike and min(length, room) != before
            if batch and (len(batch) == size or batch[0].settings != question.settings or unlike):
                yield batch
                batch = []
            batch.append(question)
            before = min(length, room)
        yield batch

    def _room(self, settings: GenerationSettings) -> int:
        """Tokens left for a context."""
        room: int = self.max_length - settings.max_new_tokens
        if room <= 0:
            raise InvalidInput(
                f"{settings.max_new_tokens} new tokens leave no room for a question in this model's context of "
                f"{self.max_length}; set a smaller `max_new_tokens`"
            )
        return room

    def _written(self, batch: Sequence[_Question]) -> Iterator[TaskAnswer]:
        """The answers of a batch, in as many pieces as memory asks for."""
        settings = batch[0].settings
        longest = len(self.tokenizer(batch[0].context)["input_ids"])
        each = row_bytes(self.language_model).writing(min(longest, self._room(settings)), settings.max_new_tokens)
        for answers in self._pieces.run(self._generated, batch, rows_that_fit(each, len(batch), self.device)):
            yield from answers

    def _generated(self, batch: Sequence[_Question]) -> list[TaskAnswer]:
        settings = batch[0].settings
        ids, mask = self.tok_batch_encode(
            [question.context for question in batch], left_truncate_len=self._room(settings)
        )
        self._check(ids[mask.bool()].tolist(), "a question of the task: ")
        # lm-eval pads with the tokenizer's token, or with one it adds to its copy: neither need be known to the model.
        ids, mask = ids.masked_fill(mask == 0, padding_of(self.language_model)).to(self.device), mask.to(self.device)
        prompt, stops = ids.shape[1], Stops(self.language_model, settings.until)
        stop = StopStrings(stops, prompt, len(batch))
        with self.intervention.applied(self.language_model) as receipt:
            made = generate(
                self.language_model,
                ids,
                mask,
                ends=sorted(stops.tokens),
                processors=self._sampling(batch, prompt),
                criteria=[stop] if stops.texts else [],
                max_new_tokens=settings.max_new_tokens,
            )
        self.receipt += receipt
        rows = made[:, prompt:].tolist()
        lengths = [_length(row, stops.tokens, stopped) for row, stopped in zip(rows, stop.ended, strict=True)]
        return [self._answer(row, length, settings) for row, length in zip(rows, lengths, strict=True)]

    def _sampling(self, batch: Sequence[_Question], prompt: int) -> list[SeededSampling]:
        settings = batch[0].settings
        seeds = [question.seed for question in batch if question.seed is not None]
        return [SeededSampling(seeds, settings.temperature, prompt, settings.max_new_tokens)] if seeds else []

    def _answer(self, row: list[int], length: int | None, settings: GenerationSettings) -> TaskAnswer:
        text = self.tok_decode(row[:length])
        text = postprocess_generated_text(text, list(settings.until), None)
        return TaskAnswer(text, len(row) if length is None else length, truncated=length is None)

    def _check(self, ids: Sequence[int], where: str) -> None:
        check_ids(ids, self.tokenizer, embedding_rows(self.model), where)

    # -- likelihoods -------------------------------------------------------------------------------------------------

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context. Raises InvalidInput where the tokenizer has nothing for it."""
        found: int | None = super().prefix_token_id
        if found is None:
            raise InvalidInput(
                "the task asks how likely a text is with nothing before it, for which the model's tokenizer has neither "
                "bos_token nor eos_token; set one in its tokenizer_config.json"
            )
        return found

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """As lm-eval does; without BOS and EOS it would look whether the text begins with a token that is not there."""
        if self.tokenizer.bos_token_id is None and self.tokenizer.eos_token_id is None and add_special_tokens is None:
            add_special_tokens = True  # as the tokenizer does when it is asked for nothing else
        return super().tok_encode(string, add_special_tokens, **options)  # type: ignore[no-any-return]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return super()._encode_pair(context + self.intervention.prefix, continuation)  # type: ignore[no-any-return]

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood of every continuation, and whether greedy decoding would write it, in the order of the requests."""
        return super().loglikelihood(requests, disable_tqdm)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], *_: Any, **__: Any
    ) -> list[tuple[float, bool]]:
        """Sum of log-probabilities of each continuation, and whether greedy decoding would write it."""
        scored: dict[int, tuple[float, bool]] = {}
        room = self.max_length + 1  # what the last token predicts is not read
        self.shortened += len({asked and asked[0] for asked, *parts in requests if sum(map(len, parts)) > room})
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        size = int(self.batch_size)
        self._progress(0, len(order), "choices")
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            pairs = [self._fitting(*requests[i][1:3]) for i in chosen]
            scored |= zip(chosen, self._scored(pairs), strict=True)
            self._progress(first + len(chosen), len(order), "choices")
        return [scored[number] for number in range(len(requests))]

    def _fitting(self, context: list[int], more: list[int]) -> _Pair:
        """A pair as it is read: at least a token before the continuation, and no more than the model has positions for."""
        self._check(context + more, "a question of the task: ")
        if not 0 < len(more) <= self.max_length:
            raise InvalidInput(f"a choice has {len(more)} tokens; this model reads 1 to {self.max_length}")
        before = context or [self.prefix_token_id]
        return before[-(self.max_length + 1 - len(more)) :], more  # what the last token predicts is not read

    def _scored(self, pairs: Sequence[_Pair]) -> Iterator[tuple[float, bool]]:
        """What a batch of pairs is worth, in as many pieces as memory asks for."""
        longest, scored = (max(map(len, parts)) for parts in zip(*((a + b, b) for a, b in pairs), strict=True))
        each = row_bytes(self.language_model).reading(longest, scored)
        for likelihoods in self._pieces.run(self._likelihoods, pairs, rows_that_fit(each, len(pairs), self.device)):
            yield from likelihoods

    def _likelihoods(self, pairs: Sequence[_Pair]) -> list[tuple[float, bool]]:
        rows = [torch.tensor(context + more) for context, more in pairs]
        counts = [len(more) for _, more in pairs]
        real = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row) - 1) for row in rows], batch_first=True).bool()
        ids = torch.nn.utils.rnn.pad_sequence([row[:-1] for row in rows], batch_first=True).to(self.device)
        prompts = torch.tensor([len(row) for row in rows]) - torch.tensor(counts)
        # Position t says how likely token t + 1 is: asked of the last token of the prompt and all but the last of the answer.
        asked = real & (torch.arange(real.shape[1]) >= prompts[:, None] - 1)
        layout = Layout(prompt_lengths=prompts.to(self.device), real=real.to(self.device))
        with self.intervention.applied(self.language_model, layout) as receipt:
            # Padding is on the right, where nothing that reads from left to right sees it.
            logits = logits_at(self.model, asked, lambda: self.model(ids, use_cache=False))
        self.receipt += receipt
        parts = zip(torch.split(logits, counts), rows, counts, strict=True)
        return [_likelihood(part, row[-count:]) for part, row, count in parts]


def _length(row: list[int], ends: Collection[int], stopped: int | None) -> int | None:
    """Generated tokens of a row without its end token; None when nothing ended it."""
    end = next((position for position, token in enumerate(row) if token in ends), None)
    return min((length for length in (end, stopped) if length is not None), default=None)


def _likelihood(logits: Tensor, targets: Tensor) -> tuple[float, bool]:
    targets = targets.to(logits.device)
    chances = torch.log_softmax(logits.float(), -1)
    total = float(chances.gather(-1, targets[:, None]).sum(dtype=torch.float64))
    return total, bool((chances.argmax(-1) == targets).all())
