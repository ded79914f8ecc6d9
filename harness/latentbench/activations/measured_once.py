"""What is found out about a loaded model by running it: measured when it is first asked for, in passes nobody else sees."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from latentbench.core.protocols import LanguageModel

P = ParamSpec("P")
T = TypeVar("T")
Model = TypeVar("Model", bound=nn.Module | LanguageModel)


def once_per_model(measured: Callable[Concatenate[Model, P], T]) -> Callable[Concatenate[Model, P], T]:
    """A function of a loaded model, and of arguments with a hash, that is run once for each of them.

    It is run without gradients and `without_hooks`. What it raises is raised, and nothing is remembered of it. Its other
    arguments are kept as long as the model lives, so none may hold the model itself.
    """
    # By the model itself, weakly: what was found out about a model must not keep its weights in memory.
    known: WeakKeyDictionary[nn.Module, dict[Hashable, T]] = WeakKeyDictionary()

    @wraps(measured)
    def asked(model: Model, /, *args: P.args, **kwargs: P.kwargs) -> T:
        module = model.model if isinstance(model, LanguageModel) else model
        found, key = known.setdefault(module, {}), (args, *sorted(kwargs.items()))
        if key not in found:
            with torch.no_grad(), without_hooks(module):
                found[key] = measured(model, *args, **kwargs)
        return found[key]

    return asked


@contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """While open, the model is in evaluation mode and nobody's hooks are called: these passes are in no one's receipt."""
    # The dictionaries of hooks are exchanged and not emptied: others' handles refer to the dictionary they registered in, so
    # they can still be removed afterwards. Dropout would make two passes differ that are to be compared.
    before = [(part, part.training, part._forward_pre_hooks, part._forward_hooks) for part in model.modules()]
    try:
        for part, *_ in before:
            part.training = False
            part._forward_pre_hooks, part._forward_hooks = OrderedDict(), OrderedDict()
        yield
    finally:
        for part, training, pre_hooks, hooks in before:
            part.training, part._forward_pre_hooks, part._forward_hooks = training, pre_hooks, hooks
