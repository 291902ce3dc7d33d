"""The small interface between a method and the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass
class Trainables:
    """What a method trains in the UNet. The new tokens' rows train beside it (`train_token`)."""

    named: dict[str, nn.Parameter]  # the UNet's own parameters, by its names; fp32 while training
    state: Callable[[], dict[str, Tensor]]
    train_token: bool = True
    undo: list[Callable[[], None]] = field(default_factory=list)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(self.named.values())

    def unet_state(self) -> dict[str, Tensor]:
        """The trained tensors under an adapter's names, fp32 copies on the CPU; for adapter.save_adapter."""
        return {name: tensor.detach().float().cpu().clone() for name, tensor in self.state().items()}

    def restore(self) -> None:
        """End of training: the stock attention processors, the base's dtype, nothing that asks for a gradient.

        The trained values stay in the UNet (rounded to the base's dtype: take `unet_state` first).
        """
        while self.undo:
            self.undo.pop()()
