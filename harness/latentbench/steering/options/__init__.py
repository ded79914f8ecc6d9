"""What a `steering:` section can say. Importing this imports no torch."""

from latentbench.steering.options.base import SteeringMethod
from latentbench.steering.options.fixed import LoadMethod, NoSteering, PrefixMethod, RandomMethod, StackMethod
from latentbench.steering.options.found import ContrastiveMethod, SaeLatentMethod
from latentbench.steering.options.trained import LoraMethod, Optimizer, ReinforcedMethod, RlMethod

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
