"""Names of files and tensors in an adapter, and the object that one is in memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cdiff.errors import UserError

UNET_FILE = "pytorch_custom_diffusion_weights"
LORA_FILE = "pytorch_lora_weights"
WHOLE_UNET_FILE = "full_unet"
TEXT_FILE = "full_text_encoder"
INFO_FILE = "adapter.json"
TOKEN_PARTS = ("clip_l", "clip_g")  # a token's rows in SDXL's two text encoders, as other tools name them
FORMAT = 1

# What the UNet tensors of an adapter are -> the file that holds them.
FILES = {"custom_diffusion": UNET_FILE, "lora": LORA_FILE, "full": WHOLE_UNET_FILE}

KEY = re.compile(r"(?P<layer>.+\.attn[12])\.processor\.(?P<tensor>to_\w+_custom_diffusion\.(?:0\.)?(?:weight|bias))")
LORA_KEY = re.compile(r"unet\.(?P<layer>.+)\.(?:lora\.(?P<old>down|up)\.weight|lora_(?P<new>A|B)\.weight|(?P<a>alpha))")


@dataclass
class Adapter:
    """What an adapter holds, on the CPU. `tokens` maps "<new1>" to its vector (D,), of SDXL both encoders' rows joined.

    `unet` by `kind`: "custom_diffusion" (diffusers' names of K and V, with `crossattn` of Q and the output),
    "lora" (`unet.LAYER.lora.down.weight` (r, in) and `.up.weight` (out, r), whose product is added as it is),
    "full" (every parameter by its own name). `text_encoder`: its parameters by name, but for the word table.
    """

    unet: dict[str, Tensor]
    tokens: dict[str, Tensor]
    info: dict[str, Any] = field(default_factory=dict)  # adapter.json; empty for foreign files
    path: Path | None = None
    kind: str = "custom_diffusion"
    text_encoder: dict[str, Tensor] = field(default_factory=dict)


def adapter_name(parameter: str) -> str:
    """`<layer>.attn2.to_k.weight` -> `<layer>.attn2.processor.to_k_custom_diffusion.weight`; to_out.0 likewise."""
    layer, part, rest = re.fullmatch(r"(.+\.attn2)\.(to_q|to_k|to_v|to_out)\.(.+)", parameter).groups()
    return f"{layer}.processor.{part}_custom_diffusion.{rest}"


def parameter_name(name: str) -> str | None:
    """The UNet parameter that a tensor of an adapter stands for; None when the name is not of that form."""
    found = KEY.fullmatch(name)
    return f"{found['layer']}.{found['tensor'].replace('_custom_diffusion', '')}" if found else None


def kind_of(names: Iterable[str]) -> str:
    """The kind of UNet tensors with these names; no names at all count as Custom Diffusion's."""
    names = list(names)
    if all(parameter_name(name) for name in names):
        return "custom_diffusion"
    return "lora" if all(LORA_KEY.fullmatch(name) for name in names) else "full"


def check_token_name(token: str) -> None:
    """A token names a file: refuse whatever could leave the folder or break a name."""
    if not token or len(token) > 100 or re.search(r"[/\\\s\x00-\x1f:]|\.\.", token) or token.startswith("."):
        raise UserError(
            f"{token!r} can't be a token: 1-100 characters without slash, colon, space, '..' or leading dot."
        )


# ---- LoRA ----


def lora_tensors(
    content: Mapping[str, Tensor], where: Path | str, alphas: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """LoRA tensors of the UNet under diffusers' names, each scale alpha / rank multiplied into `up`.

    content: names of diffusers (`lora.down`, `lora.up`) or of PEFT (`lora_A`, `lora_B`), with or without `.alpha`.
    alphas: by layer, from the file's metadata; "" is every layer's. Without any, alpha is the rank, as in diffusers.

    Raises:
        UserError: names the tensor that is no LoRA of the UNet's linear layers, or lacks its partner.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in content.items():
        found = LORA_KEY.fullmatch(name)
        if not found:
            raise UserError(f"{where}: the tensor {name} is no LoRA weight of the UNet in diffusers' format.")
        side = {"A": "down", "B": "up"}.get(found["new"]) or found["old"] or found["a"]
        layers.setdefault(found["layer"], {})[side] = value
    tensors = {}
    for layer, parts in layers.items():
        for side in ("down", "up"):
            if side not in parts:
                raise UserError(f"{where} lacks unet.{layer}.lora.{side}.weight.")
        down, up = parts["down"], parts["up"]
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            shapes = f"{tuple(up.shape)} and {tuple(down.shape)}"
            raise UserError(
                f"{where}: the LoRA of unet.{layer} has shapes {shapes}, which are no product of two matrices."
            )
        rank = down.shape[0]
        alpha = float(parts["alpha"]) if "alpha" in parts else _alpha(layer, alphas or {}, rank)
        tensors[f"unet.{layer}.lora.down.weight"] = down
        tensors[f"unet.{layer}.lora.up.weight"] = up if alpha == rank else (up.float() * (alpha / rank)).to(up.dtype)
    return tensors


def _alpha(layer: str, alphas: Mapping[str, float], rank: int) -> float:
    """The alpha of a layer; a pattern fits a layer whose name ends with it, as in PEFT."""
    for pattern, alpha in alphas.items():
        if pattern and (layer == pattern or layer.endswith(f".{pattern}")):
            return float(alpha)
    return float(alphas.get("", rank))


def lora_update(unet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an adapter's LoRA adds to each parameter: `LAYER.weight` -> up @ down, (out, in) fp32."""
    update = {}
    for name, down in unet.items():
        if name.endswith(".lora.down.weight"):
            stem = name.removesuffix(".lora.down.weight")
            up = unet[f"{stem}.lora.up.weight"]
            update[f"{stem.removeprefix('unet.')}.weight"] = up.detach().float() @ down.detach().float()
    return update
