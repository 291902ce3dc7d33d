"""Custom Diffusion (arXiv 2212.04488), and ClassDiffusion (arXiv 2405.17532), which trains the same weights.

Keys and values of every cross-attention layer train; `crossattn` trains queries and outputs too. With `none` the new
token trains alone, which is Textual Inversion (arXiv 2208.01618).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdiff.adapter import adapter_name
from cdiff.errors import UserError
from cdiff.fused.joining import join
from cdiff.methods.trainables import Trainables, freeze, train_in_fp32

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention

    from cdiff.models import Base
    from cdiff.schema import MethodConfig

SELECTIONS = {
    "crossattn_kv": r"\.attn2\.to_[kv]\.weight$",
    "crossattn": r"\.attn2\.(to_[qkv]\.weight|to_out\.0\.(weight|bias))$",
    "none": r"(?!)",  # nothing: the token trains alone
}


def prepare(base: Base, conf: MethodConfig) -> Trainables:
    """Select the cross-attention weights, make them fp32 and trainable, and set the training attention on attn2.

    Raises:
        UserError: an unknown method.train_unet, or nothing left to train.
    """
    if conf.train_unet not in SELECTIONS:
        raise UserError(f"method.train_unet={conf.train_unet} is not known: use {', '.join(SELECTIONS)}.")
    named = select(base.unet, conf.train_unet)
    if not named and not conf.train_token:
        raise UserError("nothing would train: method.train_unet=none needs method.train_token=true.")
    base.unet.requires_grad_(False)
    train_in_fp32(named.values())
    join(list(named.values()), torch.float32)
    trainables = Trainables(
        named=named,
        state=lambda: {adapter_name(name): parameter for name, parameter in named.items()},
        train_token=bool(conf.train_token),
        needs_autocast=False,
    )
    trainables.undo.append(lambda: join(list(named.values()), base.dtype))
    trainables.undo.append(lambda: freeze(named.values(), base.dtype))
    trainables.undo.append(set_training_attention(base.unet, conf.detach_start_token))
    return trainables


def select(unet: nn.Module, train_unet: str) -> dict[str, nn.Parameter]:
    """The UNet's parameters of one selection, by name."""
    pattern = re.compile(SELECTIONS[train_unet])
    return {name: parameter for name, parameter in unet.named_parameters() if pattern.search(name)}


def set_training_attention(unet: UNet2DConditionModel, detach_start_token: bool):
    """Give every attn2 layer the training attention; returns the function that puts the old processors back."""
    layers = [module for name, module in unet.named_modules() if name.endswith(".attn2")]
    before = [layer.processor for layer in layers]

    def put_back() -> None:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)

    for layer in layers:
        layer.set_processor(TrainingAttention(detach_start_token))
    return put_back


class TrainingAttention:
    """Cross-attention whose output is the stock processor's, with two differences for training.

    K and V of text position 0 (the start token, the same for every prompt) carry no gradient, as in Custom
    Diffusion's code. And weights may be fp32 inside a half-precision UNet, with autocast or without: the products are
    in the UNet's precision.
    """

    def __init__(self, detach_start_token: bool = True) -> None:
        self.detach_start_token = detach_start_token

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """hidden_states (B, N, inner), encoder_hidden_states (B, L, D) -> (B, N, inner)."""
        batch = hidden_states.shape[0]
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attn.norm_cross:
            text = attn.norm_encoder_hidden_states(text)

        query = _project(attn.to_q, hidden_states)
        key = _project(attn.to_k, text).to(query.dtype)
        value = _project(attn.to_v, text).to(query.dtype)
        if self.detach_start_token and torch.is_grad_enabled():
            key, value = _detach_first(key), _detach_first(value)

        heads = [x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value)]  # (B, H, N or L, d)
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, text.shape[1], batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=attention_mask)
        mixed = mixed.transpose(1, 2).flatten(2).to(query.dtype)

        output = attn.to_out[1](_project(attn.to_out[0], mixed))
        if attn.residual_connection:
            output = output + hidden_states
        return output / attn.rescale_output_factor


def _project(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer in the dtype of x (or of autocast), whatever its weight is kept in."""
    if torch.is_autocast_enabled(x.device.type) or layer.weight.dtype == x.dtype:
        return layer(x)
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return F.linear(x, layer.weight.to(x.dtype), bias)


def _detach_first(x: Tensor) -> Tensor:
    """x (B, L, D) with no gradient through position 0."""
    return torch.cat([x[:, :1].detach(), x[:, 1:]], dim=1)
