"""The adapter on disk: what a run trained, written whole or not at all, read exactly or not at all.

    adapter/pytorch_custom_diffusion_weights.safetensors   cross-attention weights, diffusers' Custom Diffusion names
    adapter/pytorch_lora_weights.safetensors               or a LoRA of the UNet, in diffusers' LoRA format
    adapter/full_unet.safetensors                          or every weight of the UNet (DreamBooth), by its own names
    adapter/full_text_encoder.safetensors                  the text encoder's, where it trained, but for its word table
    adapter/<new1>.safetensors                             one a token, the textual-inversion format {token: vector};
                                                           of SDXL {"clip_l": vector, "clip_g": vector}
    adapter/adapter.json                                   base model, tokens, class words, method, versions

Weights go straight into the base's own, with or without PEFT: diffusers' `load_attn_procs` leaves Custom Diffusion's
out without a word. Also read: the `.bin` files of diffusers and of the ClassDiffusion release, some of which hold
safetensors bytes.
"""

from cdiff.adapter.applying import apply_adapter, check_tokens, install_tokens, match_unet, split_tokens
from cdiff.adapter.formats import (
    INFO_FILE,
    LORA_FILE,
    TEXT_FILE,
    TOKEN_PARTS,
    UNET_FILE,
    WHOLE_UNET_FILE,
    Adapter,
    adapter_name,
    check_token_name,
    lora_update,
    parameter_name,
)
from cdiff.adapter.reading import load_adapter, read_tensors
from cdiff.adapter.writing import save_adapter

__all__ = [
    "INFO_FILE",
    "LORA_FILE",
    "TEXT_FILE",
    "TOKEN_PARTS",
    "UNET_FILE",
    "WHOLE_UNET_FILE",
    "Adapter",
    "adapter_name",
    "apply_adapter",
    "check_token_name",
    "check_tokens",
    "install_tokens",
    "load_adapter",
    "lora_update",
    "match_unet",
    "parameter_name",
    "read_tensors",
    "save_adapter",
    "split_tokens",
]
