"""diffusers' transformer block: residual sums together with the norms behind them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from cdiff.fused.conditions import runs_on, trains


class FusedBasicTransformerBlock(BasicTransformerBlock):
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        masks = (attention_mask, encoder_attention_mask)
        if cross_attention_kwargs or any(mask is not None for mask in masks) or not self._fits(hidden_states):
            return super().forward(
                hidden_states,
                attention_mask=attention_mask,
                encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                timestep=timestep,
                cross_attention_kwargs=cross_attention_kwargs,
                class_labels=class_labels,
                added_cond_kwargs=added_cond_kwargs,
            )
        x, normed = add_norm(self.norm1, hidden_states.contiguous(), None)
        own_text = encoder_hidden_states if self.only_cross_attention else None
        x, normed = add_norm(self.norm2, x, self.attn1(normed, encoder_hidden_states=own_text))
        x, normed = add_norm(self.norm3, x, self.attn2(normed, encoder_hidden_states=encoder_hidden_states))
        return self.ff(normed) + x

    def _fits(self, x: Tensor) -> bool:
        return (
            x.ndim == 3
            and self.norm_type == "layer_norm"
            and self.attn2 is not None
            and self.pos_embed is None
            and self._chunk_size is None
            and all(norms_fit(x, norm) for norm in (self.norm1, self.norm2, self.norm3))
        )


def norms_fit(x: Tensor, norm: nn.Module) -> bool:
    return (
        runs_on(x)
        and type(norm) is nn.LayerNorm
        and norm.weight is not None
        and norm.bias is not None
        and not trains(norm)
        and not torch.is_autocast_enabled(x.device.type)  # it would have the norm in fp32
    )


def add_norm(norm: nn.LayerNorm, x: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
    """x + added, and its norm; added None: x itself."""
    from cdiff.fused import kernels

    return kernels.add_layer_norm(x, None if added is None else added.contiguous(), norm.weight, norm.bias, norm.eps)
