"""Products of one input that many layers of a model have, computed together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class SharedInput(ABC):
    """What all layers make of an input, computed by the first one that asks in a call of the model.

    Forgotten before each call and after it: weights may change between, and the next input may lie in the same place.
    """

    def __init__(self, model: nn.Module) -> None:
        self.forget()
        model.register_forward_pre_hook(self.forget)
        model.register_forward_hook(self.forget)

    def forget(self, *_called: Any) -> None:
        self.input: Tensor | None = None
        self.found: dict[int, Any] | None = None

    def of(self, layer: nn.Module, x: Tensor) -> Any | None:
        """A layer's own; None where the layers' weights can't be one product."""
        if self.input is not x:
            self.input, self.found = x, self.project(x)
        return None if self.found is None else self.found.get(id(layer))

    @abstractmethod
    def project(self, x: Tensor) -> dict[int, Any] | None:
        """By the layers' ids."""


def stop_sharing(model: nn.Module) -> None:
    """No layer asks any longer."""
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), SharedInput):
                del hooks[key]
    for layer in model.modules():
        layer.__dict__.pop("shared", None)
