"""DreamBooth (arXiv 2208.12242): the whole UNet trains, and on request the text encoder.

The identifier is the concept's new token, which starts from a rare word's embedding. As published it does not train
by itself: it moves with the text encoder, or where the semantic preservation loss asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdiff.errors import UserError
from cdiff.methods.trainables import Trainables, freeze, train_in_fp32
from cdiff.models import DTYPES

if TYPE_CHECKING:
    from torch import nn

    from cdiff.models import Base
    from cdiff.schema import MethodConfig


def prepare(base: Base, conf: MethodConfig) -> Trainables:
    """Make every parameter of the UNet trainable, as fp32 master weights for autocast to round; the text encoder's
    too with method.train_text_encoder, but for its table of words: of that, only the new tokens' rows train.

    Raises:
        UserError: the text encoder of a base that has two.
    """
    if conf.train_text_encoder and base.is_sdxl:
        raise UserError("method.train_text_encoder=true is for bases with one text encoder, and this one has two.")
    named = dict(base.unet.named_parameters())
    text = text_parameters(base.text_encoder) if conf.train_text_encoder else {}
    for parameters in (named, text):
        train_in_fp32(parameters.values())
    trainables = Trainables(
        named=named,
        state=lambda: dict(named),
        train_token=bool(conf.train_token),
        text=text,
        saved_dtype=DTYPES[conf.save_precision],
    )
    trainables.undo.append(lambda: freeze(trainables.trainable_parameters(), base.dtype))
    return trainables


def text_parameters(text_encoder: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters of the text encoder but the table of words."""
    table = text_encoder.get_input_embeddings().weight
    return {name: parameter for name, parameter in text_encoder.named_parameters() if parameter is not table}
