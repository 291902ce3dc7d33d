"""A layer of transformers' CLIP text encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import QuickGELUActivation
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from cdiff.fused.blocks import add_norm, norms_fit
from cdiff.fused.conditions import trains
from cdiff.fused.joining import join, joined


class FusedCLIPEncoderLayer(CLIPEncoderLayer):
    """Residual sums together with the norms behind them; queries, keys and values are one product, quick GELU one
    pass."""

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
