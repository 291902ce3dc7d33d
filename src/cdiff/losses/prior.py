"""Prior preservation (DreamBooth, arXiv 2208.12242, equation 2)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def prior_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error (B, C, h, w) on images of the class, unmasked, in fp32."""
    return F.mse_loss(prediction.float(), target.float())
