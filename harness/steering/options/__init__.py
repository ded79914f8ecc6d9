"""What a `steering:` section can say. Importing this imports no torch."""

from harness.steering.options.base import SteeringMethod
from harness.steering.options.fixed import LoadMethod, NoSteering, PrefixMethod, RandomMethod, StackMethod
from harness.steering.options.found import ContrastiveMethod, SaeLatentMethod
from harness.steering.options.trained import LoraMethod, Optimizer, ReinforcedMethod, RlMethod

__all__ = [
    "ContrastiveMethod",
    "LoadMethod",
    "LoraMethod",
    "NoSteering",
    "Optimizer",
    "PrefixMethod",
    "RandomMethod",
    "ReinforcedMethod",
    "RlMethod",
    "SaeLatentMethod",
    "StackMethod",
    "SteeringMethod",
]
