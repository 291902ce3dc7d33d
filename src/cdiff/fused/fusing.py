"""Exchange the layers of models for those with kernels, where these work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from cdiff.fused.attention import FusedAttention, share_text
from cdiff.fused.blocks import FusedBasicTransformerBlock
from cdiff.fused.modules import FusedGEGLU, FusedGroupNorm, FusedTransformer2DModel
from cdiff.fused.resnets import FusedResnetBlock2D, share_time
from cdiff.fused.sharing import stop_sharing
from cdiff.fused.text import FusedCLIPEncoderLayer, lay_together

log = logging.getLogger("cdiff")

FUSED = {
    nn.GroupNorm: FusedGroupNorm,
    GEGLU: FusedGEGLU,
    ResnetBlock2D: FusedResnetBlock2D,
    Transformer2DModel: FusedTransformer2DModel,
    BasicTransformerBlock: FusedBasicTransformerBlock,
    Attention: FusedAttention,
    CLIPEncoderLayer: FusedCLIPEncoderLayer,
}


def try_kernels(device: torch.device) -> Future[None]:
    """Begin to try the kernels, which takes a second on a GPU, while something else is done; for `fuse`."""
    beside = ThreadPoolExecutor(1)
    trial = beside.submit(_try, device)
    beside.shutdown(wait=False)
    return trial


def fuse(*models: nn.Module, tried: Future[None] | None = None) -> bool:
    """Exchange the layers of models on a GPU (UNet, VAE, text encoders): same weights, same names, same functions.

    tried: what `try_kernels` gave for their device. Where Triton does not work, one sentence says so, and they stay as
    they are.
    """
    try:
        (tried or try_kernels(next(models[0].parameters()).device)).result()
    except ModuleNotFoundError:  # torch brings Triton on Linux alone
        log.info("There is no Triton here: the models work without fused kernels.")
        return False
    except Exception as error:  # no C compiler, a GPU that it does not know
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        log.warning("Fused kernels can't be used here (%s): everything works without, only slower.", reason)
        return False
    for model in models:
        for layer in model.modules():
            layer.__class__ = FUSED.get(type(layer), type(layer))
        share_text(model)
        share_time(model)
        lay_together(model)
    return True


def unfuse(model: nn.Module) -> None:
    """The stock layers again: what torch.compile fuses by itself."""
    stock = {fused: plain for plain, fused in FUSED.items()}
    for layer in model.modules():
        layer.__class__ = stock.get(type(layer), type(layer))
    stop_sharing(model)


def _try(device: torch.device) -> None:
    """Every kernel once, there and back, against torch's: what fails in the midst of a training is found here."""
    exact = {"dtype": torch.float32}  # whoever loads a model beside this may have set another as the default
    x = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0), **exact).to(device)
    weight = torch.linspace(0.5, 1.5, 32, device=device, **exact)
    with torch.inference_mode(False), torch.enable_grad():
        for name, (ours, torchs) in _pairs(weight).items():
            found = [_there_and_back(function, x) for function in (ours, torchs)]
            if not torch.allclose(*found, rtol=1e-3, atol=1e-3):
                raise RuntimeError(f"{name} computes something else than torch")


def _there_and_back(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    own = x.clone().requires_grad_()
    result = function(own)
    return torch.cat([result.detach().flatten(), torch.autograd.grad(result.square().sum(), own)[0].flatten()])


def _pairs(weight: Tensor) -> dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]:
    """Of each kernel: it, and the same by torch; both of one tensor (1, 4, 32)."""
    from cdiff.fused import kernels

    def attended(x: Tensor) -> Tensor:
        heads = [own.unflatten(-1, (2, -1)).transpose(1, 2) for own in (x, x.sin(), x.cos())]
        return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)

    def grouped(x: Tensor, groups: int) -> Tensor:
        normed = F.group_norm((x + weight).transpose(1, 2), groups, weight, weight, 1e-5)
        return torch.stack([x, F.silu(normed.transpose(1, 2))])

    return {
        "group norm": (
            lambda x: torch.stack(kernels.group_norm(x, weight[None], weight, weight, 8, 1e-5, True)),
            lambda x: grouped(x, 8),
        ),
        "group norm of wide groups": (
            lambda x: torch.stack(kernels.group_norm(x, weight[None], weight, weight, 2, 1e-5, True)),
            lambda x: grouped(x, 2),
        ),
        "layer norm": (
            lambda x: torch.stack(kernels.add_layer_norm(x, x.sin(), weight, weight, 1e-5)),
            lambda x: torch.stack([x + x.sin(), F.layer_norm(x + x.sin(), (32,), weight, weight)]),
        ),
        "GEGLU": (kernels.geglu, lambda x: x[..., :16] * F.gelu(x[..., 16:])),
        "quick GELU": (kernels.quick_gelu, lambda x: x * torch.sigmoid(1.702 * x)),
        "sum with a bias": (lambda x: kernels.add_biased(x, x.sin(), weight), lambda x: x + x.sin() + weight),
        "attention": (lambda x: kernels.attend(x, x.sin(), x.cos(), 2), attended),
    }
