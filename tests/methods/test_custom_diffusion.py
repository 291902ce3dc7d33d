import pytest
import torch
from tiny import TinyConcept

from cdiff.adapter import parameter_name
from cdiff.errors import UserError
from cdiff.losses import phrases, semantic_preservation_loss
from cdiff.methods import prepare
from cdiff.methods.custom_diffusion import TrainingAttention
from cdiff.schema import MethodConfig
from cdiff.tokens import PromptEncoder, add_tokens

PROMPTS = ["a photo of a <new1> dog", "a <new1> dog on the beach"]


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator).to(dtype)
    return latents, torch.tensor([100, 700])


def hidden_states(dtype=torch.float32):
    return torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


def predict(base, text, dtype=torch.float32):
    latents, timesteps = inputs(dtype)
    return base.unet(latents, timesteps, text).sample


def cross_attentions(unet):
    return {name: module for name, module in unet.named_modules() if name.endswith("attn2")}


def test_selection_is_every_cross_attention(sd15):
    trainables = prepare(sd15, MethodConfig())
    expected = {f"{layer}.to_{kind}.weight" for layer in cross_attentions(sd15.unet) for kind in "kv"}
    assert set(trainables.named) == expected and len(expected) == 32
    assert {name for name, p in sd15.unet.named_parameters() if p.requires_grad} == expected
    assert len(trainables.trainable_parameters()) == 32


def test_crossattn_adds_queries_and_outputs(sd15):
    trainables = prepare(sd15, MethodConfig(train_unet="crossattn"))
    assert len(trainables.named) == 16 * 5  # q, k, v, and the output's weight and bias
    assert not any("attn1" in name for name in trainables.named)


def test_forward_is_the_stock_processors(sd15):
    text = hidden_states()
    with torch.no_grad():
        stock = predict(sd15, text)
        trainables = prepare(sd15, MethodConfig())
        assert isinstance(next(iter(cross_attentions(sd15.unet).values())).processor, TrainingAttention)
        assert torch.equal(predict(sd15, text), stock)
    torch.testing.assert_close(predict(sd15, text), stock)  # with gradients, hence the detached position
    trainables.restore()
    with torch.no_grad():
        assert torch.equal(predict(sd15, text), stock)


def test_an_attention_mask_is_honoured(sd15):
    text, (latents, timesteps) = hidden_states(), inputs()
    mask = torch.arange(77).expand(2, -1) < torch.tensor([[5], [77]])
    with torch.no_grad():
        stock = sd15.unet(latents, timesteps, text, encoder_attention_mask=mask).sample
        prepare(sd15, MethodConfig())
        ours = sd15.unet(latents, timesteps, text, encoder_attention_mask=mask).sample
    assert torch.equal(ours, stock) and not torch.allclose(stock, predict(sd15, text))


def test_gradient_reaches_keys_values_and_rows_alone(sd15):
    rows = add_tokens(sd15, [TinyConcept()])
    trainables = prepare(sd15, MethodConfig())
    encoder = PromptEncoder(sd15, rows)
    personal, text = encoder.encode([phrases("<new1>", "dog")[0]], PROMPTS)
    plain = encoder.constant([phrases("<new1>", "dog")[1]])
    spl = semantic_preservation_loss(encoder.feature(personal), encoder.feature(plain))
    (predict(sd15, text.hidden).square().mean() + spl).backward()
    assert rows.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainables.trainable_parameters())
    trained = {id(p) for p in trainables.trainable_parameters()}
    for model in (sd15.unet, sd15.text_encoder, sd15.vae):
        assert all(p.grad is None for p in model.parameters() if id(p) not in trained)


@pytest.mark.parametrize("detach", [True, False])
def test_start_token_carries_no_gradient(sd15, detach):
    """Text that is zero past the start reaches the keys and values through the start token alone."""
    trainables = prepare(sd15, MethodConfig(detach_start_token=detach))
    text = hidden_states()
    text[:, 1:] = 0
    text.requires_grad_(True)
    predict(sd15, text).square().sum().backward()
    for parameter in trainables.trainable_parameters():
        assert (parameter.grad.abs().sum() == 0) == detach
    assert (text.grad[:, 0].abs().sum() == 0) == detach
    assert text.grad[:, 1:].abs().sum() > 0


