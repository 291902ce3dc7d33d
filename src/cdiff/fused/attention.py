"""diffusers' attention with fewer, larger products and a kernel for few keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from cdiff.fused.conditions import bare, runs_on, trains
from cdiff.fused.joining import join, joined
from cdiff.fused.sharing import SharedInput


class FusedAttention(Attention):
    """Self-attention: queries, keys and values are one product. Cross-attention: keys and values of all layers are one
    product (`SharedText`), and the kernel for few keys. What else a processor may do, it does itself."""

    shared: SharedText | None = None  # set by `share_text`

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> Tensor:
        if attention_mask is None and not cross_attention_kwargs and self._fits(hidden_states):
            if encoder_hidden_states is None:
                found = self._of_itself(hidden_states)
            else:
                found = self._of_text(hidden_states, encoder_hidden_states)
            if found is not None:
                return self.to_out[0](found)
        return super().forward(hidden_states, encoder_hidden_states, attention_mask, **cross_attention_kwargs)

    def _fits(self, x: Tensor) -> bool:
        return (
            runs_on(x)
            and x.ndim == 3
            and not torch.is_autocast_enabled(x.device.type)
            and start_is_detached(self) is not None
            and all(layer is None for layer in (self.spatial_norm, self.group_norm, self.norm_q, self.norm_k))
            and self.added_kv_proj_dim is None
            and not self.norm_cross
            and not self.residual_connection
            and self.rescale_output_factor == 1.0
            and not (self.training and self.dropout)
            and bare(self.to_q)
            and self.to_q.weight.dtype == x.dtype
            and self.to_out[0].weight.dtype == x.dtype
        )

    def _of_itself(self, x: Tensor) -> Tensor | None:
        layers = [self.to_q, self.to_k, self.to_v]
        if not all(bare(layer) for layer in layers):
            return None
        weights = [layer.weight for layer in layers]
        weight = None if trains(self) else joined(weights)
        return None if weight is None else self._mixed(*F.linear(x, weight).chunk(3, dim=-1))

    def _of_text(self, x: Tensor, text: Tensor) -> Tensor | None:
        found = None if self.shared is None or text.dtype != x.dtype else self.shared.of(self, text)
        if found is None:
            return None
        from cdiff.fused import kernels

        query, (key, value) = self.to_q(x), found
        # It is the backward pass that is faster.
        if key.requires_grad and kernels.few_enough(query, key, self.heads):
            return kernels.attend(query, key, value, self.heads)
        return self._mixed(query, key, value)

    def _mixed(self, *rows: Tensor) -> Tensor:
        """Queries, keys, values (B, N or L, inner) -> (B, N, inner)."""
        heads = [own.unflatten(-1, (self.heads, -1)).transpose(1, 2) for own in rows]
        return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


def start_is_detached(attention: Attention) -> bool | None:
    """Whether keys and values of a text's first position pass no gradient on; None of a processor that may do more."""
    processor = attention.processor
    if type(processor) is AttnProcessor2_0:
        return False
    return getattr(processor, "detach_start_token", None)


class SharedText(SharedInput):
    """Keys and values of a text (B, L, D) for all cross-attentions of a UNet: (B, L, inner) each."""

    def __init__(self, unet: ModelMixin, layers: Sequence[FusedAttention]) -> None:
        self.unet, self.layers = unet, list(layers)
        super().__init__(unet)

    def project(self, x: Tensor) -> dict[int, tuple[Tensor, Tensor]] | None:
        if torch.is_grad_enabled() and self.unet.is_gradient_checkpointing:
            return None  # a block that is computed again must find what it found the first time
        projections = [own for layer in self.layers for own in (layer.to_k, layer.to_v)]
        detached = {start_is_detached(layer) for layer in self.layers}
        if len(detached) > 1 or None in detached or not all(bare(own) for own in projections):
            return None
        weights = [own.weight for own in projections]
        weight = joined(weights)
        if weight is None or weight.shape[1] != x.shape[-1]:
            return None
        rows = _ProjectTogether.apply(x, weight, detached.pop(), *weights)
        pairs = zip(rows[::2], rows[1::2], strict=True)
        return {id(layer): pair for layer, pair in zip(self.layers, pairs, strict=True)}


class _ProjectTogether(torch.autograd.Function):
    """text (B, L, D) times each of `weights` (n_i, D), which `weight` holds together -> (B, L, n_i) each, in the text's
    precision whatever the weights are kept in."""

    @staticmethod
    def forward(ctx, text, weight, start_is_detached, *weights):
        weight = weight.to(text.dtype)
        ctx.save_for_backward(text, weight)
        ctx.start_is_detached, ctx.kept_in = start_is_detached, weights[0].dtype
        ctx.sizes = [len(own) for own in weights]
        return F.linear(text, weight).split(ctx.sizes, dim=-1)

    @staticmethod
    def backward(ctx, *grads):
        text, weight = ctx.saved_tensors
        grad = torch.cat(grads, dim=-1)
        if ctx.start_is_detached:
            grad[:, 0] = 0
        of_text = grad @ weight if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[3:]):
            return of_text, None, None, *[None] * len(ctx.sizes)
        of_weight = (grad.flatten(0, 1).mT @ text.flatten(0, 1)).to(ctx.kept_in)
        return of_text, None, None, *of_weight.split(ctx.sizes)


def share_text(unet: nn.Module) -> None:
    """Lay weights together, and let cross-attentions of the same text share their product."""
    layers = [layer for layer in unet.modules() if type(layer) is FusedAttention]
    for layer in layers:
        if not layer.is_cross_attention and _alike(own := [layer.to_q, layer.to_k, layer.to_v]):
            join([projection.weight for projection in own], own[0].weight.dtype)
    across = [layer for layer in layers if layer.is_cross_attention and layer.to_k is not None]
    projections = [own for layer in across for own in (layer.to_k, layer.to_v)]
    if not across or not _alike(projections):
        return
    join([own.weight for own in projections], projections[0].weight.dtype)
    shared = SharedText(unet, across)
    for layer in across:
        layer.shared = shared


def _alike(layers: Sequence[nn.Module]) -> bool:
    first = layers[0]
    return all(bare(own) and own.in_features == first.in_features for own in layers) and (
        len({own.weight.dtype for own in layers}) == 1
    )
