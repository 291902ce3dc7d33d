"""What trains: each method picks parameters of the base, and knows how they are written to an adapter.

A method is a function `prepare(base, conf) -> Trainables`. The engine trains `parameters()` (and the token rows of
tokens.add_tokens), and knows nothing else of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdiff.errors import UserError
from cdiff.methods import custom_diffusion
from cdiff.methods.trainables import Trainables

if TYPE_CHECKING:
    from cdiff.models import Base
    from cdiff.schema import MethodConfig

METHODS = {
    "class_diffusion": custom_diffusion.prepare,
    "custom_diffusion": custom_diffusion.prepare,  # the same weights; ClassDiffusion adds a loss
}


def prepare(base: Base, conf: MethodConfig) -> Trainables:
    """Make the method's parameters of `base` trainable; every other parameter stays frozen, in its dtype."""
    if conf.name not in METHODS:
        raise UserError(f"method={conf.name} is not known: use {', '.join(METHODS)}.")
    return METHODS[conf.name](base, conf)


__all__ = ["METHODS", "Trainables", "prepare"]
