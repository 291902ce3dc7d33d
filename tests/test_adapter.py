import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from tiny import VOCABULARY, TinyConcept
from tiny_job import plain_environment

from cdiff.adapter import UNET_FILE, Adapter, adapter_name, apply_adapter, load_adapter, parameter_name, save_adapter
from cdiff.errors import UserError
from cdiff.methods import prepare
from cdiff.models import load_base
from cdiff.schema import MethodConfig, ModelConfig
from cdiff.tokens import PromptEncoder, add_tokens, write_rows

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2"
KEY = f"{LAYER}.processor.to_k_custom_diffusion.weight"
INFO = {"base_model": "tiny", "method": "class_diffusion", "concepts": [{"token": "<new1>", "class_word": "dog"}]}


@pytest.fixture(params=["crossattn_kv", "crossattn"])
def tuned(request, sd15, tmp_path):
    """(base with changed weights and token, folder of its adapter)."""
    return tune(sd15, tmp_path, request.param)


@pytest.fixture(scope="session")
def adapter_once(sd15_folder, tmp_path_factory):
    return tune(fresh(sd15_folder), tmp_path_factory.mktemp("adapter"), "crossattn_kv")[1]


@pytest.fixture
def adapter_folder(adapter_once, tmp_path):
    """The folder of a K/V adapter with one token, free to be damaged."""
    return shutil.copytree(adapter_once, tmp_path / "run" / "adapter")


def tune(base, tmp_path, train_unet):
    rows = add_tokens(base, [TinyConcept()])
    trainables = prepare(base, MethodConfig(train_unet=train_unet))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in [*trainables.trainable_parameters(), rows]:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    folder = save_adapter(tmp_path / "run" / "adapter", trainables.unet_state(), {"<new1>": rows[0]}, INFO)
    trainables.restore()
    write_rows(base, rows, ["<new1>"])
    return base, folder


def fresh(folder):
    return load_base(ModelConfig(path=str(folder)), torch.float32, "cpu")


