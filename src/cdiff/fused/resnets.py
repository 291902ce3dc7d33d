"""diffusers' residual block, and the time embedding that all of them add."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from cdiff.fused.conditions import runs_on, trains
from cdiff.fused.images import as_image, as_rows, norm_of
from cdiff.fused.joining import join, joined
from cdiff.fused.sharing import SharedInput


class FusedResnetBlock2D(ResnetBlock2D):
    """The biases of both convolutions, the time embedding and the residual are added by the kernels before and behind,
    which read those tensors anyway."""

    shared: SharedTime | None = None  # set by `share_time`

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *args, **kwargs) -> Tensor:
        if not self._fits(input_tensor, temb):
            return super().forward(input_tensor, temb, *args, **kwargs)
        from cdiff.fused import kernels

        x = input_tensor.contiguous(memory_format=torch.channels_last)
        x, hidden = norm_of(self.norm1, x, None, silu=True)
        hidden = _convolved(self.conv1, hidden)
        hidden = _convolved(self.conv2, norm_of(self.norm2, hidden, self._shift(x, temb), silu=True)[1])
        bias = self.conv2.bias
        if self.conv_shortcut is not None:
            x, bias = _convolved(self.conv_shortcut, x), bias + self.conv_shortcut.bias
        if x.dtype != hidden.dtype:  # autocast
            return x + hidden + bias[:, None, None]
        return as_image(kernels.add_biased(as_rows(x), as_rows(hidden), bias), x)

    def _shift(self, x: Tensor, temb: Tensor | None) -> Tensor:
        """What is added to every pixel between the convolutions (N, C)."""
        if temb is None:
            return self.conv1.bias.expand(len(x), -1)
        shift = None if self.shared is None else self.shared.of(self, temb)
        if shift is not None:
            return shift
        return self.conv1.bias + self.time_emb_proj(temb if self.skip_time_act else F.silu(temb))

    def _fits(self, x: Tensor, temb: Tensor | None) -> bool:
        convolutions = [self.conv1, self.conv2] + ([self.conv_shortcut] if self.conv_shortcut is not None else [])
        return (
            runs_on(x)
            and self.upsample is None
            and self.downsample is None
            and self.time_embedding_norm == "default"
            and isinstance(self.nonlinearity, nn.SiLU)
            and self.output_scale_factor == 1.0
            and not (self.training and self.dropout.p)
            and (temb is None) == (self.time_emb_proj is None)
            and all(type(layer) is nn.Conv2d and layer.bias is not None for layer in convolutions)
            and not (trains(self) or (temb is not None and temb.requires_grad))
        )


class SharedTime(SharedInput):
    """What all residual blocks of a UNet add of the time embedding (N, D), with the bias before it: (N, C) each."""

    def __init__(self, unet: nn.Module, layers: Sequence[FusedResnetBlock2D]) -> None:
        self.layers = list(layers)
        super().__init__(unet)

    def project(self, x: Tensor) -> dict[int, Tensor] | None:
        if not all(_projects(layer) for layer in self.layers) or torch.is_autocast_enabled(x.device.type):
            return None
        tensors = [joined(own) for own in _of_time(self.layers)]
        if any(own is None or own.dtype != x.dtype for own in tensors):
            return None
        weight, bias, before = tensors
        found = F.linear(F.silu(x), weight, bias + before).split([len(own.conv1.bias) for own in self.layers], dim=-1)
        return {id(layer): own for layer, own in zip(self.layers, found, strict=True)}


def share_time(unet: nn.Module) -> None:
    """Lay the blocks' weights for the time embedding together, and let them share its product."""
    layers = [layer for layer in unet.modules() if type(layer) is FusedResnetBlock2D]
    if not layers or not all(_projects(layer) for layer in layers):
        return
    if len({(layer.time_emb_proj.in_features, layer.time_emb_proj.weight.dtype) for layer in layers}) > 1:
        return
    for tensors in _of_time(layers):
        join(tensors, tensors[0].dtype)
    shared = SharedTime(unet, layers)
    for layer in layers:
        layer.shared = shared


def _projects(layer: FusedResnetBlock2D) -> bool:
    """Whether it has the usual projection, that nothing has wrapped."""
    projection = layer.time_emb_proj
    usual = type(projection) is nn.Linear and projection.bias is not None and type(layer.conv1) is nn.Conv2d
    return usual and layer.conv1.bias is not None and not layer.skip_time_act


def _of_time(layers: Sequence[FusedResnetBlock2D]) -> list[list[nn.Parameter]]:
    """Weights and biases of the projections, and the biases before them."""
    projections = [layer.time_emb_proj for layer in layers]
    return [[own.weight for own in projections], [own.bias for own in projections], [own.conv1.bias for own in layers]]


def _convolved(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, None, layer.stride, layer.padding)
