"""Vectors and adapters trained by reinforcement learning on problems with verifiable answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from latentbench.core.plugins import Choice
from latentbench.core.protocols import ProblemSet
from latentbench.core.spec_model import Json, SpecModel
from latentbench.steering.method import USED, SteeringMethod
from latentbench.study.context import Content, Longest, StageContext

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.interventions.intervention import Intervention
    from latentbench.study.context import ExperimentView

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


class Optimizer(SpecModel):
    """AdamW with a constant learning rate after a linear warm-up."""

    learning_rate: Positive = 0.03
    """Learning rate of every coordinate of a vector (or of an adapter's weights)."""
    unit: Literal["absolute", "residual"] = "absolute"
    """Whether the learning rate of a layer's vector is as stated, or that times mean‖h_l‖ / √d_model, the residual
    stream's root mean square there: one number then fits early and late layers."""
    beta1: Share = 0.9
    beta2: Share = 0.999
    epsilon: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps in which the learning rate rises linearly."""
    max_grad_norm: Positive | None = None
    """Gradients of a larger norm are scaled down to it; default: never."""


class ReinforcedMethod(SteeringMethod):
    """Trained on-policy with leave-one-out advantages (RLOO), everything else frozen (arXiv 2505.18706).

    Loss: −Σ_i A_i Σ_t log π(y_it) / Σ_i |y_i| over all rollouts of a step, A_i = r_i − mean of the prompt's other
    rewards, r = ±1. One optimiser step per batch of rollouts, no importance ratio, no clipping, no KL term. The model is
    sampled and trained at the stated temperature, without dropout.
    """

    of_use: ClassVar[frozenset[str]] = frozenset({"scale", "relative"})
    usable: ClassVar[bool] = False
    swept: ClassVar[frozenset[str]] = frozenset({"scale"})
    newer: ClassVar[frozenset[str]] = USED | {"rollouts"}

    problems: Annotated[ProblemSet, Choice("problems", "adapter")]
    """What is trained on. Its first `selection` problems are held out for choosing the checkpoint."""
    reward: Literal["number", "boxed", "random"] = "number"
    r"""`number`: the last number written equals the gold answer; `boxed`: the last \boxed{} does, by math-verify;
    `random`: a coin flip per answer, as a control (it needs `selection: 0`, which keeps true answers out of it)."""
    steps: PositiveInt = 40
    """Optimiser steps."""
    prompts: PositiveInt = 32
    """Problems per step."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Answers drawn per problem."""
    temperature: Positive = 1.0
    """Temperature of sampling and of the log-probabilities that are trained."""
    max_new_tokens: PositiveInt = 96
    """Longest answer; what is cut off is graded as it stands and trained on."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end an answer, besides the model's end token."""
    optimizer: Optimizer = Optimizer()
    """How the weights are changed."""
    selection: Annotated[int, Field(ge=0)] = 128
    """Held-out training problems on which checkpoints are compared, greedily; 0 keeps the last step. Ties go to the
    earlier checkpoint. Test problems have no part in this."""
    select_every: PositiveInt = 5
    """Steps between two such comparisons; the last step is always compared."""
    rollout_batch: PositiveInt = 1024
    """Answers written at a time; what they need of memory is mostly their keys and values."""
    rollouts: Literal["batches", "continuous"] = "batches"
    """`batches`: rows that are over leave with the next few, and share their random numbers; `continuous`: they make room for
    others at once, and every answer has numbers of its own. The distribution is the same, the answers are not."""
    micro_batch: PositiveInt | None = None
    """Rollouts per forward and backward pass, a divisor of prompts × samples; default all of a step."""

    @model_validator(mode="after")
    def _divides(self) -> Any:
        if self.micro_batch and self.prompts * self.samples % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} does not divide {self.prompts} × {self.samples} rollouts")
        if self.reward == "random" and self.selection:
            raise ValueError(
                "a random reward is no control when true answers choose the checkpoint; set `selection: 0`"
            )
        return self

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        return {**super().identity(experiment, roots), "problems": self.problems.identity(roots)}

    def longest_answer(self, roots: Roots) -> Longest:
        return Longest(self.max_new_tokens, "max_new_tokens")

    @property
    def control(self) -> str | None:
        return "training with a random reward" if self.reward == "random" else None

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        reward = ", random reward" if self.reward == "random" else ""
        return f"{self.method} ({self._where()}, {self.steps} steps{reward})"


class RlMethod(ReinforcedMethod):
    """One vector per layer, trained from zero.

    With `rank` r the vectors of all layers lie in one subspace of r dimensions: S = A B, [layers, d] = [layers, r] × [r, d],
    both trained, A from uniform numbers in ±1/√r and B from zero (`steering_rank` in the code of arXiv 2509.06608).
    """

    implementation: ClassVar[str] = "latentbench.steering.rl_training:train_vectors"
    placed: ClassVar[bool] = True
    newer: ClassVar[frozenset[str]] = USED | {"rank", "rollouts"}

    method: Literal["rl"] = "rl"
    rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Dimensions of the subspace that the vectors of all layers share; default: every vector is free. The learning rate is
    then that of the entries of A and B."""

    @model_validator(mode="after")
    def _shared(self) -> Any:
        if self.rank is not None and self.optimizer.unit != "absolute":
            raise ValueError(
                "vectors that share a subspace have no learning rate of their own: `unit` must be absolute"
            )
        return self

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        said = super().made_of(experiment, roots)
        return said if self.rank is None else f"{said}, shared rank {self.rank}"


class LoraMethod(ReinforcedMethod):
    """Baseline: a low-rank adapter on each block's down-projection, trained the same way (peft, α = rank, no dropout)."""

    implementation: ClassVar[str] = "latentbench.steering.rl_training:train_lora"
    adds_vectors: ClassVar[bool] = False

    method: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1, le=1024)] = 1
    """Rank of the adapter; with rank 1 its direction is fixed and its size depends on the token."""
    optimizer: Optimizer = Optimizer(learning_rate=0.003)

    @model_validator(mode="after")
    def _everywhere(self) -> Any:
        if self.scope != "all" or self.relative or self.optimizer.unit != "absolute":
            raise ValueError("an adapter acts at all tokens, at an absolute scale and learning rate")
        return self

    def read(self, content: Content, context: StageContext) -> Intervention:
        from latentbench.interventions.lora import LoraAdapter

        return LoraAdapter(dict(content.tensors), tuple(content.meta["layers"]), self.rank, self.factor)
