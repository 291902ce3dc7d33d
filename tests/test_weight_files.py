"""Weight files on their way to a device."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from cdiff.models import _load_model
from cdiff.schema import ModelConfig
from cdiff.weights import place, stored_dtype


def test_weights_converted_where_they_go_are_those_converted_while_read(sd15_folder):
    """What a GPU gets: read as they are stored, moved, converted."""
    conf = ModelConfig(path=str(sd15_folder))
    for part, cls in (("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel), ("vae", AutoencoderKL)):
        assert stored_dtype(sd15_folder / part, None) == torch.float32
        wanted = _load_model(cls, sd15_folder, part, conf, torch.bfloat16, torch.device("cpu"))
        found = _load_model(cls, sd15_folder, part, conf, torch.float32, torch.device("cpu"))
        place(found, torch.device("cpu"), torch.bfloat16)
        states = found.state_dict(), wanted.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
        assert {tensor.dtype for tensor in states[0].values() if tensor.is_floating_point()} == {torch.bfloat16}
    assert stored_dtype(sd15_folder, None) is None
