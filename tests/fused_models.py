"""Small models with the layers that `cdiff.fused` knows, and what the tests of it share."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import nn

KV = ("attn2.to_k.weight", "attn2.to_v.weight")


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


def scattered(model: nn.Module) -> nn.Module:
    """Norms as trained ones are, not all of weight 1 and bias 0; frozen."""
    for layer in model.modules():
        if isinstance(layer, (nn.GroupNorm, nn.LayerNorm)):
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_(std=0.2)
    return model.requires_grad_(False).eval()


def tiny_unet(linear: bool = False) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=2,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=4, use_linear_projection=linear,
    )  # fmt: skip
    return scattered(unet).to(memory_format=torch.channels_last)


def text_of(seed: int = 0, images: int = 2) -> torch.Tensor:
    return torch.randn(images, 5, 16, generator=torch.Generator().manual_seed(seed + 100))


def call(unet: UNet2DConditionModel, seed: int = 0, text: torch.Tensor | None = None) -> torch.Tensor:
    noisy = torch.randn(2, 4, 6, 4, generator=torch.Generator().manual_seed(seed))
    text = text_of(seed) if text is None else text
    return unet(noisy.to(memory_format=torch.channels_last), torch.tensor([3, 700]), text, return_dict=False)[0]


def train_keys_and_values(unet: UNet2DConditionModel) -> dict[str, nn.Parameter]:
    """As Custom Diffusion does; what trains, by name."""
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(name.endswith(KV))
    return {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}
