"""What trains: each method picks parameters of the base, and knows how they are written to an adapter.

A method is a function `prepare(base, conf) -> Trainables`. The engine trains `trainable_parameters()` (and the token
rows of tokens.add_tokens), and knows nothing else of it. Losses are no part of a method: any of them may carry SPL.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cdiff.errors import UserError
from cdiff.methods import custom_diffusion, dreambooth, lora
from cdiff.methods.trainables import Trainables

if TYPE_CHECKING:
    from cdiff.models import Base
    from cdiff.schema import MethodConfig

METHODS = {
    "class_diffusion": custom_diffusion.prepare,
    "custom_diffusion": custom_diffusion.prepare,  # the same weights; ClassDiffusion adds a loss
    "textual_inversion": custom_diffusion.prepare,  # method.train_unet=none: the token alone (arXiv 2208.01618)
    "dreambooth": dreambooth.prepare,
    "lora": lora.prepare,
}


def prepare(base: Base, conf: MethodConfig, spl_weight: float = 0.0) -> Trainables:
    """Make the method's parameters of `base` trainable; every other parameter stays frozen, in its dtype.

    spl_weight: of the losses (LossConfig); where `train_token` is null, it decides whether the new tokens train.
    """
    if conf.name not in METHODS:
        raise UserError(f"method={conf.name} is not known: use {', '.join(METHODS)}.")
    return METHODS[conf.name](base, replace(conf, train_token=conf.trains_token(spl_weight)))


__all__ = ["METHODS", "Trainables", "prepare"]