def test_detached_gradient_is_the_stock_gradient_without_position_0(sd15):
    """Of one layer: dL/dK = sum over positions; the start token's share, taken out by hand, is all that differs."""
    layer = sd15.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    layer.to_k.weight.requires_grad_(True)
    queries, text = torch.randn(2, 9, 16), hidden_states()
    kept = {}
    hook = layer.to_k.register_forward_hook(lambda module, args, out: (out.retain_grad(), kept.update(key=out))[0])
    layer(queries, encoder_hidden_states=text).square().sum().backward()
    hook.remove()
    share = torch.einsum("bi,bj->ij", kept["key"].grad[:, 0], text[:, 0])
    expected = layer.to_k.weight.grad - share
    layer.to_k.weight.grad = None
    layer.set_processor(TrainingAttention())
    layer(queries, encoder_hidden_states=text).square().sum().backward()
    assert share.abs().max() > 0
    torch.testing.assert_close(layer.to_k.weight.grad, expected)


@pytest.mark.parametrize("train_unet", ["crossattn_kv", "crossattn"])
@pytest.mark.parametrize("autocast", [True, False])
def test_fp32_weights_in_a_bf16_unet(sd15, train_unet, autocast):
    text = hidden_states(torch.bfloat16)
    sd15.unet.to(torch.bfloat16)
    sd15.dtype = torch.bfloat16
    with torch.no_grad():
        stock = predict(sd15, text, torch.bfloat16)
    trainables = prepare(sd15, MethodConfig(train_unet=train_unet))
    assert all(p.dtype == torch.float32 for p in trainables.trainable_parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = predict(sd15, text, torch.bfloat16)
    torch.testing.assert_close(output.float(), stock.float(), atol=0.03, rtol=0.1)
    output.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in trainables.trainable_parameters())
    trainables.restore()
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in sd15.unet.parameters())
    with torch.no_grad():
        assert torch.equal(predict(sd15, text, torch.bfloat16), stock)


def test_training_moves_only_what_is_selected_even_with_weight_decay(sd15):
    before = {name: tensor.clone() for name, tensor in sd15.unet.state_dict().items()}
    trainables = prepare(sd15, MethodConfig())
    optimizer = torch.optim.AdamW(trainables.trainable_parameters(), lr=0.01, weight_decay=0.1)
    predict(sd15, hidden_states()).square().mean().backward()
    optimizer.step()
    trainables.restore()
    moved = {name for name, tensor in sd15.unet.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(trainables.named)


def test_gradient_checkpointing_gives_the_same_gradient(sd15):
    trainables = prepare(sd15, MethodConfig())
    predict(sd15, hidden_states()).square().mean().backward()
    plain = [p.grad.clone() for p in trainables.trainable_parameters()]
    sd15.unet.enable_gradient_checkpointing()
    sd15.unet.train().zero_grad()
    predict(sd15, hidden_states()).square().mean().backward()
    for parameter, grad in zip(trainables.trainable_parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_state_has_diffusers_names_and_is_a_copy(sd15):
    trainables = prepare(sd15, MethodConfig(train_unet="crossattn"))
    state = trainables.unet_state()
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2"
    assert f"{layer}.processor.to_k_custom_diffusion.weight" in state
    assert f"{layer}.processor.to_out_custom_diffusion.0.bias" in state
    assert {parameter_name(name) for name in state} == set(trainables.named)
    first = next(iter(state.values()))
    trainables.trainable_parameters()[0].data.add_(1)
    assert not torch.equal(first, trainables.trainable_parameters()[0])


def test_the_token_alone(sd15):
    trainables = prepare(sd15, MethodConfig(train_unet="none"))
    assert trainables.trainable_parameters() == [] and trainables.unet_state() == {} and trainables.train_token
    assert not any(p.requires_grad for p in sd15.unet.parameters())


def test_wrong_settings_are_named(sd15):
    with pytest.raises(UserError, match="method=svdiff"):
        prepare(sd15, MethodConfig(name="svdiff"))
    with pytest.raises(UserError, match="train_unet=kv"):
        prepare(sd15, MethodConfig(train_unet="kv"))
    with pytest.raises(UserError, match="nothing would train"):
        prepare(sd15, MethodConfig(train_unet="none", train_token=False))