def draw(base, prompt="a photo of a <new1> dog"):
    """Latents of a stock pipeline from the prompt itself: diffusers tokenizes, encodes and denoises."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler.from_config(base.scheduler.config)
    parts = {name: getattr(base, name) for name in ("tokenizer", "text_encoder", "vae", "unet")}
    pipe = StableDiffusionPipeline(
        **parts, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipe(prompt, num_inference_steps=3, generator=generator, output_type="latent", height=64, width=64).images


def test_adapter_makes_a_stock_pipeline_draw_as_tuned(tuned, sd15_folder):
    base, folder = tuned
    expected = draw(base)
    loaded = fresh(sd15_folder)
    before = draw(loaded)
    apply_adapter(loaded, load_adapter(folder))
    assert torch.equal(draw(loaded), expected)
    assert (before - expected).abs().max() > 0.01
    for part in ("unet", "text_encoder"):
        own, theirs = getattr(base, part).state_dict(), getattr(loaded, part).state_dict()
        assert all(torch.equal(own[name], theirs[name]) for name in own)
    prompts = ["a photo of a <new1> dog"]
    ours, theirs = (PromptEncoder(model).encode_sample(prompts).hidden for model in (loaded, base))
    assert torch.equal(ours, theirs)


def test_works_without_peft(adapter_folder, sd15_folder):
    """The same in a process where PEFT can't be imported; the package itself never asks for it."""
    lora = adapter_folder.parent / "pytorch_lora_weights.safetensors"
    sides = {"down": torch.full((2, 16), 3.0), "up": torch.ones(16, 2)}
    save_file({f"unet.{LAYER}.to_q.lora.{side}.weight": tensor for side, tensor in sides.items()}, lora)
    code = f"""
        import torch
        from diffusers.utils import is_peft_available
        from cdiff.adapter import apply_adapter, load_adapter
        from cdiff.models import load_base
        from cdiff.schema import ModelConfig
        base = load_base(ModelConfig(path={str(sd15_folder)!r}), torch.float32, "cpu")
        adapter = load_adapter({str(adapter_folder)!r})
        apply_adapter(base, adapter)
        assert torch.equal(base.unet.get_parameter({LAYER + ".to_k.weight"!r}), adapter.unet[{KEY!r}])
        before = base.unet.get_parameter({LAYER + ".to_q.weight"!r}).clone()
        apply_adapter(base, load_adapter({str(lora)!r}))
        torch.testing.assert_close(base.unet.get_parameter({LAYER + ".to_q.weight"!r}), before + 6)  # rank 2 x 3 x 1
        print("peft", is_peft_available())
    """
    script = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(script, env=plain_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["peft", "False"]


def test_round_trip_is_exact_and_the_files_are_as_documented(tuned):
    base, folder = tuned
    assert {p.name for p in folder.iterdir()} == {f"{UNET_FILE}.safetensors", "<new1>.safetensors", "adapter.json"}
    weights = load_file(folder / f"{UNET_FILE}.safetensors")
    for name, tensor in weights.items():
        assert torch.equal(tensor, base.unet.get_parameter(parameter_name(name)))
    vector = load_file(folder / "<new1>.safetensors")
    assert list(vector) == ["<new1>"] and vector["<new1>"].shape == (32,)
    info = json.loads((folder / "adapter.json").read_text())
    assert info["concepts"] == INFO["concepts"] and info["tokens"] == ["<new1>"] and "torch" in info["versions"]
    adapter = load_adapter(folder)
    assert adapter.info == info and adapter.unet.keys() == weights.keys()
    assert torch.equal(adapter.tokens["<new1>"], vector["<new1>"])
    assert load_adapter(folder.parent).path == folder  # the run folder will do


def test_names_are_the_ones_diffusers_writes(sd15):
    """Against diffusers' own Custom Diffusion processors, whose state dict it saves."""
    from diffusers.models.attention_processor import CustomDiffusionAttnProcessor2_0

    names = set()
    for layer in [name for name in sd15.unet.attn_processors if "attn2" in name]:
        processor = CustomDiffusionAttnProcessor2_0(True, True, hidden_size=16, cross_attention_dim=32)
        names |= {f"{layer}.{name}" for name in processor.state_dict()}
    assert names == set(prepare(sd15, MethodConfig(train_unet="crossattn")).unet_state())
    assert all(adapter_name(parameter_name(name)) == name for name in names)


def test_diffusers_textual_inversion_loads_the_token_file(adapter_folder, sd15_folder):
    from diffusers.loaders.textual_inversion import load_textual_inversion_state_dicts

    (state,) = load_textual_inversion_state_dicts([str(adapter_folder / "<new1>.safetensors")], local_files_only=True)
    assert list(state) == ["<new1>"]


@pytest.mark.parametrize("writer", ["pickle", "old pickle", "safetensors"])
def test_bin_files_of_diffusers_and_the_release(adapter_folder, sd15_folder, tmp_path, writer):
    """No adapter.json; pickles note attn1 as an empty dict; safetensors bytes may be called .bin."""
    weights = load_file(adapter_folder / f"{UNET_FILE}.safetensors")
    token = load_file(adapter_folder / "<new1>.safetensors")
    folder = tmp_path / "release"
    folder.mkdir()
    if writer == "safetensors":
        (folder / f"{UNET_FILE}.bin").write_bytes(save(weights))
        (folder / "<new1>.bin").write_bytes(save(token))
    else:
        attn1 = {f"{LAYER.replace('attn2', 'attn1')}.processor": {}}
        for name, content in ((UNET_FILE, {**attn1, **weights}), ("<new1>", token)):
            torch.save(content, folder / f"{name}.bin", _use_new_zipfile_serialization=writer == "pickle")
    (folder / "optimizer.bin").write_bytes(b"not read")
    ours, theirs = load_adapter(adapter_folder), load_adapter(folder)
    assert ours.unet.keys() == theirs.unet.keys() and ours.tokens.keys() == theirs.tokens.keys()
    base = fresh(sd15_folder)
    apply_adapter(base, theirs)
    assert torch.equal(base.unet.get_parameter(f"{LAYER}.to_k.weight"), weights[KEY])
    assert torch.equal(base.text_encoder.get_input_embeddings().weight[VOCABULARY], token["<new1>"])
    single = load_adapter(folder / f"{UNET_FILE}.bin")
    assert single.unet.keys() == weights.keys() and not single.tokens
    assert load_adapter(folder / "<new1>.bin").tokens.keys() == {"<new1>"}


def test_bin_files_with_queries_and_outputs(sd15, sd15_folder, tmp_path):
    """`crossattn`, as diffusers' example saves it: a pickle with to_q and to_out beside K and V."""
    base, folder = tune(sd15, tmp_path, "crossattn")
    weights = load_file(folder / f"{UNET_FILE}.safetensors")
    file = tmp_path / f"{UNET_FILE}.bin"
    torch.save(weights, file)
    loaded = fresh(sd15_folder)
    apply_adapter(loaded, load_adapter(file))
    assert all(torch.equal(p, base.unet.get_parameter(name)) for name, p in loaded.unet.named_parameters())
    for part in ("to_out_custom_diffusion.0.bias", "to_q_custom_diffusion.weight"):
        torch.save({name: t for name, t in weights.items() if name != f"{LAYER}.processor.{part}"}, file)
        with pytest.raises(UserError, match=f"lacks {LAYER}.processor.{part}"):
            apply_adapter(fresh(sd15_folder), load_adapter(file))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_with_code_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    file = tmp_path / f"{UNET_FILE}.bin"
    for write in (lambda: torch.save({KEY: Bomb()}, file), lambda: file.write_bytes(pickle.dumps(Bomb()))):
        write()
        with pytest.raises(UserError, match="holds more than tensors"):
            load_adapter(tmp_path)
    assert not (tmp_path / "ran").exists()


def rewrite(folder, change):
    file = folder / f"{UNET_FILE}.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    info = json.loads((folder / "adapter.json").read_text())
    (folder / "adapter.json").write_text(json.dumps({**info, "unet_tensors": len(weights)}))


CHANGES = {
    "has shape": lambda w: w.update({KEY: w[KEY][:, :-1].contiguous()}),
    "lacks .*to_k_custom_diffusion": lambda w: w.pop(KEY),
    "lacks .*to_v_custom_diffusion": lambda w: [w.pop(name) for name in list(w) if "to_v" in name],
    "lacks .*to_q_custom_diffusion": lambda w: w.update({KEY.replace("to_k", "to_q"): torch.zeros(16, 16)}),
    "has no place": lambda w: w.update({KEY.replace("mid_block", "down_blocks.7"): torch.zeros(16, 32)}),
    "neither a Custom Diffusion weight": lambda w: w.update({"lora.up": torch.zeros(4, 4)}),
    "stray.bias is no Custom Diffusion weight": lambda w: w.update({"stray.bias": torch.zeros(32)}),
    "not finite": lambda w: w[KEY].fill_(float("nan")),
    "self-attention": lambda w: w.update({KEY.replace("attn2", "attn1"): torch.zeros(16, 16)}),
}


@pytest.mark.parametrize("message", CHANGES)
def test_every_tensor_that_does_not_fit_is_named_and_nothing_changes(adapter_folder, sd15_folder, message):
    rewrite(adapter_folder, CHANGES[message])
    base = fresh(sd15_folder)
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    with pytest.raises(UserError, match=message):
        apply_adapter(base, load_adapter(adapter_folder))
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.unet.state_dict().items())
    assert len(base.tokenizer) == VOCABULARY


