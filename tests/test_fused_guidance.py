"""What the two halves of a guided batch share."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="the kernels are Triton's")

from fused_models import relative, text_of, tiny_unet

from cdiff.fused import fusing
from cdiff.fused.guidance import halves_at_once
from cdiff.sampling import make_requests, sample
from cdiff.schema import SamplerConfig


def doubled(unet, same: bool = True) -> torch.Tensor:
    """As a pipeline calls it: two pictures for the negative prompts, and for the prompts."""
    latents = torch.randn(2, 4, 6, 4, generator=torch.Generator().manual_seed(0))
    both = torch.cat([latents, latents if same else latents + 1]).to(memory_format=torch.channels_last)
    with torch.no_grad():
        return unet(both, torch.tensor(300), text_of(images=4), return_dict=False)[0]


def count_pictures(layer: torch.nn.Module, found: list[int]) -> None:
    layer.register_forward_pre_hook(lambda _layer, inputs: found.append(len(inputs[0])))


def test_the_same_numbers_with_less_work():
    unet = tiny_unet()
    assert fusing.fuse(unet)
    wanted = doubled(unet)
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    before, behind = [], []
    count_pictures(block.attn1.to_out[0], before)
    count_pictures(block.ff, behind)
    with halves_at_once(unet):
        found = doubled(unet)
    assert (before, behind) == ([2], [4])  # the self-attention of one half, and what has read the texts
    assert relative(found, wanted) < 1e-6
    assert not torch.equal(found[:2], found[2:])  # the texts differ
    doubled(unet)
    assert (before, behind) == ([2, 4], [4, 4])  # as ever


def test_it_believes_its_caller():
    """Halves that differ would be drawn wrong: it is for a pipeline's doubled latents alone."""
    unet = tiny_unet()
    fusing.fuse(unet)
    wanted = doubled(unet, same=False)
    with halves_at_once(unet):
        assert relative(doubled(unet, same=False), wanted) > 1e-3


def test_layers_that_are_not_fused_are_left_alone():
    unet = tiny_unet()
    with halves_at_once(unet):
        assert not any("forward" in vars(layer) for layer in unet.modules())


def test_a_time_embedding_that_holds_the_text_is_computed_for_both():
    unet = tiny_unet()
    fusing.fuse(unet)
    unet.add_embedding = torch.nn.Identity()  # as Stable Diffusion XL has one
    with halves_at_once(unet):
        assert not any("forward" in vars(layer) for layer in unet.modules())


def test_an_error_leaves_the_layers_as_they_were():
    unet = tiny_unet()
    fusing.fuse(unet)
    with pytest.raises(KeyboardInterrupt), halves_at_once(unet):
        assert any("forward" in vars(layer) for layer in unet.modules())
        raise KeyboardInterrupt
    assert not any("forward" in vars(layer) for layer in unet.modules())


@pytest.mark.parametrize(("guidance", "pictures"), [(6.0, 2), (1.0, 2)])
def test_samples_are_drawn_so(sd15, guidance, pictures):
    """Two pictures at once: four with guidance, of which the first self-attention sees two; unguided it sees both."""
    fused = replace(sd15, unet=copy.deepcopy(sd15.unet).to(memory_format=torch.channels_last))
    assert fusing.fuse(fused.unet)
    seen: list[int] = []
    count_pictures(fused.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_out[0], seen)
    conf = SamplerConfig(name="ddim", steps=2, guidance_scale=guidance)
    requests = make_requests(["a dog", "a cat"], 1, 0)
    found, wanted = (np.stack(sample(base, requests, conf)).astype(int) for base in (fused, sd15))
    assert set(seen) == {pictures}
    assert np.abs(found - wanted).max() <= 2
