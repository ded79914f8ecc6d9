"""Hidden states from the store against hidden states from the model, for the training texts of a spec.

Three passes over one stream without any SAE: the model computes what it reads, the store is filled, the store is read. Whether
both give the same batches is compared to the bit. The store is a temporary one beside the project's, on the same disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TypeVar

from latentbench.activations.row_states import StoredRowStates, stored_row_states
from latentbench.activations.state_shards import StatesOrigin
from latentbench.activations.tokens import TrainTokens
from latentbench.core.errors import InvalidInput
from latentbench.core.paths import Roots
from latentbench.core.protocols import LanguageModel
from latentbench.execute.job_inputs import ModelCache, make_train_tokens
from latentbench.plan.stages import SaeStages, stages_of
from latentbench.sae.activation_stream import ActivationStream
from latentbench.spec.cells import Cell
from latentbench.store.state_cache import STATES
from latentbench.store.store import Store

T = TypeVar("T")


@dataclass(frozen=True)
class CacheTiming:
    """What each pass took."""

    tokens: int
    bytes: int
    """Of the stored hidden states."""
    computing: float
    """Seconds of a stream that runs the model."""
    storing: float
    """Seconds until all hidden states are in the store, computing them included."""
    reading: float
    """Seconds of a stream that reads them."""
    equal: bool
    """Whether both streams gave the same batches, bit for bit."""

    @property
    def speedup(self) -> float:
        """How many times as fast reading is as computing."""
        return self.computing / self.reading


def run(cell: Cell, roots: Roots, device: str, store: Path) -> CacheTiming:
    """Times the stream of a cell's first SAE. Raises InvalidInput for a cell that trains none on texts."""
    made = next((made for sae in stages_of(cell, roots).saes for _, made in sae.levels() if made.tokens), None)
    if made is None or made.tokens is None or made.data is None:
        raise InvalidInput(f"{cell.title} trains no SAE on texts; name a spec that does")
    store.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=store, prefix="bench-") as folder:
        temporary, models = Store(Path(folder)), ModelCache(roots, device)
        model = models.model(cell.experiment.model, made.data.context)
        tokens = make_train_tokens(temporary, made.tokens, made.data, models, cell.experiment.model)
        live_digest, computing = _timed(lambda: _digest(_stream(cell, made, model, tokens, None)))
        stored, storing = _timed(lambda: _fill(temporary, made, model, tokens))
        read_digest, reading = _timed(lambda: _digest(_stream(cell, made, model, tokens, stored)))
        bytes = sum(artifact.bytes for artifact in temporary.artifacts(STATES))
    return CacheTiming(tokens.tokens, bytes, computing, storing, reading, live_digest == read_digest)


def _fill(store: Store, made: SaeStages, model: LanguageModel, tokens: TrainTokens) -> StoredRowStates:
    assert made.tokens is not None
    origin = StatesOrigin(made.stage.payload["model"], made.tokens.key)
    found = stored_row_states(store, origin, model, tokens, [made.site], "always")
    assert found is not None  # `always` stores or raises
    return found


def _stream(
    cell: Cell, made: SaeStages, model: LanguageModel, tokens: TrainTokens, states: StoredRowStates | None
) -> ActivationStream:
    options, rule = cell.experiment.training, cell.experiment.token_rule
    return ActivationStream(model, tokens, [made.site], tokens.tokens, options, cell.seed, rule=rule, states=states)


def _digest(stream: ActivationStream) -> str:
    found = sha256()
    for block in range(stream.blocks):
        for batch in stream.batches(block):
            for state in batch.values():
                found.update(state.cpu().numpy().tobytes())
    return found.hexdigest()


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    start = perf_counter()
    return work(), perf_counter() - start
