"""What a training step holds in memory at its peak, counted without memory: on the meta device, by every allocation.

    python experiments/speed/activations.py

Prints GiB an image for cdiff.memory: the peak of forward and backward in bf16 less what holds the weights, the slope
over batch sizes 1 and 2. Attention is counted as its fused kernels hold it (inputs, output, one number a row).
"""

from __future__ import annotations

import sys
import weakref
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from diffusers.utils import logging
from layouts import TRUE, make

from cdiff.engine import activation_checkpoint

TRAINED = {
    "crossattn_kv": lambda name: name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")),
    "all": lambda name: True,
}


class Peak(TorchDispatchMode):
    """Bytes of living storages, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.most = 0
        self.known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return found

    def count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self.known:
            return
        size = storage.nbytes()

        def gone(_: object) -> None:
            self.bytes -= size
            self.known.pop(key, None)

        self.known[key] = weakref.ref(storage, gone)
        self.bytes += size
        self.most = max(self.most, self.bytes)


class FusedAttention(torch.autograd.Function):
    """Shapes of the fused kernels: nothing of the size of all pairs is kept."""

    @staticmethod
    def forward(ctx, query, key, value):
        found = torch.empty_like(query)
        rows = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, found, rows)
        return found

    @staticmethod
    def backward(ctx, gradient):
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def peak(parts: dict, trained: str, low: bool, batch: int) -> int:
    """Bytes at the most of one step's activations and input gradients, bf16."""
    cells = parts["resolution"] // 8
    with torch.device("meta"):
        unet = make("unet", parts["unet"]).to(torch.bfloat16).requires_grad_(False)
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(TRAINED[trained](name))
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None  # adds up in place
        if low:
            unet.enable_gradient_checkpointing(activation_checkpoint)
        noisy = torch.zeros(batch, 4, cells, cells, dtype=torch.bfloat16)
        hidden = torch.zeros(batch, 77, unet.config.cross_attention_dim, dtype=torch.bfloat16, requires_grad=True)
        timesteps = torch.zeros(batch, dtype=torch.long)
        conditions = None
        if unet.config.addition_embed_type == "text_time":
            pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
            conditions = {
                "text_embeds": torch.zeros(batch, pooled, dtype=torch.bfloat16),
                "time_ids": torch.zeros(batch, 6),
            }
        with Peak() as seen:
            for tensor in [*unet.parameters(), *(p.grad for p in unet.parameters() if p.grad is not None)]:
                seen.known[id(tensor.untyped_storage())] = weakref.ref(tensor.untyped_storage())
            prediction = unet(noisy, timesteps, hidden, added_cond_kwargs=conditions, return_dict=False)[0]
            prediction.float().square().mean().backward()
    return seen.most


def encoding(parts: dict, batch: int) -> int:
    """Bytes at the most of encoding pictures, bf16, without gradients."""
    side = parts["resolution"]
    with torch.device("meta"), torch.no_grad():
        vae = make("vae", parts["vae"]).to(torch.bfloat16)
        pixels = torch.zeros(batch, 3, side, side, dtype=torch.bfloat16)
        with Peak() as seen:
            for tensor in vae.parameters():
                seen.known[id(tensor.untyped_storage())] = weakref.ref(tensor.untyped_storage())
            vae.encode(pixels)
    return seen.most


def main() -> None:
    logging.set_verbosity_error()
    original = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, *_, **__: FusedAttention.apply(q, k, v)
    try:
        for base, parts in TRUE.items():
            one, two = (encoding(parts, batch) / 2**30 for batch in (1, 2))
            print(f"{base:10} encoding {two - one:.3f} GiB a picture, {2 * one - two:.3f} more")
            for part in ("text_encoder", "text_encoder_2", "vae", "unet"):
                if part in parts:
                    with torch.device("meta"):
                        model = make(part, parts[part])
                    millions = sum(p.numel() for p in model.parameters()) / 1e6
                    own = [p.numel() for n, p in model.named_parameters() if TRAINED["crossattn_kv"](n)]
                    print(f"{base:10} {part} {millions:.2f} M, cross-attention K and V {sum(own) / 1e6:.2f} M")
            for trained in TRAINED:
                for low in (False, True):
                    one, two = (peak(parts, trained, low, batch) for batch in (1, 2))
                    slope, rest = (two - one) / 2**30, (2 * one - two) / 2**30
                    kept = "low" if low else "normal"
                    print(f"{base:10} {trained:13} {kept:7} {slope:.3f} GiB an image, {rest:.3f} more")
    finally:
        F.scaled_dot_product_attention = original


if __name__ == "__main__":
    main()
