"""LoRA (arXiv 2106.09685) on the UNet's attention, by PEFT: each chosen W becomes W + alpha / rank * up @ down.

Saved under diffusers' names with the scale multiplied into `up`, so that every reader, whatever it takes alpha to be
without being told, gets the same update.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cdiff.adapter import lora_update
from cdiff.errors import UserError
from cdiff.methods.trainables import Trainables, train_in_fp32

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from cdiff.models import Base
    from cdiff.schema import MethodConfig


def prepare(base: Base, conf: MethodConfig) -> Trainables:
    """Add a LoRA to every layer that method.targets names; it starts as no change, since its `up` is zero.

    Raises:
        UserError: PEFT is not installed, or a target fits no layer.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise UserError("method=lora needs PEFT: run `pip install cdiff[lora]`.") from error
    layers = [name for name, module in base.unet.named_modules() if isinstance(module, nn.Linear)]
    for target in conf.targets:
        if not any(layer.endswith(f".{target}") for layer in layers):
            raise UserError(f"method.targets={target} fits no layer of the UNet of {base.path}.")
    alpha = conf.rank if conf.alpha is None else conf.alpha
    base.unet.requires_grad_(False)
    base.unet.add_adapter(
        LoraConfig(
            r=conf.rank,
            lora_alpha=alpha,  # LoraConfig's own type is int; PEFT divides it by r and nothing else
            target_modules=list(conf.targets),
            init_lora_weights="gaussian",
        )
    )
    named = {name: parameter for name, parameter in base.unet.named_parameters() if parameter.requires_grad}
    train_in_fp32(named.values())
    trainables = Trainables(
        named=named,
        state=lambda: lora_state(named, alpha / conf.rank),
        train_token=bool(conf.train_token),
    )
    trainables.undo.append(lambda: merge(base.unet, trainables))
    return trainables


def lora_state(named: dict[str, nn.Parameter], scale: float) -> dict[str, Tensor]:
    """PEFT's parameters under diffusers' names, the scale in `up`."""
    state = {}
    for name, parameter in named.items():
        layer, _, rest = name.partition(".lora_")
        if rest.startswith("A."):
            state[f"unet.{layer}.lora.down.weight"] = parameter
        else:
            state[f"unet.{layer}.lora.up.weight"] = parameter if scale == 1 else parameter * scale
    return state


@torch.no_grad()
def merge(unet: UNet2DConditionModel, trainables: Trainables) -> None:
    """Take PEFT's layers out and add what they learned to the weights, in the very steps of adapter.apply_adapter."""
    update = lora_update(trainables.unet_state())
    unet.unload_lora()
    for name, change in update.items():
        parameter = unet.get_parameter(name)
        parameter.copy_(parameter.float() + change.to(parameter.device))
