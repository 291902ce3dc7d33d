"""Custom Diffusion's augmentation (arXiv 2212.04488, section 4; numbers of its release) as pure geometry.

A view of a picture is drawn first (`sample_view`, from a seed and the view's number alone) and
applied later (`apply_view`), so views can be made in any order and number.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps

from cdiff.schema import AugmentConfig

FAR_SCALE = 0.6  # captions say "far away" under it
FAR_PREFIXES = ("a far away", "very small")
NEAR_PREFIXES = ("zoomed in", "close up")


@dataclass(frozen=True)
class View:
    """How one training image is made of one picture.

    The picture is cut to a square and resized to round(scale x resolution) pixels a side. Up to scale 1
    it is pasted on black with its corner at (left, top); over 1 it is cropped from (left, top) of the resized square.
    """

    picture: int
    scale: float = 1.0
    left: int = 0
    top: int = 0
    flip: bool = False
    prefix: str = ""  # words the caption says about the scale
    crop: float = 0.5  # where along the longer side the square is cut: 0 start, 0.5 centre, 1 end


def sample_view(index: int, seed: int | str, picture_count: int, resolution: int, conf: AugmentConfig) -> View:
    """The view with number `index`: the same for the same arguments, whatever else was drawn.

    Every `picture_count` consecutive views show every picture once. The square of a photo that isn't
    square is cut at a random place near the middle (triangular), where subjects are, and is
    not squashed as in the release.
    """
    picture = _picture_of(index, seed, picture_count)
    if not conf.enabled:
        return View(picture)
    rng = random.Random(f"{seed}/{index}")
    crop = rng.triangular(0.0, 1.0, 0.5)
    flip = conf.hflip and rng.random() < 0.5
    if rng.random() < conf.shrink_probability:
        side = _integer_between(rng, conf.shrink_min * resolution, resolution)
    else:
        side = _integer_between(rng, conf.zoom_min * resolution, conf.zoom_max * resolution)
    room = abs(resolution - side)
    left, top = rng.randint(0, room), rng.randint(0, room)
    prefix = ""
    if side < FAR_SCALE * resolution:
        prefix = rng.choice(FAR_PREFIXES)
    elif side > resolution:
        prefix = rng.choice(NEAR_PREFIXES)
    return View(picture, side / resolution, left, top, flip, prefix, crop)


def apply_view(
    image: Image.Image,
    view: View,
    resolution: int,
    factor: int,
    weights: Image.Image | None = None,
    background: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and loss mask of one view.

    image: RGB; factor: pixels a latent cell is wide. weights: the user's mask, L, of the image's size: a cell of its
    black counts `background`, one of its white 1. Returns pixels (3, R, R) in [-1, 1] and the mask
    (1, R / factor, R / factor), both float32: zero where the latent cell does not lie wholly inside the pasted picture
    or lies at its border, and without `weights` one elsewhere.
    """
    side = round(view.scale * resolution)
    pixels = to_tensor(_placed(image, view, side, resolution))
    cells = resolution // factor
    if side >= resolution:
        mask = torch.ones(1, cells, cells)
    else:
        mask = torch.zeros(1, cells, cells)
        rows, columns = (_valid_cells(start, side, factor, cells) for start in (view.top, view.left))
        mask[:, rows, columns] = 1.0
    if weights is None:
        return pixels, mask
    levels = torch.from_numpy(np.array(_placed(weights, view, side, resolution))).float() / 255
    shares = levels.view(1, cells, factor, cells, factor).mean(dim=(2, 4))
    return pixels, mask * (background + (1 - background) * shares)


def _placed(image: Image.Image, view: View, side: int, resolution: int) -> Image.Image:
    """The square of an image, `side` pixels wide, cropped from or pasted on black to the resolution."""
    square = image.crop(square_box(image.size, view.crop))
    square = square.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if view.flip:
        square = ImageOps.mirror(square)
    if side >= resolution:
        return square.crop((view.left, view.top, view.left + resolution, view.top + resolution))
    canvas = Image.new(image.mode, (resolution, resolution))
    canvas.paste(square, (view.left, view.top))
    return canvas


def square_box(size: tuple[int, int], crop: float) -> tuple[int, int, int, int]:
    """The largest square of a (width, height) picture, at `crop` (0 to 1) of its longer side."""
    side = min(size)
    left, top = (round((length - side) * crop) for length in size)
    return left, top, left + side, top + side


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB image to float32 (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(127.5).sub(1.0)


def _picture_of(index: int, seed: int | str, count: int) -> int:
    """Round after round over all pictures, each round in its own order."""
    turn, place = divmod(index, count)
    order = list(range(count))
    random.Random(f"{seed}/round {turn}").shuffle(order)
    return order[place]


def _integer_between(rng: random.Random, low: float, high: float) -> int:
    # 1.4 x 5 is 7.0 but 1.1 x 10 is 11.000000000000002: a hair's breadth is no pixel
    first, last = math.ceil(low - 1e-6), math.floor(high + 1e-6)
    return rng.randint(first, last) if first <= last else round((low + high) / 2)


def _valid_cells(start: int, side: int, factor: int, cells: int) -> slice:
    """Latent cells wholly inside pixels [start, start + side), one dropped at each end; never none.

    A picture too small for that keeps its border cells, and failing those the cell of its middle.
    """
    first, end = -(-start // factor), (start + side) // factor
    if end - first > 2:
        return slice(first + 1, end - 1)
    if end > first:
        return slice(first, end)
    middle = min((start + side // 2) // factor, cells - 1)
    return slice(middle, middle + 1)
