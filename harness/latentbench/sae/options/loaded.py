"""`load:` in place of a variant, and `base:` for variants that start from another SAE."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter

from latentbench.registry import Choice
from latentbench.section import Section
from latentbench_adapters.protocols import SaeSource


class LoadedSae(Section):
    """An SAE that was trained elsewhere."""

    load: Annotated[SaeSource, Choice("sources", "adapter")]
    """Where it comes from."""

    def at(self, block: int) -> LoadedSae:
        """Itself with `{layer}` in every text replaced by the number of a block."""
        named = {
            name: value.replace("{layer}", str(block))
            for name in type(self.load).model_fields
            if isinstance(value := getattr(self.load, name), str)
        }
        return self.model_copy(update={"load": self.load.model_copy(update=named)})


def _section(value: Any) -> Any:
    """The section that a map stands for; what is wrong in it is reported at its place in the spec."""
    if isinstance(value, Section):
        return value
    if not isinstance(value, dict):
        raise ValueError("must be an SAE: {variant: …} or {load: …}")
    # Built when first used: the variants that have a base are themselves among the choices.
    choice = TypeAdapter[Any](Annotated[Any, Choice("variants", "variant", load=LoadedSae)])
    return choice.validate_json(json.dumps(value), strict=True)


Base = Annotated[Any, BeforeValidator(_section)]
"""An SAE to start from: a section as under `sae:`, `{variant: …}` or `{load: …}`."""
