import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cdiff.data.augment import View, apply_view, sample_view, square_box, to_tensor
from cdiff.schema import AugmentConfig


def noise_picture(width: int, height: int) -> Image.Image:
    """No pixel is black, so that the pasted part can be told from the canvas."""
    values = np.random.default_rng(width * 1000 + height).integers(40, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


indices, seeds = st.integers(0, 100_000), st.integers(0, 2**32)
layouts = st.sampled_from([(64, 8), (128, 8), (128, 4), (96, 8), (40, 8), (64, 16)])


@given(indices, seeds, layouts, st.integers(17, 90), st.integers(17, 90))
@settings(max_examples=120, deadline=None)
def test_a_view_shows_the_resized_picture_and_masks_the_rest(index, seed, layout, width, height):
    resolution, factor = layout
    image = noise_picture(width, height)
    view = sample_view(index, seed, 3, resolution, AugmentConfig())
    pixels, mask = apply_view(image, view, resolution, factor)
    assert pixels.shape == (3, resolution, resolution) and mask.shape == (1, resolution // factor, resolution // factor)
    assert pixels.dtype == mask.dtype == torch.float32 and pixels.min() >= -1 and pixels.max() <= 1
    assert mask.sum() >= 1 and set(mask.unique().tolist()) <= {0.0, 1.0}

    side = round(view.scale * resolution)
    square = image.crop(square_box(image.size, view.crop))
    source = square.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    source = to_tensor(ImageOps.mirror(source) if view.flip else source)
    if side >= resolution:
        assert mask.all()
        assert torch.equal(pixels, source[:, view.top : view.top + resolution, view.left : view.left + resolution])
        return
    covered = torch.zeros(resolution, resolution, dtype=torch.bool)
    covered[view.top : view.top + side, view.left : view.left + side] = True
    assert torch.equal(pixels[:, covered].reshape(3, side, side), source)
    assert (pixels[:, ~covered] == -1).all()
    if side >= 4 * factor:  # smaller ones may have to keep a border cell
        whole = covered.reshape(resolution // factor, factor, -1, factor).all(dim=3).all(dim=1)
        padded = torch.nn.functional.pad(whole, (1, 1, 1, 1))
        inner = whole & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        assert torch.equal(mask[0].bool(), inner)


@given(indices, seeds)
@settings(max_examples=60, deadline=None)
def test_geometry_and_words_agree(index, seed):
    conf = AugmentConfig()
    view = sample_view(index, seed, 5, 128, conf)
    assert view == sample_view(index, seed, 5, 128, conf)
    side = view.scale * 128
    assert side == round(side) and 0 <= view.crop <= 1
    assert 42 < side <= 128 or 153.6 <= side <= 179.2
    assert min(view.left, view.top) >= 0 and max(view.left, view.top) <= abs(128 - side)
    expected = (
        {"a far away", "very small"} if view.scale < 0.6 else {"zoomed in", "close up"} if view.scale > 1 else {""}
    )
    assert view.prefix in expected


def test_views_do_not_depend_on_global_randomness_or_each_other():
    conf = AugmentConfig()
    forward = [sample_view(i, 7, 4, 128, conf) for i in range(50)]
    random.seed(0)
    assert [sample_view(i, 7, 4, 128, conf) for i in reversed(range(50))][::-1] == forward
    assert [sample_view(i, 8, 4, 128, conf) for i in range(50)] != forward
    # Golden: a resumed or repeated run must meet the same views with later versions too.
    assert sample_view(3, 42, 5, 128, conf) == GOLDEN


GOLDEN = View(3, 154 / 128, left=6, top=1, flip=True, prefix="close up", crop=0.3827605725855645)


def test_shares():
    views = [sample_view(i, 1, 7, 512, AugmentConfig()) for i in range(2100)]
    assert set(Counter(view.picture for view in views).values()) == {300}
    assert 0.62 < sum(view.scale <= 1 for view in views) / 2100 < 0.70
    assert 0.46 < sum(view.flip for view in views) / 2100 < 0.54
    assert {view.prefix for view in views} == {"", "a far away", "very small", "zoomed in", "close up"}
    assert not any(sample_view(i, 1, 7, 512, AugmentConfig(hflip=False)).flip for i in range(50))
    assert all(sample_view(i, 1, 7, 512, AugmentConfig(shrink_probability=0)).scale > 1 for i in range(50))


def test_disabled_is_the_middle_square_unmasked():
    view = sample_view(11, 5, 2, 32, AugmentConfig(enabled=False))
    assert view == View(view.picture)
    image = noise_picture(96, 64)
    pixels, mask = apply_view(image, view, 32, 8)
    assert mask.all()
    assert torch.equal(pixels, to_tensor(image.crop((16, 0, 80, 64)).resize((32, 32), Image.Resampling.LANCZOS)))


@pytest.mark.parametrize("side", range(1, 64))
def test_the_smallest_views_keep_a_cell(side):
    for place in (0, 3, 7, 64 - side):
        view = View(0, side / 64, min(place, 64 - side), min(place, 64 - side))
        _, mask = apply_view(noise_picture(30, 30), view, 64, 8)
        assert mask.sum() >= 1
        assert apply_view(noise_picture(30, 30), replace(view, flip=True), 64, 8)[1].equal(mask)


def test_flip_and_crop():
    image = noise_picture(60, 20)
    assert [square_box(image.size, crop) for crop in (0, 0.5, 1)] == [(0, 0, 20, 20), (20, 0, 40, 20), (40, 0, 60, 20)]
    plain, _ = apply_view(image, View(0), 16, 8)
    assert torch.equal(apply_view(image, View(0, flip=True), 16, 8)[0], plain.flip(-1))
