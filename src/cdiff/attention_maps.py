"""Where the class word attends in a picture of the concept, before and after training, as images.

The picture's latents get noise at a few timesteps and go through the UNet once with "a photo of a <new1> dog"; the
cross-attention of the word "dog" is averaged over layers, heads and timesteps. Noise and timesteps are fixed, so that
the two maps differ by the training alone. (Cross-attention maps as in Prompt-to-Prompt, arXiv 2208.01626.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cdiff.data.latents import encode_pixels

if TYPE_CHECKING:
    from cdiff.concepts import Concept
    from cdiff.models import Base
    from cdiff.tokens import PromptEncoder

SHARES = (0.2, 0.4, 0.6)  # of the noise schedule: early steps are all noise, late ones no longer ask the text
# Colours of the map from no attention to most, dark to light (a few stops of matplotlib's magma).
STOPS = ((0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))


@torch.no_grad()
def class_word_map(
    base: Base, encoder: PromptEncoder, concept: Concept, picture: Image.Image, resolution: int
) -> np.ndarray:
    """Attention of the class word over the picture's middle square, (h, w) of the latents, in [0, 1] by its maximum."""
    prompt = f"a photo of a {concept.token} {concept.class_word}"
    encoded = encoder.encode_sample([prompt])
    at = class_word_positions(base, encoded.ids[0], concept)
    pixels = torch.from_numpy(np.array(middle_square(picture, resolution))).permute(2, 0, 1)[None].float() / 127.5 - 1
    latents = encode_pixels(base.vae, pixels, base.device)[0]
    timesteps = torch.tensor([int(share * base.scheduler.config.num_train_timesteps) for share in SHARES])
    noise = torch.randn((len(SHARES), *latents.shape[1:]), generator=torch.Generator().manual_seed(0))
    noisy = base.scheduler.add_noise(latents.expand_as(noise), noise, timesteps)
    unet = base.unet
    dtype = next(unet.parameters()).dtype
    text = encoded.hidden.expand(len(SHARES), -1, -1)
    half = base.dtype != torch.float32  # trained weights are fp32 among half-precision ones
    mixed = torch.autocast(base.device.type, base.dtype) if half else nullcontext()
    with recorded(unet, at, latents.shape[-2:]) as maps, mixed:
        unet(noisy.to(base.device, dtype), timesteps.to(base.device), text.to(dtype), return_dict=False)
    mean = torch.stack(maps).mean(dim=0)
    return (mean / mean.max().clamp(min=1e-12)).cpu().numpy()


def class_word_positions(base: Base, ids: Tensor, concept: Concept) -> list[int]:
    """Where the class word's tokens stand in the prompt's ids (L,): right behind the concept's own token."""
    token = base.tokenizer.convert_tokens_to_ids(concept.token)
    start = ids.tolist().index(token) + 1
    return list(range(start, start + len(base.tokenizer(concept.class_word, add_special_tokens=False).input_ids)))


@contextmanager
def recorded(unet: nn.Module, positions: Sequence[int], size: Sequence[int]) -> Iterator[list[Tensor]]:
    """Collects, from each cross-attention layer, the attention that `positions` of the text get, (h, w) of `size`.

    Layers run as they are; queries and keys are projected a second time beside them.
    """
    maps: list[Tensor] = []

    def hook(attn: Any, inputs: tuple, named: dict[str, Any]) -> None:
        hidden = named.get("hidden_states", inputs[0] if inputs else None)
        text = named.get("encoder_hidden_states", inputs[1] if len(inputs) > 1 else None)
        query = F.linear(hidden.float(), _weight(attn.to_q)).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        key = F.linear(text.float(), _weight(attn.to_k)).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        share = (query @ key.transpose(-1, -2) * attn.scale).softmax(dim=-1)  # (B, H, N, L)
        of_word = share[..., list(positions)].sum(dim=-1).mean(dim=(0, 1))  # (N,)
        side = round(of_word.numel() ** 0.5 * (size[0] / size[1]) ** 0.5)
        grid = of_word.reshape(1, 1, side, -1)
        maps.append(F.interpolate(grid, size=tuple(size), mode="bilinear", align_corners=False)[0, 0])

    layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    hooks = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield maps
    finally:
        for handle in hooks:
            handle.remove()


def _weight(layer: nn.Module) -> Tensor:
    """A projection's weight; of PEFT's wrapped layer the base's plus what the LoRA adds."""
    if not hasattr(layer, "get_delta_weight"):
        return layer.weight.float()
    added = sum(layer.get_delta_weight(name).float() for name in layer.active_adapters)
    return layer.get_base_layer().weight.float() + added


def middle_square(picture: Image.Image, side: int) -> Image.Image:
    width, height = picture.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    return picture.convert("RGB").crop((left, top, left + short, top + short)).resize((side, side))


def overlay(picture: Image.Image, attention: np.ndarray, side: int) -> Image.Image:
    """The picture's middle square, greyed, under the map (h, w) in colours; `side` pixels."""
    grey = np.asarray(middle_square(picture, side).convert("L"), np.float32)[..., None]
    smooth = Image.fromarray((attention * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    level = np.asarray(smooth, np.float32) / 255
    places = np.linspace(0, 1, len(STOPS))
    colours = np.stack([np.interp(level, places, [stop[c] for stop in STOPS]) for c in range(3)], axis=-1)
    return Image.fromarray(np.clip(0.35 * grey + 0.65 * colours, 0, 255).astype(np.uint8))


def side_by_side(picture: Image.Image, before: np.ndarray, after: np.ndarray, side: int) -> Image.Image:
    """Picture, map before, map after, in one row."""
    sheet = Image.new("RGB", (3 * side + 16, side), "white")
    parts = (middle_square(picture, side), overlay(picture, before, side), overlay(picture, after, side))
    for place, part in enumerate(parts):
        sheet.paste(part, (place * (side + 8), 0))
    return sheet
