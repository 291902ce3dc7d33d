"""Guidance in one batch: its two halves are the same until they read their texts, and are computed once till then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cdiff.fused.attention import FusedAttention
from cdiff.fused.resnets import FusedResnetBlock2D


@contextmanager
def halves_at_once(unet: nn.Module) -> Iterator[None]:
    """While a pipeline hands the UNet the same latents twice, (2B, C, h, w) for the negative prompts and the prompts:
    the first residual block and the first self-attention, the dearest of all, work on one half. Of fused layers only,
    and not where the time embedding holds something of the text (SDXL)."""
    layers = _before_text(unet)
    for layer in layers:
        layer.forward = _of_one_half(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own again


def _before_text(unet: nn.Module) -> list[nn.Module]:
    first = unet.down_blocks[0]
    if getattr(unet, "add_embedding", None) is not None or getattr(unet, "class_embedding", None) is not None:
        return []
    if not getattr(first, "attentions", None) or not first.has_cross_attention:
        return []
    blocks = getattr(first.attentions[0], "transformer_blocks", None)
    if not blocks or blocks[0].only_cross_attention:
        return []
    layers = [first.resnets[0], blocks[0].attn1]
    fused = [type(layer) for layer in layers] == [FusedResnetBlock2D, FusedAttention]
    return layers if fused else []


def _of_one_half(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def of_both(x: Tensor, *others: Any, **named: Any) -> Tensor:
        both = len(x)

        def half(value: Any) -> Any:
            return value[: both // 2] if isinstance(value, Tensor) and len(value) == both else value

        found = forward(half(x), *map(half, others), **{name: half(value) for name, value in named.items()})
        return torch.cat([found, found])

    return of_both
