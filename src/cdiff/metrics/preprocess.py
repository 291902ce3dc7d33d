"""What the published image processors do, with Pillow and torch alone: resize, centre crop, rescale, normalise.

Resizing and cropping stay in 8 bits, as the processors' Pillow versions do it, so that an image waits in memory and
travels to the GPU at a byte a value; the rest is arithmetic on the model's device.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cdiff.errors import UserError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
STANDARD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Preprocess:
    """One image processor. Sizes are pixels; `size` is (height, width), or a number: of the shorter side."""

    size: int | tuple[int, int] | None
    crop: tuple[int, int] | None  # height, width
    resample: int  # Pillow's number: 2 bilinear, 3 bicubic
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255
    half_even: bool = False  # the crop's corner: torchvision rounds half a pixel to even, transformers down

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An image of any size and mode -> (H, W, 3) uint8, resized and cropped."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        width, height = image.size
        if isinstance(self.size, int):
            short, long = self.size, int(self.size * max(image.size) / min(image.size))
            width, height = (short, long) if width <= height else (long, short)
        elif self.size is not None:
            height, width = self.size
        if (width, height) != image.size:  # Pillow would copy it
            image = image.resize((width, height), Image.Resampling(self.resample))
        pixels = np.asarray(image)
        return pixels if self.crop is None else self._crop(pixels)

    def _crop(self, pixels: np.ndarray) -> np.ndarray:
        """The centre (H, W) of `self.crop`; black where the picture is smaller than that."""
        height, width = self.crop
        rows, columns = pixels.shape[:2]
        if rows < height or columns < width:
            above, left = ceil(max(height - rows, 0) / 2), ceil(max(width - columns, 0) / 2)
            below, right = max(height - rows, 0) - above, max(width - columns, 0) - left
            pixels = np.pad(pixels, ((above, below), (left, right), (0, 0)))
            rows, columns = pixels.shape[:2]
        top, left = ((size - part) / 2 for size, part in ((rows, height), (columns, width)))
        top, left = (round(top), round(left)) if self.half_even else (int(top), int(left))
        return np.ascontiguousarray(pixels[top : top + height, left : left + width])

    def normalize(self, prepared: list[np.ndarray], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Prepared images -> (B, 3, H, W) on the device; arithmetic in fp32."""
        pixels = torch.from_numpy(np.stack(prepared))
        if device.type == "cuda":
            pixels = pixels.pin_memory().to(device, non_blocking=True)
        mean = torch.tensor(self.mean, device=device) / self.scale
        factor = self.scale / torch.tensor(self.std, device=device)
        return ((pixels.float() - mean) * factor).permute(0, 3, 1, 2).to(dtype).contiguous()


def dino_preprocess(side: int) -> Preprocess:
    """DINO's evaluation (arXiv 2104.14294, eval_knn.py) for a model of `side` pixels: at 224, resize 256, crop 224."""
    return Preprocess(round(side * 256 / 224), (side, side), 3, *IMAGENET, half_even=True)


def read_preprocess(folder: Path, side: int, default: Preprocess, square: bool) -> Preprocess:
    """The processor that a model's folder describes, in preprocessor_config.json or processor_config.json.

    Args:
        side: what the model takes, in pixels.
        default: what holds where the file says nothing, or is not there.
        square: a `size` of one number means both sides (ViT, BLIP), else the shorter (CLIP).

    Raises:
        UserError: an unreadable file, or one that asks for something else than the model takes.
    """
    conf, file = _read_config(folder)
    if conf is None:
        return default
    try:
        made = Preprocess(
            size=_size(conf.get("size"), default.size, square) if conf.get("do_resize", True) else None,
            crop=_pair(conf.get("crop_size"), (side, side))
            if conf.get("do_center_crop", default.crop is not None)
            else None,
            resample=int(conf.get("resample", default.resample)),
            mean=tuple(conf.get("image_mean") or default.mean) if conf.get("do_normalize", True) else (0.0,) * 3,
            std=tuple(conf.get("image_std") or default.std) if conf.get("do_normalize", True) else (1.0,) * 3,
            scale=float(conf.get("rescale_factor", 1 / 255)) if conf.get("do_rescale", True) else 1.0,
        )
        shape = made.prepare(Image.new("RGB", (side, side))).shape
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} describes an image processor that cdiff can't follow ({error}).") from error
    if shape != (side, side, 3):
        raise UserError(f"{file} makes images of {shape[1]} x {shape[0]} pixels, and the model takes {side} x {side}.")
    return made


def _read_config(folder: Path) -> tuple[dict[str, Any] | None, Path]:
    """transformers 5 writes a processor as one file with the image processor inside."""
    for name, inside in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        file = folder / name
        if file.is_file():
            try:
                conf = json.loads(file.read_text(encoding="utf-8"))
                conf = conf if inside is None else conf.get(inside)
            except (ValueError, OSError, AttributeError) as error:
                raise UserError(f"{file} is not readable JSON: {error}.") from error
            if isinstance(conf, dict):
                return conf, file
    return None, folder


def _size(value: Any, default: int | tuple[int, int] | None, square: bool) -> int | tuple[int, int] | None:
    if value is None:
        return default
    if isinstance(value, int):
        return (value, value) if square else value
    if "shortest_edge" in value and value.get("longest_edge") is None:
        return int(value["shortest_edge"])
    return int(value["height"]), int(value["width"])


def _pair(value: Any, default: tuple[int, int]) -> tuple[int, int]:
    if value is None:
        return default
    return (value, value) if isinstance(value, int) else (int(value["height"]), int(value["width"]))
