"""What every way to a steering vector has in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import SerializerFunctionWrapHandler, ValidationInfo, field_validator, model_serializer, model_validator

from latentbench.core.errors import InvalidInput
from latentbench.core.hashing import digest
from latentbench.core.plugins import Choice, implementation
from latentbench.core.sites import OUTPUT, Layer, Place, block_number
from latentbench.core.spec_model import Json, without_default
from latentbench.steering.auto import SWEPT, Auto, SweepOptions
from latentbench.steering.positions import Positions
from latentbench.study.context import Content, Longest, StageContext, Subject

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.interventions.changes import Use
    from latentbench.interventions.intervention import Intervention
    from latentbench.study.context import ExperimentView


CHOSEN = "chosen"
"""Name of the chosen point in the `meta` of content that a sweep has chosen."""
USED = frozenset({"positions", "keep_norm", "dose", "auto"})
"""Fields of every method that say how it is used, and are newer than records."""


def parts_of(steering: Any) -> Iterator[Any]:
    """The methods that the `steering:` of a spec switches on: those of a stack, else itself; nothing for none."""
    if steering is None:
        return
    if (parts := getattr(steering, "parts", None)) is None:
        yield steering
    for part in parts or ():
        yield from parts_of(part)


def makers_of(steering: Any) -> Iterator[Any]:
    """The same methods, and those that the content of one of them is made by."""
    for part in parts_of(steering):
        yield part
        for source in part.sources:
            yield from makers_of(source)


def parsed_method(value: Any) -> Any:
    """The method that a map stands for; what is one already stays."""
    return _METHODS.read(value) if isinstance(value, dict) else value


_METHODS = Choice("methods", "method")


def of_part(context: StageContext, number: int) -> StageContext:
    """The same context with a key and a folder of its own, so that parts differ and keep their checkpoints apart."""
    return replace(context, key=digest("part", [context.key, number]), scratch=context.scratch / f"part{number}")


def longest_answer_of(methods: Iterable[SteeringMethod], roots: Roots) -> Longest | None:
    """The longest text that the model writes for one of them; None where it writes none."""
    asked = [longest for method in methods if (longest := method.longest_answer(roots))]
    return max(asked, key=lambda longest: longest.tokens, default=None)


def first_texts(experiment: ExperimentView, roots: Roots) -> Json:
    """What stands for the texts that lengths of hidden states are taken of: the first evaluation texts; None without any."""
    texts = next(iter(experiment.dataset.eval.values()), None)
    return None if texts is None else [texts.chosen_identity(roots), texts.skip, texts.documents]


class SteeringMethod(Subject):
    """Base of everything that `steering:` can name.

    What is *made* (vectors, an adapter) does not depend on how strongly and where it is then used: scales can be swept
    without training anew.

    A method states its options, which are read without torch, and names what makes its content as `implementation`; one
    that needs no torch may override `make` instead.
    """

    version: ClassVar[int] = 1
    implementation: ClassVar[str]
    """`module:function` that makes the content from the method and the stage's context."""
    of_use: ClassVar[frozenset[str]] = frozenset({"scale", "relative", "scope"})
    """Fields that say how the content is used, not what it is; those of `USED` are so too."""
    usable: ClassVar[bool] = True
    """Whether it can be used otherwise than at every token in scope alike; what is trained to be used so cannot."""
    measures_norms: ClassVar[bool] = False
    """Whether the residual stream's mean norm is measured on the cell's first evaluation texts."""
    newer: ClassVar[frozenset[str]] = USED
    """Fields that records may not know; where they say nothing they stand in no key."""
    swept: ClassVar[frozenset[str]] = frozenset(SWEPT)
    """Which of layers, dose and scale may be `auto`: layers only where each has its own part of the content (`content_of`)."""
    adds_vectors: ClassVar[bool] = True
    """Whether it steers by vectors that are the same at every token: what has a scale and a mechanism to be looked at."""
    of_sae: ClassVar[bool] = False
    """Whether its vectors are those of the cell's SAEs."""
    placed: ClassVar[bool] = False
    """Whether what it changes may be another hidden state of a block than its output."""

    method: str
    layers: Literal["all", "auto"] | Layer | tuple[Layer, ...] = "all"
    """Decoder blocks that get a vector, added to their output or at `place`: all, a number or a list; -1 is the last one. `auto`: the
    one that is chosen on selection data."""
    scale: float | Auto = 1.0
    """Factor of the vectors when they are used, or `auto`."""
    relative: bool = False
    """Whether `scale` is a fraction of the residual stream's mean norm instead of a factor of the vector itself. The norm
    is that of the texts the vectors were made from (training problems, negative texts), else of the first evaluation
    texts, so equal fractions of two methods are not equal lengths."""
    scope: Literal["all", "generated", "first", "prompt"] = "all"
    """Tokens that are changed: all, those that generated tokens are predicted from, the one that the first generated
    token is predicted from, or the rest of the prompt."""

    positions: Positions | None = None
    """Which tokens of the scope are changed, and whether less and less; default: all of them alike."""
    keep_norm: bool = False
    """Whether what is left at a changed token is rescaled to the length that the hidden state had, so that it only turns."""
    dose: float | Auto | None = None
    """Instead of a scale: the mean of ‖Δ‖/‖h‖ over ordinary tokens of the first evaluation texts, at every layer by itself
    (negative: the opposite direction), or `auto`. Vectors get the length that this takes; `steering_dose` measures what becomes of it, and `scales` of other metrics
    multiply it."""
    place: Place = OUTPUT
    """Which hidden state of each of these blocks is changed, and read where vectors are made of hidden states: its output, its
    input `resid_pre` (of block 0 the embedding), or what its attention (`attn_out`) or MLP (`mlp_out`) adds."""
    auto: SweepOptions | None = None
    """What is tried where layers, dose or scale are `auto`, and by what one of it is chosen."""

    @model_serializer(mode="wrap")
    def _as_before(self, made: SerializerFunctionWrapHandler) -> dict[str, Json]:
        """Fields that are newer than records are written where they say something, so that keys stay."""
        return without_default(type(self), self.newer | {"place"}, made(self))

    @model_validator(mode="after")
    def _used_as_made(self) -> Any:
        stated = [name for name in sorted(USED - {"auto"}) if name in self.stated_use()]
        if self.dose is not None and (self.scale != 1 or self.relative or not self.dose):
            raise ValueError("a dose other than 0 takes the place of `scale` and `relative`; leave these out")
        if self.dose is not None and self.usable and not self.adds_vectors:
            raise ValueError(f"`dose` is that of a vector; the method {self.method!r} adds none")
        if stated and not self.usable:
            raise ValueError(f"`{stated[0]}` is not for the method {self.method!r}, which has no such use")
        if self.place != OUTPUT and not self.placed:
            raise ValueError(f"`place` is not for the method {self.method!r}, which has a place of its own or none")
        if self.scope == "first" and self.positions is not None:
            raise ValueError("the scope `first` is one token, so there are no `positions` in it to choose from")
        return self

    @field_validator(*SWEPT)
    @classmethod
    def _may_be_auto(cls, value: Any, about: ValidationInfo) -> Any:
        if value == "auto" and about.field_name not in cls.swept:
            method = cls.model_fields["method"].default
            others = " or ".join(f"`{name}: auto`" for name in SWEPT if name in cls.swept)
            instead = f"state it, or write {others}" if others else "state it"
            raise ValueError(f"`{about.field_name}: auto` is not for the method {method!r}; {instead}")
        return value

    @model_validator(mode="after")
    def _found_by_sweep(self) -> Any:
        if self.found and self.auto is None:
            raise ValueError(f"`{self.found[0]}: auto` needs `auto: {{gain: …}}`, which says what is to be gained")
        if self.auto and not self.found:
            raise ValueError("`auto:` says what is tried; write `auto` for `layers`, `dose` or `scale` as well")
        if any(getattr(inner, "auto", None) for inner in (*getattr(self, "parts", ()), *self.sources)):
            raise ValueError(f"{self.method}: what it is made of is stated; `auto` is for methods that stand alone")
        return self

    @model_validator(mode="after")
    def _some_layer(self) -> Any:
        if isinstance(self.layers, tuple) and (not self.layers or len(set(self.layers)) != len(self.layers)):
            raise ValueError("layers must be a list of different numbers, at least one")
        return self

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        """What the content is made from: every field but those of use, and the content of what they name."""
        made = {name: value for name, value in self.plain().items() if name not in self.of_use | USED}
        if self.measures_norms and experiment.dataset.eval:
            # The norms are stored with the vectors, so other texts make other content, even where no scale is relative.
            made["norms_on"] = first_texts(experiment, roots)
        if self.dose is not None:  # which dose is use, but what it is told by is content
            made["dosed_on"] = {
                "texts": first_texts(experiment, roots),
                "token_rule": experiment.token_rule.plain(),
            }
        return made

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        if self.dose is None or experiment.dataset.eval:
            return ()
        return (f"{self.method}: a dose is told by evaluation texts, and there is no `dataset.eval`; add one",)

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        return f"{self.method} ({self._where()})"

    @property
    def found(self) -> tuple[str, ...]:
        """Fields that are `auto`."""
        return tuple(name for name in SWEPT if getattr(self, name) == "auto")

    @property
    def strengths(self) -> tuple[float | None, ...]:
        """Doses or scales that are tried; None where that is stated."""
        assert self.auto is not None
        by_name = {"dose": self.auto.doses, "scale": self.auto.scales}
        return next((by_name[name] for name in self.found if name in by_name), (None,))

    def candidates(self) -> Self:
        """The same as it makes what is tried: at all layers that may be chosen, for any dose."""
        if self.auto is None:
            return self
        stated = {"layers": self.auto.layers, "dose": 1.0, "scale": 1.0}
        return self.model_copy(update={"auto": None, **{name: stated[name] for name in self.found}})

    def at(self, layer: int | None, strength: float | None) -> Self:
        """The same at a point that is tried: a layer and a dose or scale, None for what is not `auto`."""
        now = {"layers": layer, "dose": strength, "scale": strength}
        return self.model_copy(update={"auto": None, **{name: now[name] for name in self.found}})

    def settled(self, content: Content) -> Self:
        """The same at the point that its content says was chosen; itself where nothing was to be chosen."""
        chosen = content.meta.get(CHOSEN)
        return self if self.auto is None or chosen is None else self.at(chosen["layer"], chosen["strength"])

    @property
    def sources(self) -> tuple[Any, ...]:
        """Methods that its own content is made by."""
        return ()

    def stated_use(self) -> tuple[str, ...]:
        """Fields of use that are not as they are by default."""
        fields = type(self).model_fields
        names = sorted(frozenset({"scale", "relative", "scope"}) | USED)
        return tuple(name for name in names if getattr(self, name) != fields[name].default)

    def use(self) -> Use:
        """How the content is used besides its scale and scope."""
        from latentbench.interventions.changes import Use
        from latentbench.interventions.places import EVERYWHERE

        return Use(self.positions.places() if self.positions else EVERYWHERE, self.keep_norm)

    def chosen(self, blocks: int) -> tuple[int, ...]:
        """Block numbers that `layers` means in a model of that many. Raises InvalidInput for one it does not have."""
        if isinstance(self.layers, str):
            return tuple(range(blocks))
        asked = (self.layers,) if isinstance(self.layers, int) else self.layers
        found = {number for layer in asked if (number := block_number(layer, blocks)) is not None}
        if len(found) < len(asked):  # also where -1 and the last number, say, are one block
            raise InvalidInput(
                f"steering layers {self.layers}: the model has {blocks} blocks, numbered 0 to {blocks - 1}"
            )
        return tuple(sorted(found))

    @property
    def control(self) -> str | None:
        """What it is as a control for other cells, in words: `random vectors`; None where it is none."""
        return None

    def make(self, context: StageContext) -> Content:
        """What `implementation` makes. Raises NotAvailable where that cannot be imported."""
        made: Content = implementation(self.implementation)(self, context)
        return self.dosed(made, context)

    def dosed(self, made: Content, context: StageContext) -> Content:
        """Vectors with what a dose is told by, where one is asked for."""
        if self.dose is None:
            return made
        from latentbench.steering.ordinary import with_inverse_lengths

        return with_inverse_lengths(made, context)

    def read(self, content: Content, context: StageContext) -> Intervention:
        """The content as something that can be switched on."""
        from latentbench.interventions.injection import VectorInjection
        from latentbench.steering.build import at_dose, vectors_of

        vectors = vectors_of(content, context)
        vectors = vectors if self.dose is None else at_dose(vectors, float(self.dose), content)
        return VectorInjection(vectors, self.factor, self.scope, self.relative, self.use())

    @property
    def factor(self) -> float:
        """`scale` as a number, which it is wherever content is read: a point has been chosen then."""
        return float(self.scale)

    def _where(self) -> str:
        return (
            f"{self.layers} layers"
            if isinstance(self.layers, str)
            else f"layers {self.layers}".replace("(", "").replace(")", "")
        )
