"""`positions:` of a steering method: which tokens of its scope are changed, and how strongly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PositiveInt, model_validator

from latentbench.core.spec_model import SpecModel

if TYPE_CHECKING:
    from latentbench.interventions.places import Places


class Positions(SpecModel):
    """Tokens of a scope by number, from 0 on and without padding.

    Number 0 is the first token in scope: of `all` and `prompt` the first of the text, of `generated` the last of the prompt,
    from which the first generated token is predicted. With `after` it is the token that completes that text.
    """

    first: PositiveInt | None = None
    """Only so many tokens; default: all."""
    listed: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=1000)] = ()
    """Only the tokens with these numbers; default: all."""
    after: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """Only tokens that predict what follows the first occurrence of this text, e.g. `</think>`; with the scope `generated` the
    first among the generated tokens. Nothing is changed in a text without it."""
    decay: PositiveInt | None = None
    """The strength falls linearly from 1 at number 0 to 0 at this number; default: it is 1 at all of them."""

    @model_validator(mode="after")
    def _one_choice(self) -> Any:
        if self == Positions.model_construct():
            raise ValueError("positions must state `first`, `listed`, `after` or `decay`")
        if self.first is not None and self.listed:
            raise ValueError("state either `first` or `listed`")
        if len(set(self.listed)) != len(self.listed):
            raise ValueError("`listed` must hold different numbers")
        if self.decay is not None and self.listed and min(self.listed) >= self.decay:
            raise ValueError(f"nothing is left of the strength at the numbers listed: it is 0 from {self.decay} on")
        return self

    def places(self) -> Places:
        """What finds these tokens."""
        from latentbench.interventions.places import Places

        return Places(self.first, self.listed or None, self.after, self.decay)
