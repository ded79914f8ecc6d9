"""A lexical rule as a sentence."""

from __future__ import annotations

from latentbench_adapters.judges.evidence import Evidence

_NAMED = 6
_WORDS = {
    "token": "on {}",
    "word": "on {}, however written",
    "shape": "on tokens shaped like {}",
    "before": "right after {}",
    "pair": "on the end of {}",
    "earlier": "some tokens after {}",
}
_FEWEST = 1.0
"""Evidence below which a feature is not worth naming."""


def sentence(evidence: Evidence, pooled: str) -> str:
    """Names the features that speak most for the latent, with how often they were active among all they were seen."""
    parts = [text for kind, template in _WORDS.items() if (text := _part(evidence, kind, template))]
    if not parts:
        return "No token or short context stands out."
    often = "" if pooled == "max" else " often in texts with it"
    return f"Fires{often} {'; '.join(parts)}."


def _part(evidence: Evidence, kind: str, template: str) -> str:
    strong = [(weight, feature) for feature, weight in evidence.weights.items() if feature[0] == kind]
    named = sorted((pair for pair in strong if pair[0] >= _FEWEST), key=lambda pair: (-pair[0], pair[1]))[:_NAMED]
    return template.format(", ".join(_named(evidence, feature) for _, feature in named)) if named else ""


def _named(evidence: Evidence, feature: tuple[str, str]) -> str:
    active = evidence.counts[True][feature]
    return f"{feature[1]!r} ({active} of {active + evidence.counts[False][feature]})"
