"""Attention, transformer blocks and text encoders with the fused kernels; products that layers share."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

pytest.importorskip("triton", reason="the kernels are Triton's")

from fused_models import call, relative, scattered, text_of, tiny_unet, train_keys_and_values

from cdiff.concepts import Concept
from cdiff.engine import activation_checkpoint
from cdiff.fused import attention, blocks, fusing, kernels, resnets
from cdiff.fused import text as texts
from cdiff.fused.joining import join, joined
from cdiff.methods import prepare
from cdiff.methods.custom_diffusion import set_training_attention
from cdiff.models import load_base
from cdiff.schema import MethodConfig, ModelConfig
from cdiff.tokens import PromptEncoder, add_tokens

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def pair():
    """A UNet as diffusers has it, and fused."""
    stock = tiny_unet()
    fused = copy.deepcopy(stock)
    assert fusing.fuse(fused)
    return stock, fused


def grads(unet: nn.Module, text: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of keys, values and text, for a training whose loss is the square of the output."""
    trained = train_keys_and_values(unet)
    for parameter in trained.values():
        parameter.grad = None
    text = text.clone().requires_grad_()
    call(unet, text=text).square().sum().backward()
    return {name: parameter.grad for name, parameter in trained.items()} | {"text": text.grad}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] is not None and relative(one[name], other[name]) < 1e-4, name


def counted(monkeypatch, owner, name: str) -> list:
    calls, real = [], getattr(owner, name)

    def wrapped(*inputs, **named):
        calls.append(name)
        return real(*inputs, **named)

    monkeypatch.setattr(owner, name, wrapped)
    return calls


def test_weights_that_lie_together():
    layers = [nn.Linear(6, width, bias=False) for width in (4, 3, 5)]
    weights = [layer.weight for layer in layers]
    before = [weight.detach().clone() for weight in weights]
    assert joined(weights) is None
    join(weights, torch.float64)
    together = joined(weights)
    assert together.shape == (12, 6) and torch.equal(together, torch.cat(before).double())
    assert together.data_ptr() == weights[0].data_ptr() and not together.requires_grad
    weights[1].data[0, 0] = 7.0
    assert together[4, 0] == 7.0  # one memory
    assert joined(weights[:2]) is not None and joined([weights[0], weights[2]]) is None
    assert joined(weights[::-1]) is None
    weights[1].data = weights[1].data.clone()
    assert joined(weights) is None
    join([], torch.float32)


@pytest.mark.parametrize("detach", [False, True])
def test_training_attention_with_a_shared_text(pair, detach, monkeypatch):
    """Gradients of keys, values and text, with and without that of the start token."""
    projected = counted(monkeypatch, attention._ProjectTogether, "apply")
    attends = counted(monkeypatch, kernels, "attend")
    found = []
    for unet in pair:
        set_training_attention(unet, detach)
        found.append(grads(unet, text_of()))
    same(found[1], found[0])
    assert (found[0]["text"][:, 0] == 0).all() == detach
    assert projected == ["apply"] and len(attends) == 4  # one of all blocks, one of each


def test_weights_kept_in_fp32_in_a_half_precision_unet():
    """They lie together too, and their gradients are fp32."""
    unet = tiny_unet()
    fusing.fuse(unet)
    text = torch.randn(2, 5, 16).double()
    [shared] = {layer.shared for layer in unet.modules() if type(layer) is attention.FusedAttention} - {None}
    weights = [own.weight.requires_grad_() for layer in shared.layers for own in (layer.to_k, layer.to_v)]
    found = shared.project(text)
    assert found[id(shared.layers[0])][0].dtype == torch.float64
    sum(own.sum() for both in found.values() for own in both).backward()
    wanted = text.sum(dim=(0, 1)).float()
    for weight in weights:
        assert weight.grad.dtype == torch.float32 and relative(weight.grad, wanted.expand_as(weight)) < 1e-6


