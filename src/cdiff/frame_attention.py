"""Frames of a clip that look at some of them while they attend to themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdiff.errors import UserError
from cdiff.schema import ANCHORS
from cdiff.suggest import did_you_mean


def anchor_frames(unet: nn.Module, frames: int, anchor: str) -> None:
    """Let spatial self-attention in a UNetMotionModel's decoder read keys and values of some frames beside the own.

    Temporal attention sees one place of the picture in all frames: what moves on is out of its sight. An anchor is
    seen as a whole. (Text2Video-Zero, arXiv 2303.13439, has keys and values of the first frame alone;
    Tune-A-Video, 2212.11565, those of the first and of the last before.) The encoder, which lays a frame out, sees its
    own frame alone, or shapes suffer (as in MasaCtrl, 2304.08465). No weight is added or changed.

    Args:
        frames: of a clip; a batch is whole clips, one behind the other.
        anchor: one of ANCHORS; "three" is the first, the middle and the last.

    Raises:
        UserError: another anchor.
    """
    if anchor not in ANCHORS:
        raise UserError(f"anchor={anchor} is unknown; {did_you_mean(anchor, ANCHORS)}")
    places = {"first": (0,), "middle": (frames // 2,), "three": (0, frames // 2, frames - 1)}
    processor = AnchoredAttention(frames, places[anchor])
    for name, layer in unet.named_modules():
        if name.startswith("up_blocks.") and ".attentions." in name and name.endswith(".attn1"):  # not motion_modules
            layer.set_processor(processor)


class AnchoredAttention:
    """A processor of diffusers' Attention: (B * frames, N, C) -> the same, as self-attention over N keys of the own
    frame and N of each anchor."""

    def __init__(self, frames: int, anchors: tuple[int, ...]) -> None:
        self.frames, self.anchors = frames, anchors

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        query = attn.to_q(hidden_states)
        key, value = (self._with_anchors(layer(hidden_states)) for layer in (attn.to_k, attn.to_v))
        heads = [rows.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for rows in (query, key, value)]
        found = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](found))

    def _with_anchors(self, rows: Tensor) -> Tensor:
        clips = rows.unflatten(0, (-1, self.frames))
        seen = [clips[:, frame : frame + 1].expand_as(clips) for frame in self.anchors]
        return torch.cat([clips, *seen], dim=2).flatten(0, 1)
