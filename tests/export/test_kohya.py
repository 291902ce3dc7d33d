"""Key names against the grammar of the tools that read them.

Read from their loaders, none of whose lines are here: ComfyUI's comfy/lora.py takes `lora_unet_` + a layer's name in
diffusers or in Stability's code, dots as underscores, with `.lora_up.weight`, `.lora_down.weight` and `.alpha`; A1111's
Lora extension takes the same of Stable Diffusion 1.x and 2.x, and of SDXL Stability's names; embeddings are a file with
one tensor (`emb_params`) or with `clip_l` and `clip_g`, and the file's name is the word.
"""

from __future__ import annotations

import json
import re

import pytest
import torch
from conftest_export import export
from safetensors import safe_open
from safetensors.torch import load_file

from cdiff.adapter import load_adapter
from cdiff.export.kohya import kohya_tensors, stability_name
from cdiff.export.low_rank import LowRank

PART = r"\.(lora_up\.weight|lora_down\.weight|alpha)"
LAYER = r"transformer_blocks_\d+_attn[12]_to_(q|k|v|out_0)"
DIFFUSERS = re.compile(rf"lora_unet_((down|up)_blocks_\d+_attentions_\d+|mid_block_attentions_0)_{LAYER}{PART}")
STABILITY = re.compile(rf"lora_unet_((input|output)_blocks_\d+_1|middle_block_1)_{LAYER}{PART}")


@pytest.fixture(scope="module")
def file(run_folder):
    return export(run_folder, "kohya") / "folder.safetensors"


def test_every_name_is_of_the_grammar_and_every_layer_is_whole(file):
    tensors = load_file(file)
    assert all(DIFFUSERS.fullmatch(name) for name in tensors)
    layers = {name.split(".")[0] for name in tensors}
    assert len(layers) == 32 and len(tensors) == 3 * 32
    for layer in layers:
        down, up = tensors[f"{layer}.lora_down.weight"], tensors[f"{layer}.lora_up.weight"]
        assert down.shape[0] == up.shape[1] == int(tensors[f"{layer}.alpha"])  # so that the scale is 1


def test_what_the_header_says(file):
    with safe_open(file, framework="pt") as content:
        facts = content.metadata()
    assert facts["ss_network_module"] == "networks.lora" and facts["ss_base_model_version"] == "sd_v1"
    assert facts["ss_network_dim"] == facts["ss_network_alpha"] == "16"


def test_the_embedding_is_named_after_its_word(file, run_folder):
    embeddings = list((file.parent / "embeddings").iterdir())
    assert [path.name for path in embeddings] == ["new1.safetensors"]
    tensors = load_file(embeddings[0])
    assert list(tensors) == ["emb_params"] and tensors["emb_params"].shape == (1, 32)
    assert torch.equal(tensors["emb_params"][0], load_adapter(run_folder).tokens["<new1>"])
    told = json.loads((file.parent / "export.json").read_text())
    assert "embedding:new1" in " ".join(told["usage"])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [  # places in Stability's SDXL UNet: two residual layers a level, attention from the second level on
        ("down_blocks.1.attentions.0.x", "input_blocks.4.1.x"),
        ("down_blocks.1.attentions.1.x", "input_blocks.5.1.x"),
        ("down_blocks.2.attentions.0.x", "input_blocks.7.1.x"),
        ("down_blocks.2.attentions.1.x", "input_blocks.8.1.x"),
        ("mid_block.attentions.0.x", "middle_block.1.x"),
        ("up_blocks.0.attentions.0.x", "output_blocks.0.1.x"),
        ("up_blocks.0.attentions.2.x", "output_blocks.2.1.x"),
        ("up_blocks.1.attentions.2.x", "output_blocks.5.1.x"),
        # and of Stable Diffusion 1.x
        ("down_blocks.0.attentions.0.x", "input_blocks.1.1.x"),
        ("up_blocks.3.attentions.2.x", "output_blocks.11.1.x"),
    ],
)
def test_stabilitys_names(ours, theirs):
    assert stability_name(ours) == theirs


def test_sdxl_takes_stabilitys_names():
    layer = "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k"
    found = LowRank({layer: (torch.zeros(2, 6), torch.zeros(4, 2))}, {layer: 0.0}, 2)
    names = kohya_tensors(found, sdxl=True)
    assert all(STABILITY.fullmatch(name) for name in names)
    assert "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_k.lora_up.weight" in names