def test_self_attention_equal_to_the_base_is_no_change(adapter_folder, sd15_folder):
    base = fresh(sd15_folder)
    same = base.unet.get_parameter(f"{LAYER.replace('attn2', 'attn1')}.to_k.weight").clone()
    rewrite(adapter_folder, lambda weights: weights.update({KEY.replace("attn2", "attn1"): same}))
    apply_adapter(base, load_adapter(adapter_folder))


def test_token_of_another_width_and_a_second_application_are_refused(adapter_folder, sd15_folder):
    base = fresh(sd15_folder)
    adapter = load_adapter(adapter_folder)
    with pytest.raises(UserError, match=r"<new1> has 8 numbers, this base model's words 32"):
        apply_adapter(base, Adapter({}, {"<new1>": torch.zeros(8)}))
    apply_adapter(base, adapter)
    with pytest.raises(UserError, match="already has <new1>"):
        apply_adapter(base, adapter)


def test_half_precision_base_takes_the_values_in_its_dtype(adapter_folder, sd15_folder):
    base = load_base(ModelConfig(path=str(sd15_folder)), torch.bfloat16, "cpu")
    adapter = load_adapter(adapter_folder)
    apply_adapter(base, adapter)
    table = base.text_encoder.get_input_embeddings().weight
    assert table.dtype == torch.bfloat16 and not table.requires_grad
    assert torch.equal(base.unet.get_parameter(f"{LAYER}.to_k.weight"), adapter.unet[KEY].bfloat16())


