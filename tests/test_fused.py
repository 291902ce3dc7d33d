"""The fused kernels against torch's layers: on a CPU, in Triton's interpreter, which computes what the GPU would."""

from __future__ import annotations

import copy
import logging
import sys
from collections import Counter

import pytest
import torch
from diffusers import AutoencoderKL, Transformer2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

pytest.importorskip("triton", reason="the kernels are Triton's")

from fused_models import call, relative, scattered, tiny_unet, train_keys_and_values

from cdiff.fused import attention, blocks, fusing, kernels, modules, resnets

RESNET = ["norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"]
TRANSFORMER = ["norm", "proj_in", "proj_out"]
# rows of a tile that are not there, and are not stored: after a norm of a constant they are far below zero
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)  # for each test, so that one alone sees the numbers it sees among the others


@pytest.mark.parametrize("linear", [False, True])
def test_a_fused_unet_is_the_same_function(linear, monkeypatch):
    """Output and gradients of keys and values, as 1.x and XL are built; and every kind of layer is reached."""
    stock = tiny_unet(linear)
    fused = copy.deepcopy(stock)
    assert fusing.fuse(fused)
    calls = {"group_norm": 0, "geglu": 0, "add_biased": 0, "add_layer_norm": 0, "attend": 0}
    for name in calls:
        real = getattr(kernels, name)

        def counted(*inputs, name=name, real=real):
            calls[name] += 1
            return real(*inputs)

        monkeypatch.setattr(kernels, name, counted)
    outputs = []
    for unet in (stock, fused):
        train_keys_and_values(unet)
        outputs.append(call(unet))
        outputs[-1].square().sum().backward()
    assert relative(outputs[1].detach(), outputs[0].detach()) < 1e-5
    for name, parameter in train_keys_and_values(stock).items():
        assert relative(dict(fused.named_parameters())[name].grad, parameter.grad) < 1e-4
    counts = Counter(type(layer) for layer in fused.modules())
    residual, pictures = counts[resnets.FusedResnetBlock2D], counts[modules.FusedTransformer2DModel]
    assert counts[blocks.FusedBasicTransformerBlock] == pictures > 0 < residual
    assert counts[attention.FusedAttention] == 2 * pictures
    assert calls == {"group_norm": 2 * residual + pictures + 1, "geglu": pictures, "add_biased": residual + pictures,
                     "add_layer_norm": 3 * pictures, "attend": pictures}  # fmt: skip
    assert list(fused.state_dict()) == list(stock.state_dict())


def test_a_fused_vae_is_the_same_function():
    vae = AutoencoderKL(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    vae = scattered(vae)
    fused = copy.deepcopy(vae).to(memory_format=torch.channels_last)
    assert fusing.fuse(fused)
    with torch.no_grad():
        pixels, latents = torch.randn(1, 3, 16, 12), torch.randn(1, 4, 8, 6)
        assert relative(fused.encode(pixels).latent_dist.mean, vae.encode(pixels).latent_dist.mean) < 1e-5
        assert relative(fused.decode(latents).sample, vae.decode(latents).sample) < 1e-5


def tiny_resnet() -> ResnetBlock2D:
    return scattered(ResnetBlock2D(in_channels=16, out_channels=24, temb_channels=12, groups=2))


def tiny_transformer(linear: bool) -> Transformer2DModel:
    transformer = Transformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=16, norm_num_groups=2, cross_attention_dim=12,
        activation_fn="geglu", use_linear_projection=linear,
    )  # fmt: skip
    return scattered(transformer)


def inputs_of(block: nn.Module) -> list[torch.Tensor]:
    """Of a resnet: picture and time embedding; of a transformer: picture and text. The picture takes a gradient.

    torch's own group norm needs that on a CPU: with weights that train, an input that does not and lies channels_last,
    its backward writes the input's gradient to address 0 (torch 2.13, fewer than 2048 pixels).
    """
    generator = torch.Generator().manual_seed(1)
    picture = torch.randn(2, 16, 5, 3, generator=generator).to(memory_format=torch.channels_last).requires_grad_()
    other = (2, 12) if isinstance(block, ResnetBlock2D) else (2, 3, 12)
    return [picture, torch.randn(other, generator=generator)]


