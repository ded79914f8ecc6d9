"""The training stage of a job: SAEs that read the same stream of hidden states are trained together.

Running the model costs more than a training step of an SAE, so one pass of the model feeds all SAEs that want the same
rows in the same order. What the SAEs become does not depend on which of them are trained together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from latentbench.activations.massive import LeftOut
from latentbench.activations.model_config import facts_of
from latentbench.activations.row_states import RowStates, StoredRowStates, stored_row_states
from latentbench.activations.state_shards import StatesOrigin
from latentbench.activations.tokens import TrainTokens
from latentbench.core.border import contained
from latentbench.core.errors import NotAvailable, RefusedFile
from latentbench.core.hashing import digest, seed_of
from latentbench.core.progress import Progress
from latentbench.core.protocols import DatasetAdapter
from latentbench.core.sites import Site
from latentbench.core.stage import Stage
from latentbench.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from latentbench.execute.job_inputs import ModelCache, make_train_tokens
from latentbench.execute.training_launcher import TrainingOutcome
from latentbench.plan.stages import SaeStages
from latentbench.sae import artifact
from latentbench.sae.activation_stream import ActivationStream
from latentbench.sae.autoencoder import SparseAutoencoder, TrainableSAE
from latentbench.sae.options import Variant
from latentbench.sae.options.base import LoadedSae
from latentbench.sae.options.training import TRAINING_FILE
from latentbench.sae.trainer import NativeTrainer, train
from latentbench.sae.training_progress import TrainingProgress
from latentbench.sae.variants.controls import FittedSAE, FittedTrainer
from latentbench.spec.cells import Cell
from latentbench.store.files import write_bytes
from latentbench.store.state_cache import CACHE_MODES
from latentbench.store.store import Ref, Store

CHECKPOINT = "state.safetensors.sha256"
"""A safetensors file followed by the 32 bytes of its sha256: one file, so that both appear at once."""

OnDevices = Callable[[dict[str, Cell], int, Progress], TrainingOutcome]
"""Trains SAEs of one stream, given as their stage keys and cells, on so many devices."""
AnyTrainer = NativeTrainer | FittedTrainer
T = TypeVar("T")


@dataclass(frozen=True)
class TrainingRequest:
    """An SAE that has to be trained, for a cell."""

    cell: Cell
    made: SaeStages

    @property
    def key(self) -> str:
        """Key of the SAE's stage."""
        return self.made.stage.key

    @property
    def options(self) -> Variant:
        """Options of its variant."""
        assert isinstance(self.made.section, Variant)  # a loaded SAE is never wanted
        return self.made.section

    @property
    def devices(self) -> int:
        """How many devices it is trained on; one where nothing is read, as for an untrained control."""
        return self.cell.experiment.training.devices if self.options.reads_texts else 1

    @property
    def tokens(self) -> Stage:
        """The stage of its training tokens."""
        assert self.made.tokens is not None
        return self.made.tokens

    @property
    def data(self) -> DatasetAdapter:
        """The dataset of its training texts."""
        assert self.made.data is not None
        return self.made.data


