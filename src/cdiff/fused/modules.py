"""diffusers' layers with the fused kernels in them: same weights, same names, same arithmetic, fewer passes.

`fusing.fuse` exchanges the classes of a model's layers. Each looks at every call whether its kernels apply (frozen
weights, a GPU, no layer that PEFT has wrapped) and does what the stock layer does where they don't.
"""

from __future__ import annotations

from diffusers.models.activations import GEGLU
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from cdiff.fused.conditions import runs_on, trains
from cdiff.fused.images import as_image, as_rows, norm_of


class FusedGroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        if not (runs_on(input) and input.ndim in (3, 4)) or trains(self):
            return super().forward(input)
        return norm_of(self, input, None, silu=False)[1]


class FusedGEGLU(GEGLU):
    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        if not runs_on(hidden_states):
            return super().forward(hidden_states, *args, **kwargs)
        from cdiff.fused import kernels

        return kernels.geglu(self.proj(hidden_states).contiguous())


class FusedTransformer2DModel(Transformer2DModel):
    """The projections before and behind the blocks are 1 x 1 convolutions: products of rows, with no change of layout
    between them and the blocks; the last bias is added with the residual."""

    def _operate_on_continuous_inputs(self, hidden_states: Tensor) -> tuple[Tensor, int]:
        if not self._fits(hidden_states):
            return super()._operate_on_continuous_inputs(hidden_states)
        rows = as_rows(norm_of(self.norm, hidden_states, None, silu=False)[1])
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
        return as_image(kernels.add_biased(as_rows(residual), rows, self.proj_out.bias), residual)

    def _fits(self, x: Tensor) -> bool:
        layers = [self.proj_in, self.proj_out]
        return (
            runs_on(x)
            and all(type(layer) is nn.Linear or _is_pointwise(layer) for layer in layers)
            and all(layer.bias is not None for layer in layers)
            and not any(trains(layer) for layer in (self.norm, *layers))
        )


def _is_pointwise(layer: nn.Module) -> bool:
    return type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1