def test_what_a_text_gave_is_forgotten_between_calls(pair):
    """Weights and text may change in place."""
    stock, fused = pair
    text = text_of()
    with torch.no_grad():
        for _ in range(2):
            assert relative(call(fused, text=text), call(stock, text=text)) < 1e-5
            text.add_(1.0)
            for unet in pair:
                for parameter in train_keys_and_values(unet).values():
                    parameter.mul_(1.5)
                for layer in unet.modules():
                    if isinstance(layer, resnets.ResnetBlock2D):
                        layer.time_emb_proj.weight.mul_(2.0)
    shared = {layer.shared for layer in fused.modules() if getattr(layer, "shared", None) is not None}
    assert len(shared) == 2 and all(own.input is None and own.found is None for own in shared)


@pytest.mark.parametrize("what", ["a key", "a time embedding", "a query"])
def test_a_weight_that_somebody_replaced(pair, what):
    """It no longer lies beside the others, and is used all the same."""
    for unet in pair:
        block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
        layer = {
            "a key": block.attn2.to_k, "a query": block.attn1.to_q,
            "a time embedding": unet.down_blocks[0].resnets[0].time_emb_proj,
        }[what]  # fmt: skip
        layer.weight.data = layer.weight.data * 3.0
    same(grads(pair[1], text_of()), grads(pair[0], text_of()))


def test_another_attention_processor_does_it_itself(pair):
    """It may do anything: here the values are all 0."""

    class Silent:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
            return torch.zeros_like(hidden_states)

    for unet in pair:
        unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.set_processor(Silent())
    with torch.no_grad():
        assert relative(call(pair[1]), call(pair[0])) < 1e-5


def test_masks_reach_the_stock_layers(pair):
    stock, fused = pair
    mask = torch.ones(2, 5)
    mask[:, 3:] = 0
    with torch.no_grad():
        inputs = (torch.randn(2, 4, 6, 4), torch.tensor([3, 700]), text_of())
        found, wanted = (unet(*inputs, encoder_attention_mask=mask).sample for unet in (fused, stock))
        assert relative(found, wanted) < 1e-5 and relative(call(fused), found) > 1e-3


def test_blocks_that_are_computed_again(pair):
    """memory=low: the text's product would be made in the first block, and not when that is computed again."""
    wanted = grads(pair[0], text_of())
    pair[1].train()
    pair[1].enable_gradient_checkpointing(activation_checkpoint)
    same(grads(pair[1], text_of()), wanted)


def test_a_copy_shares_its_own(pair):
    """Nothing of the copy reads what the original holds."""
    copied = copy.deepcopy(pair[1])
    with torch.no_grad():
        for parameter in train_keys_and_values(pair[1]).values():
            parameter.zero_()
        assert relative(call(copied), call(pair[0])) < 1e-5


def text_encoder(act: str = "quick_gelu", cls: type = CLIPTextModel) -> nn.Module:
    config = CLIPTextConfig(
        vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=9, hidden_act=act, projection_dim=8, bos_token_id=1, eos_token_id=49,
    )  # fmt: skip
    return scattered(cls(config))


@pytest.mark.parametrize(("act", "cls"), [("quick_gelu", CLIPTextModel), ("gelu", CLIPTextModelWithProjection)])
def test_a_fused_text_encoder_is_the_same_function(act, cls, monkeypatch):
    """All hidden states, and the gradient that reaches a new token's row."""
    stock = text_encoder(act, cls)
    fused = copy.deepcopy(stock)
    fusing.fuse(fused)
    norms = counted(monkeypatch, kernels, "add_layer_norm")
    ids = torch.tensor([[1, 7, 9, 49, 49, 49], [1, 3, 49, 49, 49, 49]])
    found = []
    for model in (stock, fused):
        table = model.get_input_embeddings().weight.requires_grad_()
        outputs = model(ids, output_hidden_states=True)
        outputs.last_hidden_state.square().sum().backward()
        found.append({str(n): state for n, state in enumerate(outputs.hidden_states)} | {"row": table.grad})
    same({k: v.detach() for k, v in found[1].items()}, {k: v.detach() for k, v in found[0].items()})
    assert len(found[0]) == 4 and len(norms) == 4  # two a layer


