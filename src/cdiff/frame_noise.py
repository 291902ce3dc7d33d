"""Noise that the frames of a clip have in common."""

from __future__ import annotations

import torch


def share_noise(own: torch.Tensor, common: torch.Tensor, share: float | torch.Tensor) -> torch.Tensor:
    """The mixed noise of PYoCo (arXiv 2305.10474, eq. 4), told by the share of the variance that is common.

    own (N, C, F, h, w) and common (N, C, 1, h, w) of unit variance -> (N, C, F, h, w) of unit variance, any two frames
    of which correlate by `share` (a number, or a tensor that broadcasts): 0 gives `own`, 1 the same noise in every
    frame. (The paper's alpha is the square root of share / (1 - share).)
    """
    return share**0.5 * common + (1 - share) ** 0.5 * own
