"""Which formats can hold what a run trained, and why the others can't."""

from __future__ import annotations

from cdiff.adapter import Adapter
from cdiff.errors import UserError

FORMATS = ("diffusers", "lora", "kohya", "release", "hub")
A_LORA = "a LoRA changes layers by products of two matrices"


def misfit(adapter: Adapter, format: str) -> str | None:
    """Why `format` can't hold the adapter, as half a sentence; None when it can."""
    if format in ("diffusers", "hub"):
        return None
    if adapter.text_encoder:
        return "this run trained the text encoder too"
    if adapter.kind == "full":
        return f"this run trained the whole UNet (DreamBooth), convolutions and norms too, and {A_LORA} of attention"
    if format == "release":
        return _release_misfit(adapter)
    if not adapter.unet:
        return None if format == "kohya" else "this run trained a token alone and no layer of the UNet"
    if any(name.endswith(".bias") for name in adapter.unet):
        return f"this run trained biases of the attention (method.train_unet=crossattn), and {A_LORA}"
    return None


def _release_misfit(adapter: Adapter) -> str | None:
    if adapter.kind == "lora":
        return "the release knows cross-attention weights, and this run trained a LoRA"
    if len(adapter.info.get("token_widths") or []) > 1:
        return "the release knows Stable Diffusion 1.x, and this base has two text encoders"
    return None


def check_fit(adapter: Adapter, format: str) -> None:
    """Raises UserError with the reason and the formats that do fit."""
    reason = misfit(adapter, format)
    if reason is not None:
        raise UserError(f"format={format} does not fit: {reason}. Formats that fit: {', '.join(fitting(adapter))}.")


def fitting(adapter: Adapter) -> list[str]:
    """The formats that hold this adapter."""
    return [format for format in FORMATS if misfit(adapter, format) is None]
