"""Frames that look at an anchor, against the same by hand."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNetMotionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from cdiff.errors import UserError
from cdiff.frame_attention import AnchoredAttention, anchor_frames

FRAMES = 3


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(query_dim=8, heads=2, dim_head=4, out_bias=True).double()


def by_hand(attention: Attention, own: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """One frame (N, C) that sees itself and the anchors (A, N, C)."""
    seen = torch.cat([own, *anchors])
    heads = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        query, key, value = attention.to_q(own), attention.to_k(seen), attention.to_v(seen)
        heads.append((query[:, part] @ key[:, part].T / 2.0).softmax(-1) @ value[:, part])
    return attention.to_out[0](torch.cat(heads, dim=-1))


@pytest.mark.parametrize("anchors", [(0,), (1,), (0, 1, 2)])
def test_every_frame_sees_itself_and_the_anchors_of_its_own_clip(attention, anchors):
    clips = torch.randn(2, FRAMES, 5, 8, dtype=torch.float64)
    found = AnchoredAttention(FRAMES, anchors)(attention, clips.flatten(0, 1)).unflatten(0, (2, FRAMES))
    for clip, result in zip(clips, found):
        for frame, of_frame in zip(clip, result):
            torch.testing.assert_close(of_frame, by_hand(attention, frame, clip[list(anchors)]), rtol=1e-10, atol=1e-12)


def test_a_clip_that_stands_still_is_drawn_as_without(attention):
    """Keys that all come equally often change no mean."""
    still = torch.randn(1, 5, 8, dtype=torch.float64).expand(FRAMES, -1, -1)
    plain = AttnProcessor2_0()(attention, still)
    torch.testing.assert_close(AnchoredAttention(FRAMES, (1, 2))(attention, still), plain, rtol=1e-10, atol=1e-12)


@pytest.fixture
def unet() -> UNetMotionModel:
    torch.manual_seed(0)
    return UNetMotionModel(
        block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"), norm_num_groups=2,
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), layers_per_block=1, cross_attention_dim=8,
        num_attention_heads=2, motion_num_attention_heads=2, sample_size=4,
    ).eval()  # fmt: skip


@pytest.mark.parametrize(("anchor", "places"), [("first", (0,)), ("middle", (2,)), ("three", (0, 2, 3))])
def test_spatial_self_attention_of_the_decoder_alone_is_changed(unet, anchor, places):
    before = unet.attn_processors
    weights = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    anchor_frames(unet, 4, anchor)
    changed = {name for name, processor in unet.attn_processors.items() if processor is not before[name]}
    assert changed and changed == {
        name
        for name in before
        if name.startswith("up_blocks.") and "attn1" in name and ".attentions." in name and "motion_modules" not in name
    }
    assert {unet.attn_processors[name].anchors for name in changed} == {places}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in unet.state_dict().items())


def test_what_the_anchor_shows_reaches_all_frames(unet):
    """Without, a module whose temporal attention is silent leaves frames to themselves."""
    for name, parameter in unet.named_parameters():
        if "motion_modules" in name and "proj_out" in name:
            torch.nn.init.zeros_(parameter)
    torch.manual_seed(1)
    latents, text = torch.randn(1, 4, 4, 4, 4), torch.randn(1, 2, 8).expand(4, -1, -1)
    other = latents.clone()
    other[:, :, 0] += 1

    @torch.no_grad()
    def moved() -> list[bool]:
        one, two = (unet(x, 5, text, return_dict=False)[0] for x in (latents, other))
        return [not torch.allclose(one[:, :, frame], two[:, :, frame], atol=1e-6) for frame in range(4)]

    assert moved() == [True, False, False, False]
    anchor_frames(unet, 4, "middle")
    assert moved() == [True, False, False, False]  # the first is no anchor now
    anchor_frames(unet, 4, "first")
    assert moved() == [True] * 4


def test_another_anchor_is_refused(unet):
    with pytest.raises(UserError, match="first, middle, three"):
        anchor_frames(unet, 4, "last")
