"""diffusers' layers with the fused kernels in them: same weights, same names, same arithmetic, fewer passes.

`fuse` exchanges the classes of a model's layers. Each looks at every call whether its kernels apply (frozen weights, a
GPU, no layer that PEFT has wrapped) and does what the stock layer does where they don't.
"""

from __future__ import annotations

import logging

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

log = logging.getLogger("cdiff")


class FusedGroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        if not (_runs_on(input) and input.ndim in (3, 4)) or _trains(self):
            return super().forward(input)
        return _norm(self, input, None, silu=False)


class FusedGEGLU(GEGLU):
    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        if not _runs_on(hidden_states):
            return super().forward(hidden_states, *args, **kwargs)
        from cdiff.fused import kernels

        return kernels.geglu(self.proj(hidden_states).contiguous())


class FusedResnetBlock2D(ResnetBlock2D):
    """The biases of both convolutions, the time embedding and the residual are added by the kernels before and behind,
    which read those tensors anyway."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *args, **kwargs) -> Tensor:
        if not self._fits(input_tensor, temb):
            return super().forward(input_tensor, temb, *args, **kwargs)
        from cdiff.fused import kernels

        x = input_tensor.contiguous(memory_format=torch.channels_last)
        hidden = _convolved(self.conv1, _norm(self.norm1, x, None, silu=True))
        shift = self.conv1.bias.expand(len(x), -1)
        if self.time_emb_proj is not None:
            shift = shift + self.time_emb_proj(temb if self.skip_time_act else F.silu(temb))
        hidden = _convolved(self.conv2, _norm(self.norm2, hidden, shift, silu=True))
        bias = self.conv2.bias
        if self.conv_shortcut is not None:
            x, bias = _convolved(self.conv_shortcut, x), bias + self.conv_shortcut.bias
        if x.dtype != hidden.dtype:  # autocast
            return x + hidden + bias[:, None, None]
        return _as_image(kernels.add_biased(_as_rows(x), _as_rows(hidden), bias), x)

    def _fits(self, x: Tensor, temb: Tensor | None) -> bool:
        convolutions = [self.conv1, self.conv2] + ([self.conv_shortcut] if self.conv_shortcut is not None else [])
        return (
            _runs_on(x)
            and self.upsample is None
            and self.downsample is None
            and self.time_embedding_norm == "default"
            and isinstance(self.nonlinearity, nn.SiLU)
            and self.output_scale_factor == 1.0
            and not (self.training and self.dropout.p)
            and (temb is None) == (self.time_emb_proj is None)
            and all(type(layer) is nn.Conv2d and layer.bias is not None for layer in convolutions)
            and not (_trains(self) or (temb is not None and temb.requires_grad))
        )


class FusedTransformer2DModel(Transformer2DModel):
    """The projections before and behind the blocks are 1 x 1 convolutions: products of rows, with no change of layout
    between them and the blocks; the last bias is added with the residual."""

    def _operate_on_continuous_inputs(self, hidden_states: Tensor) -> tuple[Tensor, int]:
        if not self._fits(hidden_states):
            return super()._operate_on_continuous_inputs(hidden_states)
        rows = _as_rows(_norm(self.norm, hidden_states, None, silu=False))
        rows = F.linear(rows, self.proj_in.weight.flatten(1), self.proj_in.bias)
        return rows, rows.shape[-1]

    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        if not (self._fits(hidden_states) and hidden_states.dtype == residual.dtype):
            return super()._get_output_for_continuous_inputs(
                hidden_states, residual, batch_size, height, width, inner_dim
            )
        from cdiff.fused import kernels

        rows = F.linear(hidden_states, self.proj_out.weight.flatten(1))
        return _as_image(kernels.add_biased(_as_rows(residual), rows, self.proj_out.bias), residual)

    def _fits(self, x: Tensor) -> bool:
        layers = [self.proj_in, self.proj_out]
        return (
            _runs_on(x)
            and all(type(layer) is nn.Linear or _is_pointwise(layer) for layer in layers)
            and all(layer.bias is not None for layer in layers)
            and not any(_trains(layer) for layer in (self.norm, *layers))
        )


FUSED = {
    nn.GroupNorm: FusedGroupNorm,
    GEGLU: FusedGEGLU,
    ResnetBlock2D: FusedResnetBlock2D,
    Transformer2DModel: FusedTransformer2DModel,
}


def fuse(*models: nn.Module) -> bool:
    """Exchange the layers of models on a GPU; where Triton does not work, one sentence, and they stay as they are."""
    device = next(models[0].parameters()).device
    try:
        _try(device)
    except ModuleNotFoundError:  # torch brings Triton on Linux alone
        log.info("There is no Triton here: UNet and VAE work without fused kernels.")
        return False
    except Exception as error:  # no C compiler, a GPU that it does not know
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        log.warning("Fused kernels can't be used here (%s): everything works without, only slower.", reason)
        return False
    for model in models:
        for layer in model.modules():
            layer.__class__ = FUSED.get(type(layer), type(layer))
    return True


def unfuse(model: nn.Module) -> None:
    """The stock layers again: what torch.compile fuses by itself."""
    stock = {fused: plain for plain, fused in FUSED.items()}
    for layer in model.modules():
        layer.__class__ = stock.get(type(layer), type(layer))


def _try(device: torch.device) -> None:
    """Every kernel once, there and back, against torch's: what fails in the midst of a training is found here."""
    from cdiff.fused import kernels

    weight = torch.linspace(0.5, 1.5, 8, device=device)
    x = torch.linspace(-2, 2, 32, device=device).view(1, 4, 8).sin()

    def ours(x: Tensor) -> Tensor:
        normed = kernels.group_norm(x, weight[None], weight, weight, 2, 1e-5, True)
        return kernels.add_biased(kernels.geglu(torch.cat([normed, x], dim=-1)), x, weight)

    def torchs(x: Tensor) -> Tensor:
        normed = F.group_norm((x + weight).transpose(1, 2), 2, weight, weight, 1e-5).transpose(1, 2)
        return F.silu(normed) * F.gelu(x) + x + weight

    with torch.inference_mode(False), torch.enable_grad():
        found = []
        for function in (ours, torchs):
            own = x.clone().requires_grad_()
            result = function(own)
            found.append(torch.cat([result.detach(), *torch.autograd.grad(result.square().sum(), own)]))
    if not torch.allclose(*found, rtol=1e-3, atol=1e-3):
        raise RuntimeError("they compute something else than torch")


def _runs_on(x: Tensor) -> bool:
    if x.is_cuda:
        return True
    from cdiff.fused import kernels

    return kernels.INTERPRETED


def _trains(module: nn.Module) -> bool:
    return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())


def _is_pointwise(layer: nn.Module) -> bool:
    return type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1


def _as_rows(x: Tensor) -> Tensor:
    """(N, C, H, W) or (N, C, L) -> (N, rows, C); no copy where the channels lie together."""
    rows = x.flatten(2).transpose(1, 2) if x.ndim == 3 else x.permute(0, 2, 3, 1).flatten(1, 2)
    return rows.contiguous()


def _as_image(rows: Tensor, like: Tensor) -> Tensor:
    return rows.transpose(1, 2).unflatten(2, like.shape[2:]) if like.ndim == 4 else rows.transpose(1, 2)


def _norm(norm: nn.GroupNorm, x: Tensor, shift: Tensor | None, silu: bool) -> Tensor:
    from cdiff.fused import kernels

    shift = None if shift is None else shift.contiguous()
    rows = kernels.group_norm(_as_rows(x), shift, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)
    return _as_image(rows, x)


def _convolved(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, None, layer.stride, layer.padding)