def test_a_token_alone_is_an_adapter(tmp_path, sd15_folder):
    folder = save_adapter(tmp_path / "adapter", {}, {"<new1>": torch.ones(32), "<new2>": torch.zeros(32)}, INFO)
    assert not (folder / f"{UNET_FILE}.safetensors").exists()
    base = fresh(sd15_folder)
    apply_adapter(base, load_adapter(folder))
    assert base.tokenizer("<new1> <new2>", add_special_tokens=False).input_ids == [VOCABULARY, VOCABULARY + 1]


def damage(folder, name, content=None):
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (f"{UNET_FILE}.safetensors", None, "holds 0 UNet tensors"),
        ("<new1>.safetensors", None, "lacks <new1>"),
        ("<new1>.safetensors", b"", "is empty"),
        ("<new1>.safetensors", b"1234", "damaged"),
        ("<new1>.safetensors", save({"<other>": torch.zeros(32)}), "another token"),
        ("<new1>.safetensors", save({"<new1>": torch.zeros(2, 32)}), "neither"),
        ("<new1>.safetensors", save({KEY: torch.zeros(16, 32)}), "is no token"),
        ("<new1>.safetensors", save({"../evil": torch.zeros(32)}), "can't be a token"),
        (f"{UNET_FILE}.safetensors", (999).to_bytes(8, "little") + b"{", "damaged"),
        (f"{UNET_FILE}.safetensors", b"<!DOCTYPE html><html>", "damaged"),
        ("adapter.json", b"{", "JSON"),
        ("adapter.json", b"[]", "one JSON object"),
        ("adapter.json", b'{"format": 2}', "update cdiff"),
        ("adapter.json", b'{"tokens": ["../../secret"]}', "can't be a token"),
    ],
)
def test_damaged_adapters_are_named(adapter_folder, name, content, message):
    damage(adapter_folder, name, content)
    with pytest.raises(UserError, match=message):
        load_adapter(adapter_folder)


def test_no_adapter_is_said(tmp_path):
    with pytest.raises(UserError, match="there is no adapter"):
        load_adapter(tmp_path / "missing")
    with pytest.raises(UserError, match="holds no adapter"):
        load_adapter(tmp_path)


BAD_TOKENS = ["../<new1>", "a/b", "..", "", "<new 1>", "a\\b", ".hidden", "C:x", "<new\n1>", "x" * 101]


@pytest.mark.parametrize("token", BAD_TOKENS)
def test_a_token_can_not_leave_the_folder(tmp_path, token):
    with pytest.raises(UserError, match="can't be a token"):
        save_adapter(tmp_path / "runs" / "adapter", {}, {token: torch.zeros(4)}, {})
    assert not (tmp_path / "runs").exists()


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    tmp_path = tmp_path / "run"
    folder = save_adapter(tmp_path / "adapter", {}, {"<new1>": torch.ones(4)}, {"step": 1})

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cdiff.adapter.writing.save_file", full_disk)
        with pytest.raises(UserError, match="No space left"):
            save_adapter(folder, {}, {"<new1>": torch.zeros(4)}, {"step": 2})
    rename = os.rename

    def last_rename_fails(source, target):
        if str(source).endswith(".partial"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", last_rename_fails)
        with pytest.raises(UserError, match="Input/output error"):
            save_adapter(folder, {}, {"<new1>": torch.zeros(4)}, {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert load_adapter(folder).info["step"] == 1
    save_adapter(folder, {}, {"<new2>": torch.zeros(4)}, {"step": 3})
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert load_adapter(folder).tokens.keys() == {"<new2>"} and not (folder / "<new1>.safetensors").exists()


def test_a_place_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        save_adapter(tmp_path / "file" / "adapter", {}, {"<new1>": torch.zeros(4)}, {})
