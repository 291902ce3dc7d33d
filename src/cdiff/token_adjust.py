"""Test-time embedding adjustment (TEA, arXiv 2506.22685): a trained token is turned back towards its class word.

No training: at sampling the token's embedding v goes by spherical interpolation to the class word's embedding c, by
the share alpha of the angle between them, and gets the norm beta * |c|. alpha 0 without beta leaves v as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cdiff.adapter import Adapter, apply_adapter
from cdiff.errors import UserError

if TYPE_CHECKING:
    from cdiff.models import Base
    from cdiff.schema import TokenAdjustConfig

PARALLEL = 1e-9  # sine of an angle below which two directions span no plane


def adjusted(vector: Tensor, towards: Tensor, alpha: float, beta: float | None = None) -> Tensor:
    """`vector` (D,) turned by the share `alpha` of its angle to `towards` (D,), in the dtype of `vector`.

    The norm is `beta` times that of `towards`, or with beta None that of `vector`, as it was.
    """
    if alpha == 0 and beta is None:
        return vector
    v, c = vector.double(), towards.double()
    size = v.norm() if beta is None else beta * c.norm()
    return (size * slerp(v, c, alpha)).to(vector.dtype)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The unit vector on the way from a's direction (0) to b's (1), both (D,). Opposite directions span no plane: one
    is chosen. A zero vector has no direction: the other's is taken."""
    if not a.any() or not b.any():
        found = b if not a.any() else a
        return found / found.norm().clamp(min=torch.finfo(found.dtype).tiny)
    a, b = a / a.norm(), b / b.norm()
    along = torch.dot(a, b)
    across = b - along * a
    sine = across.norm()
    if sine < PARALLEL:
        across = torch.zeros_like(a)
        across[a.abs().argmin()] = 1.0
        across = across - torch.dot(across, a) * a
    angle = share * torch.atan2(sine if sine >= PARALLEL else torch.zeros_like(sine), along)
    return torch.cos(angle) * a + torch.sin(angle) * across / across.norm()


def class_vector(base: Base, class_word: str) -> Tensor:
    """The embedding of the class word in the base's own table, (D,) fp32; of several tokens their mean; of several
    text encoders all of them, joined."""
    parts = []
    for tokenizer, text_encoder in base.encoders:
        ids = tokenizer(class_word, add_special_tokens=False).input_ids
        if not ids or tokenizer.unk_token_id in ids:
            raise UserError(
                f"sampler.token_adjust: the class word '{class_word}' is not in the base model's vocabulary."
            )
        table = text_encoder.get_input_embeddings().weight
        parts.append(table[torch.tensor(ids, device=table.device)].detach().float().mean(dim=0))
    return torch.cat(parts)


def adjust_tokens(
    base: Base, vectors: Mapping[str, Tensor], class_words: Mapping[str, str], conf: TokenAdjustConfig
) -> dict[str, Tensor]:
    """The tokens' vectors {"<new1>": (D,)} as they are to be sampled with; always from the trained ones.

    Raises:
        UserError: a token whose class word is not known, or not in the vocabulary.
    """
    if conf.alpha == 0 and conf.beta is None:
        return dict(vectors)
    found = {}
    for token, vector in vectors.items():
        if not class_words.get(token):
            raise UserError(
                f"sampler.token_adjust needs the class word of {token}, which its adapter does not tell; "
                "sample without it, or name class_word in adapter.json."
            )
        towards = class_vector(base, class_words[token]).to(vector.device)
        pairs = zip(vector.detach().split(base.token_widths), towards.split(base.token_widths), strict=True)
        found[token] = torch.cat([adjusted(own, word, conf.alpha, conf.beta) for own, word in pairs])
    return found


def apply_for_sampling(base: Base, adapter: Adapter, conf: TokenAdjustConfig) -> None:
    """`apply_adapter` with its tokens adjusted: what every task that draws with a finished run calls."""
    words = {concept["token"]: concept.get("class_word", "") for concept in adapter.info.get("concepts", [])}
    apply_adapter(base, replace(adapter, tokens=adjust_tokens(base, adapter.tokens, words, conf)))
