"""What an adapter changes in the UNet, as low-rank factors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from cdiff.adapter import Adapter, match_unet
from cdiff.export.low_rank import LowRank, truncate

if TYPE_CHECKING:
    from cdiff.models import Base


def weight_differences(base: Base, adapter: Adapter) -> dict[str, Tensor]:
    """parameter name -> W - W0 in fp32 on the CPU; `base` is in fp32 and untouched."""
    names = {id(parameter): name for name, parameter in base.unet.named_parameters()}
    return {
        names[id(parameter)]: value.float().cpu() - parameter.detach().float().cpu()
        for parameter, value in match_unet(base.unet, adapter)
    }


def low_rank(base: Base, adapter: Adapter, rank: int | None, tolerance: float | None) -> LowRank:
    """The adapter's changes at a rank. A run of method=lora keeps its own matrices unless another rank is asked for."""
    if adapter.kind == "lora" and rank is None and tolerance is None:
        match_unet(base.unet, adapter)  # refuses a LoRA of another base
        return own_factors(adapter)
    return truncate(weight_differences(base, adapter), rank, tolerance)


def own_factors(adapter: Adapter) -> LowRank:
    """A trained LoRA as it is."""
    layers = {}
    for name, down in adapter.unet.items():
        if name.endswith(".lora.down.weight"):
            stem = name.removesuffix(".lora.down.weight")
            layers[stem.removeprefix("unet.")] = (down.float(), adapter.unet[f"{stem}.lora.up.weight"].float())
    return LowRank(layers, dict.fromkeys(layers, 0.0), max(down.shape[0] for down, _ in layers.values()))
