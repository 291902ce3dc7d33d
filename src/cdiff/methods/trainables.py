"""The small interface between a method and the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Trainables:
    """What a method trains in the UNet and the text encoder. New tokens' rows train beside it (`train_token`)."""

    named: dict[str, nn.Parameter]  # of the UNet, by its names; fp32 while training
    state: Callable[[], dict[str, Tensor]]  # the UNet's trained tensors as an adapter names them
    train_token: bool = True
    # Whether fp32 weights among half-precision ones need autocast to meet; it costs norms in fp32 and casts.
    needs_autocast: bool = True
    text: dict[str, nn.Parameter] = field(default_factory=dict)  # of the text encoder, by its names; fp32
    saved_dtype: torch.dtype = torch.float32  # of what is written
    undo: list[Callable[[], None]] = field(default_factory=list)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [*self.named.values(), *self.text.values()]

    def unet_state(self) -> dict[str, Tensor]:
        """The trained tensors under an adapter's names, copies on the CPU; for adapter.save_adapter."""
        return {name: self._copy(tensor) for name, tensor in self.state().items()}

    def text_encoder_state(self) -> dict[str, Tensor]:
        """The same of the text encoder; empty where it does not train."""
        return {name: self._copy(tensor) for name, tensor in self.text.items()}

    def _copy(self, tensor: Tensor) -> Tensor:
        exact = tensor.detach().float().cpu()
        copy = exact.to(self.saved_dtype, copy=True)
        return copy if copy.isfinite().all() else exact.clone()  # past fp16's range: kept as it is

    def restore(self) -> None:
        """End of training: the stock modules and processors, the base's dtype, nothing that asks for a gradient.

        The trained values stay in the base (rounded to its dtype: take `unet_state` first).
        """
        while self.undo:
            self.undo.pop()()


def train_in_fp32(parameters: Iterable[nn.Parameter]) -> None:
    """Make parameters trainable, in fp32: the optimiser's small steps vanish in half precision."""
    for parameter in parameters:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)


def freeze(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    """Undo `train_in_fp32`."""
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None
        parameter.data = parameter.data.to(dtype)