def through(block: nn.Module, picture: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    if isinstance(block, ResnetBlock2D):
        return block(picture, other)
    return block(picture, encoder_hidden_states=other, return_dict=False)[0]


BLOCKS = {"resnet": tiny_resnet, "pointwise": lambda: tiny_transformer(False), "linear": lambda: tiny_transformer(True)}
LAYERS = [("resnet", layer) for layer in RESNET] + [
    (kind, layer) for kind in ("pointwise", "linear") for layer in TRANSFORMER
]


@pytest.mark.parametrize(("kind", "layer"), [*LAYERS, ("resnet", "its time embedding"), ("pointwise", "ff")])
def test_weights_that_train_take_torchs_kernels(kind, layer):
    """Whatever of a block trains, alone or what stands before it: each gradient is torch's."""
    stock = BLOCKS[kind]()
    fused = copy.deepcopy(stock)
    assert fusing.fuse(fused)
    grads = []
    for block in (stock, fused):
        picture, other = inputs_of(block)
        trained = {name: parameter for name, parameter in block.named_parameters() if layer in name.split(".")}
        if layer == "its time embedding":
            trained = {layer: other}
        for tensor in trained.values():
            tensor.requires_grad_()
        through(block, picture, other).square().sum().backward()
        grads.append({name: tensor.grad for name, tensor in (trained | {"picture": picture}).items()})
    assert len(grads[0]) > 1
    for name, grad in grads[0].items():
        assert grads[1][name] is not None, f"{name} gets no gradient"
        assert relative(grads[1][name], grad) < 1e-4, name


def test_a_whole_unet_that_trains():
    """DreamBooth: norms and convolutions too."""
    stock = tiny_unet(linear=False)
    fused = copy.deepcopy(stock)
    assert fusing.fuse(fused)
    for unet in (stock, fused):
        call(unet.requires_grad_(True)).square().sum().backward()
    for (name, parameter), own in zip(stock.named_parameters(), fused.parameters(), strict=True):
        assert own.grad is not None, f"{name} gets no gradient"
        assert relative(own.grad, parameter.grad) < 1e-4, name


@pytest.mark.parametrize(("kind", "layer"), [case for case in LAYERS if "norm" not in case[1]])
def test_a_layer_that_peft_wrapped_is_still_called(kind, layer):
    """PEFT puts its layer in the place of one: what that adds must be in the result, frozen though it is."""
    peft = pytest.importorskip("peft")
    stock = BLOCKS[kind]()
    with torch.no_grad():
        inputs = inputs_of(stock)
        before = through(stock, *inputs)
        config = peft.LoraConfig(r=4, target_modules=[layer], init_lora_weights=False)
        peft.inject_adapter_in_model(config, stock).requires_grad_(False)
        fused = copy.deepcopy(stock)
        assert fusing.fuse(fused)
        wanted = through(stock, *inputs)
        assert relative(wanted, before) > 1e-2
        assert relative(through(fused, *inputs), wanted) < 1e-5


def test_stock_layers_again():
    unet = tiny_unet(linear=False)
    kinds = [type(layer) for layer in unet.modules()]
    hooks = [len(unet._forward_pre_hooks), len(unet._forward_hooks)]
    fusing.fuse(unet)
    fusing.unfuse(unet)
    assert [type(layer) for layer in unet.modules()] == kinds
    assert [len(unet._forward_pre_hooks), len(unet._forward_hooks)] == hooks
    assert not any("shared" in vars(layer) for layer in unet.modules())  # with nothing to make it forget


def test_a_machine_where_triton_fails_goes_on(monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    monkeypatch.setattr(kernels, "group_norm", fails)
    unet = tiny_unet(linear=False)
    with caplog.at_level(logging.WARNING, logger="cdiff"):
        assert not fusing.fuse(unet)
    assert caplog.messages == [
        "Fused kernels can't be used here (Failed to find C compiler. Please specify via CC environment variable): "
        "everything works without, only slower."
    ]
    assert call(unet).isfinite().all()


def test_a_machine_that_has_no_triton_goes_on_without_a_warning(monkeypatch, caplog):
    """torch brings Triton on Linux alone: elsewhere there is nothing to mend."""
    monkeypatch.setitem(sys.modules, "cdiff.fused.kernels", None)  # importing it raises ModuleNotFoundError
    monkeypatch.delattr("cdiff.fused.kernels")
    unet = tiny_unet(linear=False)
    with caplog.at_level(logging.INFO, logger="cdiff"):
        assert not fusing.fuse(unet)
    assert [record.levelname for record in caplog.records] == ["INFO"] and "no Triton here" in caplog.text
    assert not any(type(layer) in fusing.FUSED.values() for layer in unet.modules())


@pytest.mark.parametrize("kernel", ["group_norm", "geglu", "add_biased", "add_layer_norm", "attend", "quick_gelu"])
def test_kernels_that_compute_something_else_are_not_used(kernel, monkeypatch, caplog):
    """A compiler that miscompiles, on a machine nobody has seen: forward, or in the gradient alone."""
    real = getattr(kernels, kernel)
    for wrong in (lambda y: y * 1.01, lambda y: y.detach() + 0 * y):

        def spoilt(*inputs, wrong=wrong):
            found = real(*inputs)
            return (found[0], wrong(found[1])) if isinstance(found, tuple) else wrong(found)

        monkeypatch.setattr(kernels, kernel, spoilt)
        unet = tiny_unet(linear=False)
        assert not fusing.fuse(unet) and "something else than torch" in caplog.text
        assert not any(type(layer) in fusing.FUSED.values() for layer in unet.modules())
        caplog.clear()


def test_kernels_are_tried_in_full_precision():
    """Beside a loading model, which may have set another precision as the default for all threads."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        fusing.try_kernels(torch.device("cpu")).result()
    finally:
        torch.set_default_dtype(torch.float32)
