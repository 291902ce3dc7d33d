"""Transformer blocks of the UNet and of CLIP's text encoder: residual sums together with the norms behind them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import QuickGELUActivation
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from cdiff.fused.conditions import runs_on, trains
from cdiff.fused.joining import join, joined


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


class FusedCLIPEncoderLayer(CLIPEncoderLayer):
    """Queries, keys and values are one product, too, and quick GELU one pass."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **named: Any) -> Tensor:
        if not self._fits(hidden_states, attention_mask, named):
            return super().forward(hidden_states, attention_mask, **named)
        from cdiff.fused import kernels

        attention = self.self_attn
        weight, bias = (joined([getattr(own, kind) for own in projections(self)]) for kind in ("weight", "bias"))
        if weight is None or bias is None:
            return super().forward(hidden_states, attention_mask, **named)
        x, normed = add_norm(self.layer_norm1, hidden_states.contiguous(), None)
        rows = F.linear(normed, weight, bias).chunk(3, dim=-1)
        heads = [own.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for own in rows]
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        x, normed = add_norm(self.layer_norm2, x, attention.out_proj(mixed))
        inner = self.mlp.fc1(normed)
        quick = type(self.mlp.activation_fn) is QuickGELUActivation
        inner = kernels.quick_gelu(inner) if quick else self.mlp.activation_fn(inner)
        return x + self.mlp.fc2(inner)

    def _fits(self, x: Tensor, attention_mask: Tensor | None, named: dict[str, Any]) -> bool:
        return (
            x.ndim == 3
            and attention_mask is None  # a text without padding to be left out
            and named.get("is_causal") is True
            and not named.get("output_attentions")
            and not (self.training and self.self_attn.dropout)
            and all(type(own) is nn.Linear for own in projections(self))
            and norms_fit(x, self.layer_norm1)
            and not trains(self)
        )


def projections(layer: CLIPEncoderLayer) -> list[nn.Module]:
    """Of a text encoder's layer, in the order in which their weights are laid together."""
    return [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]


def lay_together(text_encoder: nn.Module) -> None:
    """Weights and biases that `FusedCLIPEncoderLayer` takes as one."""
    for layer in text_encoder.modules():
        if isinstance(layer, CLIPEncoderLayer):
            for kind in ("weight", "bias"):
                own = [getattr(projection, kind) for projection in projections(layer)]
                if None not in own and len({tensor.dtype for tensor in own}) == 1:
                    join(own, own[0].dtype)


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
