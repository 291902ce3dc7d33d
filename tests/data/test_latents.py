from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from cdiff.concepts import Concept
from cdiff.data.augment import apply_view
from cdiff.data.images import Picture, read_folder
from cdiff.data.latents import encode_class_images, encode_views, plan_views, vae_factor
from cdiff.errors import UserError
from cdiff.schema import AugmentConfig

SHARED = Path(__file__).parents[3] / "shared" / "data" / "dreambooth"
DOG = Concept("dog", "<new1>", "dog", "dog", Path())
CAT = Concept("cat", "<new2>", "cat", "cat", Path())


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    """Three blocks: latents of a quarter of the side."""
    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 8, 8),
        layers_per_block=1,
        latent_channels=3,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    )
    return model.eval().requires_grad_(False)


def pictures(count: int, seed: int) -> list[Picture]:
    rng = np.random.default_rng(seed)
    return [
        Picture(Path(f"{i}.png"), Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8))) for i in range(count)
    ]


def encode(vae, batch_size=4, count=10, seed=1, conf=None, **changes):
    concepts, own = [DOG, CAT], [pictures(3, 0), pictures(2, 1)]
    arguments = (count, conf or AugmentConfig(), 32, seed, "cpu", batch_size, "object")
    return encode_views(vae, concepts, own, *arguments, **changes)


def test_moments_equal_a_direct_encoding_of_the_same_pixels(vae):
    views = encode(vae)
    plan = plan_views([DOG, CAT], [3, 2], 10, AugmentConfig(), 32, 1, "object")
    own = [pictures(3, 0), pictures(2, 1)]
    for number, item in enumerate(plan):
        pixels, mask = apply_view(own[item.concept][item.view.picture].image, item.view, 32, 4)
        with torch.no_grad():
            posterior = vae.encode(pixels[None]).latent_dist
        assert torch.allclose(views.mean[number], (posterior.mean[0] - 0.25) * 0.5, atol=1e-5)
        assert torch.allclose(views.std[number], posterior.std[0] * 0.5, atol=1e-5)
        assert torch.equal(views.masks[number], mask) and views.prompts[number] == item.prompt


def test_shapes_types_and_shares(vae):
    views = encode(vae)
    assert len(views) == 10 and vae_factor(vae) == 4
    assert views.mean.shape == views.std.shape == (10, 3, 8, 8) and views.masks.shape == (10, 1, 8, 8)
    assert views.concept == [0, 1] * 5
    assert all(("<new1> dog", "<new2> cat")[which] in text for which, text in zip(views.concept, views.prompts))
    for tensor in (views.mean, views.std, views.masks):
        assert tensor.dtype == torch.float32 and not tensor.is_inference() and not tensor.requires_grad


def test_batch_size_does_not_matter_and_the_seed_does(vae):
    finished = []
    one, many = encode(vae, 1, progress=finished.append), encode(vae, 64)
    assert torch.allclose(one.mean, many.mean, atol=1e-5) and torch.allclose(one.std, many.std, atol=1e-5)
    assert torch.equal(one.masks, many.masks) and one.prompts == many.prompts
    assert finished == [1] * 10
    again, other = encode(vae, 64), encode(vae, 64, seed=2)
    assert torch.equal(again.mean, many.mean) and not torch.equal(other.mean, many.mean)
    longer = encode(vae, 64, count=13)
    assert longer.prompts[:10] == many.prompts and torch.allclose(longer.mean[:10], many.mean, atol=1e-5)


def test_bf16_and_autocast(vae):
    half = AutoencoderKL.from_config(vae.config)
    half.load_state_dict(vae.state_dict())
    half.to(torch.bfloat16)
    views = encode(half)
    assert views.mean.dtype == torch.float32 and torch.allclose(views.mean, encode(vae).mean, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encode(vae).mean, encode(vae).mean) and torch.allclose(encode(vae).mean, encode(vae).mean)


def test_without_augmentation(vae):
    views = encode(vae, conf=AugmentConfig(enabled=False), count=6)
    assert views.masks.all()
    assert torch.equal(views.mean[1], views.mean[5]) or torch.equal(
        views.mean[1], views.mean[3]
    )  # two cats, three turns


def test_class_images(vae):
    own = pictures(3, 5)
    views = encode_class_images(vae, own, ["a photo of a dog"] * 3, 32, "cpu", 2)
    pixels, _ = apply_view(
        own[2].image, plan_views([DOG], [1], 1, AugmentConfig(enabled=False), 32, 0, "plain")[0].view, 32, 4
    )
    with torch.no_grad():
        assert torch.allclose(views.mean[2], (vae.encode(pixels[None]).latent_dist.mean[0] - 0.25) * 0.5, atol=1e-5)
    assert views.masks.all() and views.prompts == ["a photo of a dog"] * 3


def test_errors(vae):
    with pytest.raises(UserError, match="multiple of 4"):
        encode_views(vae, [DOG], [pictures(1, 0)], 2, AugmentConfig(), 30, 0, "cpu", 2, "plain")
    broken = AutoencoderKL.from_config(vae.config)
    torch.nn.init.constant_(broken.quant_conv.bias, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        encode(broken)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared photos are not here")
def test_views_of_real_photos(vae):
    own = read_folder(SHARED / "dog", max_side=128)
    views = encode_views(vae, [DOG], [own], 8, AugmentConfig(), 64, 42, "cpu", 4, "object")
    assert views.mean.shape == (8, 3, 16, 16) and views.masks.flatten(1).any(dim=1).all()