@pytest.mark.parametrize("change", ["trains", "mask", "wrapped", "replaced"])
def test_a_text_encoder_that_is_used_otherwise(change):
    """One whose weights train, a text with padding to leave out, a layer of PEFT, a weight that lies elsewhere."""
    stock = text_encoder()
    fused = copy.deepcopy(stock)
    fusing.fuse(fused)
    ids, named, found = torch.tensor([[1, 7, 9, 49, 49]]), {}, []
    if change == "mask":
        named = {"attention_mask": torch.tensor([[1, 1, 1, 1, 0]])}
    for model in (stock, fused):
        layer = next(own for own in model.modules() if isinstance(own, texts.CLIPEncoderLayer))
        if change == "trains":
            model.requires_grad_(True)
        if change == "wrapped":
            layer.self_attn.q_proj = nn.Sequential(layer.self_attn.q_proj, nn.Tanh())
        if change == "replaced":
            layer.self_attn.v_proj.bias.data = layer.self_attn.v_proj.bias.data + 1.0
        table = model.get_input_embeddings().weight.requires_grad_()
        output = model(ids, **named).last_hidden_state
        output.square().sum().backward()
        of_weight = {"q": layer.self_attn.q_proj.weight.grad} if change == "trains" else {}
        found.append({"output": output.detach(), "row": table.grad} | of_weight)
    same(found[1], found[0])


def test_a_training_takes_the_fused_ways(sd15_folder, monkeypatch):
    """By counts: all text layers, one product of the text a call, one of the time; in training, and when drawing after
    it. A weight that no longer lies where it should would cost its users nothing but time, and nobody would see it. In
    bf16, where what trains is moved to fp32 and back; the interpreter's products of bf16 are nonsense, and not looked
    at."""
    base = load_base(ModelConfig(path=str(sd15_folder), fused=True), torch.bfloat16, "cpu")
    projected = counted(monkeypatch, attention._ProjectTogether, "apply")
    norms, attends = counted(monkeypatch, kernels, "add_layer_norm"), counted(monkeypatch, kernels, "attend")
    times = counted(monkeypatch, resnets.SharedTime, "project")
    rows = add_tokens(base, [Concept("dog", "<new1>", "dog", "dog", Path())])
    trainables = prepare(base, MethodConfig(), spl_weight=1.0)
    hidden = PromptEncoder(base, rows).encode(["a <new1> dog"])[0].hidden
    in_text = sum(isinstance(own, texts.FusedCLIPEncoderLayer) for own in base.text_encoder.modules())
    assert len(norms) == 2 * in_text > 0
    latents, blocks_of = torch.randn(1, 4, 8, 8).bfloat16(), Counter(type(own) for own in base.unet.modules())
    base.unet(latents, 5, hidden).sample.square().sum().backward()
    across = blocks_of[blocks.FusedBasicTransformerBlock]
    assert len(projected) == len(times) == 1 and len(attends) == across > 0
    assert len(norms) == 2 * in_text + 3 * across
    assert rows.grad is not None and all(own.grad is not None for own in trainables.trainable_parameters())
    trainables.restore()
    with torch.no_grad():
        base.unet(latents, 5, hidden.detach())
    assert len(projected) == len(times) == 2
    joins = [own for own in base.unet.modules() if type(own) is attention.FusedAttention and not own.is_cross_attention]
    assert joins and all(joined([own.to_q.weight, own.to_k.weight, own.to_v.weight]) is not None for own in joins)


def test_a_gpu_with_too_little_memory_for_the_kernel(pair, monkeypatch):
    """Its attention is torch's; everything else stays."""
    monkeypatch.setattr(kernels, "few_enough", lambda *_: False)
    attends = counted(monkeypatch, kernels, "attend")
    same(grads(pair[1], text_of()), grads(pair[0], text_of()))
    assert not attends
