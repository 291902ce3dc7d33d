"""Attention maps: against diffusers' own attention scores, and that they see what training changed."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from tiny import TinyConcept

from cdiff.attention_maps import class_word_map, class_word_positions, overlay, recorded, side_by_side
from cdiff.methods import prepare
from cdiff.schema import MethodConfig
from cdiff.tokens import PromptEncoder, add_tokens


def picture() -> Image.Image:
    image = Image.new("RGB", (80, 64), (200, 220, 90))
    ImageDraw.Draw(image).ellipse((20, 10, 60, 50), fill=(150, 90, 40))
    return image


def test_the_class_word_is_found_behind_its_token(sd15):
    concept = TinyConcept(class_word="teapot")  # two tokens here
    encoder = PromptEncoder(sd15, add_tokens(sd15, [concept]))
    [ids] = encoder.tokenize(["a photo of a <new1> teapot"])
    places = class_word_positions(sd15, ids, concept)
    assert ids[places].tolist() == sd15.tokenizer("teapot", add_special_tokens=False).input_ids and len(places) == 2


def test_the_map_is_diffusers_own_attention(sd15):
    layer = sd15.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2")
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 4, 16, generator=generator)
    text = torch.randn(1, 77, 32, generator=generator)
    query, key = layer.head_to_batch_dim(layer.to_q(hidden)), layer.head_to_batch_dim(layer.to_k(text))
    scores = layer.get_attention_scores(query, key)  # (heads, N, L)
    with recorded(sd15.unet, [3, 4], (2, 2)) as maps:
        layer(hidden, encoder_hidden_states=text)
    expected = scores[..., [3, 4]].sum(-1).mean(0).reshape(2, 2)
    assert len(maps) == 1 and torch.allclose(maps[0], expected, atol=1e-6)
    assert not layer._forward_pre_hooks


def test_training_changes_the_map_and_looking_does_not(sd15):
    concept = TinyConcept()
    encoder = PromptEncoder(sd15, add_tokens(sd15, [concept]))
    trainables = prepare(sd15, MethodConfig(), 1.0)
    first = class_word_map(sd15, encoder, concept, picture(), 64)
    assert first.shape == (8, 8) and first.max() == 1 and first.min() >= 0
    assert np.array_equal(first, class_word_map(sd15, encoder, concept, picture(), 64))
    with torch.no_grad():
        for parameter in trainables.named.values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.5)
    assert not np.allclose(first, class_word_map(sd15, encoder, concept, picture(), 64), atol=1e-3)
    assert all(parameter.grad is None for parameter in trainables.named.values())


def test_a_lora_is_seen_too(sd15):
    torch.manual_seed(0)  # a LoRA's start is random
    concept = TinyConcept()
    encoder = PromptEncoder(sd15, add_tokens(sd15, [concept]))
    trainables = prepare(sd15, MethodConfig(name="lora", train_unet="lora", train_token=False, rank=2))
    first = class_word_map(sd15, encoder, concept, picture(), 64)
    with torch.no_grad():
        for name, parameter in trainables.named.items():
            if "lora_B" in name:
                parameter.add_(0.3)  # 1.0 would saturate the attention, which blows up the rounding of the merge
    changed = class_word_map(sd15, encoder, concept, picture(), 64)
    assert not np.allclose(first, changed, atol=1e-3)
    trainables.restore()  # merged into the weights: the same map
    assert np.allclose(class_word_map(sd15, encoder, concept, picture(), 64), changed, atol=1e-5)


def test_the_images_show_where():
    attention = np.zeros((8, 8), np.float32)
    attention[:, 4:] = 1
    shown = np.asarray(overlay(picture(), attention, 64), np.float32)
    assert shown[:, 40:].mean() > shown[:, :24].mean() + 50
    assert side_by_side(picture(), attention, attention, 64).size == (3 * 64 + 16, 64)
