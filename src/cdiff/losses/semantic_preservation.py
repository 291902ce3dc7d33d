"""The semantic preservation loss of ClassDiffusion (arXiv 2405.17532)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def phrases(token: str, class_word: str) -> tuple[str, str]:
    """The two phrases that SPL compares: the personalised one, and that of the class."""
    return f"a photo of a {token} {class_word}", f"a photo of a {class_word}"


def semantic_preservation_loss(concept_features: Tensor, class_features: Tensor) -> Tensor:
    """mean_i [ 1 - cos(f("a photo of a <new_i> CLS_i"), f("a photo of a CLS_i")) ], in fp32.

    Both (concepts, D), f the text encoder's feature after the final layer norm (see tokens.feature_positions). The
    class side holds no trained token; it is treated as a constant.
    """
    cosine = F.cosine_similarity(concept_features.float(), class_features.detach().float(), dim=-1)
    return (1.0 - cosine).mean()