class TrainingRunner:
    """Trains what is missing, keeps checkpoints, and stores the result; of a process group only member 0 writes."""

    def __init__(
        self,
        store: Store,
        models: ModelCache,
        group: ProcessGroup = SINGLE_PROCESS,
        on_devices: OnDevices | None = None,
    ) -> None:
        """`on_devices` has SAEs trained that want more than one device; None trains them on this one."""
        self.store, self.models, self.group, self.on_devices = store, models, group, on_devices
        self.speeds: dict[str, float | None] = {}
        """Training tokens per second by stage key, of what was trained here."""

    def together(self, wanted: list[TrainingRequest]) -> list[list[TrainingRequest]]:
        """SAEs that read the same stream, in groups; an SAE wanted twice stands once."""
        groups: dict[str, dict[str, TrainingRequest]] = defaultdict(dict)
        for item in wanted:
            training, tokens = item.cell.experiment.training, item.made.tokens
            # All that decides which tokens are in which batch, and how many processes share it.
            rule = item.cell.experiment.token_rule.plain()
            stream = [tokens and tokens.key, rule, item.cell.seed, training.batch, training.buffer, item.devices]
            groups[digest("stream", stream)].setdefault(item.key, item)
        return [list(group.values()) for group in groups.values()]

    def run(self, wanted: list[TrainingRequest], progress: Progress) -> dict[str, Exception]:
        """Makes SAEs of one stream, or waits for those that other workers make. Returns what went wrong, by stage
        key."""
        failures: dict[str, Exception] = {}

        def make(refs: list[Ref]) -> None:  # the store gives those that no other worker is making
            mine = [item for item in wanted if item.made.stage.ref in refs]
            several = mine[0].devices > 1 and self.on_devices is not None
            failures.update(self._apart(mine, progress) if several else self.make(mine, progress))

        self.store.share([item.made.stage.ref for item in wanted], make)
        return failures

    def make(self, wanted: list[TrainingRequest], progress: Progress) -> dict[str, Exception]:
        """Makes SAEs of one stream that nobody else makes, in this process and those of its group."""
        failures: dict[str, Exception] = {}
        if not wanted[0].options.reads_texts:
            for item in wanted:
                self._attempt(failures, item.key, partial(self._keep, item, self._built(item), None))
            return failures
        sites = sorted({item.made.site for item in wanted}, key=str)
        states = self._states(wanted, sites, progress)
        with self.store.using(states.keys if states else ()):
            return failures | self._trained(wanted, self._stream(wanted, sites, states), progress)

    def _trained(
        self, wanted: list[TrainingRequest], stream: ActivationStream, progress: Progress
    ) -> dict[str, Exception]:
        failures: dict[str, Exception] = {}
        told = TrainingProgress(stream, progress, self.group.size)
        trainers: dict[AnyTrainer, TrainingRequest] = {}
        for item in wanted:
            trainer = self._attempt(failures, item.key, partial(self._trainer, item, stream))
            if trainer:
                trainers[trainer] = item
        told.begin(min((t.next_block for t in trainers), default=0), partial(_losses, list(trainers)))
        outcomes = train(list(trainers), stream, self._checkpoint_of(trainers), told.learned, self.group)
        for trainer, outcome in outcomes.items():
            item = trainers[trainer]
            # Each member counted its own share; all take part in the sum, also for an SAE that failed.
            trainer.throughput.tokens = int(self.group.all_sum(torch.tensor(trainer.throughput.tokens)))
            self.speeds[item.key] = trainer.throughput.tokens_per_second
            if isinstance(outcome, Exception):
                failures[item.key] = outcome
            else:
                self._keep(item, outcome, trainer, stream.left_out[item.made.site])
        return failures

    def load(self, made: SaeStages) -> SparseAutoencoder:
        """An SAE and what it stands on, from the store or from its source. Raises NotAvailable when it is not there."""
        if isinstance(made.section, LoadedSae):
            return made.section.load.load(self.models.roots)
        found = self.store.get(made.stage.kind, made.stage.key)
        if found is None:
            raise NotAvailable(f"the SAE {made.stage.key[:12]} is not in the store")
        return artifact.load(found.folder, tuple(map(self.load, made.bases)))

    def record_of(self, made: SaeStages) -> dict[str, Any]:
        """The training record beside its weights; empty where it was not trained step by step, or is not here."""
        folder = self.store.folder(made.stage.kind, made.stage.key)
        return artifact.load_training(folder) if (folder / TRAINING_FILE).is_file() else {}

    def memory_of(self, made: SaeStages) -> int | None:
        """Bytes that its training took; None where no record says so, such as one of earlier versions."""
        found = self.record_of(made).get("memory_bytes")
        return found if isinstance(found, int) else None

    def _apart(self, wanted: list[TrainingRequest], progress: Progress) -> dict[str, Exception]:
        """Has them made by a process per device."""
        assert self.on_devices is not None
        self._tokens(wanted[0])  # made here, so that the processes find them and need not wait for one another
        outcome = self.on_devices({item.key: item.cell for item in wanted}, wanted[0].devices, progress)
        self.speeds |= outcome.speeds
        return outcome.failures

    def _attempt(self, failures: dict[str, Exception], key: str, work: Callable[[], T]) -> T | None:
        """What `work` gives; what it raises is noted under `key`, unless other members of the group do not meet it."""
        try:
            return work()
        except BaseException as error:  # one SAE that cannot be made must not cost the others
            kept = contained(error)
            if not self.group.is_common_error(kept):
                raise
            failures[key] = kept
            return None

    def _stream(self, wanted: list[TrainingRequest], sites: list[Site], states: RowStates | None) -> ActivationStream:
        first, experiment = wanted[0], wanted[0].cell.experiment
        return ActivationStream(
            self.models.model(experiment.model, first.data.context),
            self._tokens(first),
            sites,
            int(first.data.tokens or 0),
            experiment.training,
            seed_of("order", first.tokens.key, first.cell.seed),
            group=self.group,
            rule=experiment.token_rule,
            states=states,
        )

    def _states(self, wanted: list[TrainingRequest], sites: list[Site], progress: Progress) -> StoredRowStates | None:
        """The hidden states of their texts from the store; None where they are to be computed as they are read."""
        first, modes = wanted[0], {item.cell.experiment.resources.cache for item in wanted}
        origin = StatesOrigin(first.made.stage.payload["model"], first.tokens.key)
        model = self.models.model(first.cell.experiment.model, first.data.context)
        # SAEs that share a stream share its states, so the strongest wish among them decides.
        mode = next(mode for mode in CACHE_MODES if mode in modes)
        tokens = self._tokens(first)
        context, total = tokens.ids.shape[1], tokens.ids.numel()

        def told(rows: int) -> None:
            progress(rows * context, total, "tokens", part="storing hidden states")

        return stored_row_states(self.store, origin, model, tokens, sites, mode, told)

    def _tokens(self, item: TrainingRequest) -> TrainTokens:
        return make_train_tokens(self.store, item.made, self.models, item.cell.experiment.model)

    def _built(self, item: TrainingRequest) -> SparseAutoencoder:
        """The SAE as it is before training, initialised from its own key."""
        generator = torch.Generator().manual_seed(seed_of("weights", item.key))
        bases = tuple(self.load(base) for base in item.made.bases)
        experiment, roots = item.cell.experiment, self.models.roots
        facts = experiment.model.facts(roots) or facts_of(
            self.models.model(experiment.model).model.config.to_dict(), ""
        )
        return item.options.build(facts.d_model, generator, bases).to(self.models.device)

    def _trainer(self, item: TrainingRequest, stream: ActivationStream) -> AnyTrainer:
        """What trains the SAE, where its last checkpoint left off."""
        site, sae = item.made.site, self._built(item)
        trainer: AnyTrainer
        if isinstance(sae, FittedSAE):
            trainer = FittedTrainer(sae, site, self.models.device, self.group)
        else:
            assert isinstance(sae, TrainableSAE)
            norm, mean = stream.first_norms[site], stream.means[site]
            options = item.cell.experiment.training
            of_stream: dict[str, Any] = {"steps": stream.steps, "first_norm": norm, "mean": mean}
            trainer = NativeTrainer(sae, site, options, **of_stream, group=self.group)
        if self.group.rank == 0:
            self._resume(trainer, item.key)
        if self.group.size > 1:
            # Not read by each: a checkpoint that only some find or can read would leave them at different blocks.
            trainer.load_state(load(self.group.broadcast(save(trainer.state()))))
        return trainer

    def _resume(self, trainer: AnyTrainer, key: str) -> None:
        """Continues from the checkpoint, if there is a sound one, whatever number of devices wrote it."""
        folder = self.store.checkpoint(key)
        try:
            if (folder / CHECKPOINT).is_file():
                trainer.load_state(_unsealed((folder / CHECKPOINT).read_bytes()))
        except (SafetensorError, RefusedFile):
            self.store.quarantine(folder)

    def _checkpoint_of(self, trainers: dict[AnyTrainer, TrainingRequest]) -> Callable[[list[AnyTrainer]], None]:
        """Writes the checkpoints of trainers; a collective, since a state may be summed over the members."""

        def save_all(active: list[AnyTrainer]) -> None:
            for trainer in active:
                state = trainer.state()
                self.group.check_identical(state)
                if self.group.rank == 0:
                    folder = self.store.checkpoint(trainers[trainer].key)
                    write_bytes(folder / CHECKPOINT, _sealed(save(state)))

        return save_all

    def _keep(
        self, item: TrainingRequest, sae: SparseAutoencoder, trainer: AnyTrainer | None, left_out: LeftOut | None = None
    ) -> None:
        """Stores a finished SAE with its training record, after which its checkpoint is of no use."""
        if self.group.rank > 0:
            return
        stage = item.made.stage
        bases = tuple(self.load(base) for base in item.made.bases)
        with self.store.writing(stage.kind, stage.key, stage.made_from) as folder:
            record = trainer.training_record() if isinstance(trainer, NativeTrainer) else None
            if record is not None and left_out is not None:
                record["left_out"] = left_out.plain()
            artifact.save(sae, item.options, sae.d_in, folder, record, bases)
        self.store.drop_checkpoint(stage.key)


def _losses(trainers: list[AnyTrainer]) -> list[float]:
    return [t.loss for t in trainers if isinstance(t, NativeTrainer) and t.loss is not None]


def _sealed(content: bytes) -> bytes:
    return content + sha256(content).digest()


def _unsealed(sealed: bytes) -> dict[str, Tensor]:
    content, seal = sealed[:-32], sealed[-32:]
    if sha256(content).digest() != seal:
        raise RefusedFile("the training checkpoint does not have the bytes that were written")
    return load(content)
