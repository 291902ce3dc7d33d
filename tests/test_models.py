import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import SCHEDULER, add_text_prefix

from cdiff.errors import UserError
from cdiff.models import find_base, load_base, resolve_device, resolve_precision
from cdiff.schema import ModelConfig


@pytest.fixture
def copy(sd15_folder, tmp_path):
    return shutil.copytree(sd15_folder, tmp_path / "model")


def load(folder, dtype=torch.float32, **options):
    return load_base(ModelConfig(path=str(folder), **options), dtype, "cpu")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_layout_and_key_names_are_stable_diffusions(sd15_folder):
    keys = load_file(sd15_folder / "unet" / "diffusion_pytorch_model.safetensors").keys()
    attn2 = [key for key in keys if key.endswith("attn2.to_k.weight")]
    assert len(attn2) == 16  # as in SD 1.5
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight" in attn2
    assert "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight" in attn2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_part_is_frozen_in_eval_mode_and_in_its_dtype(sd15_folder, dtype):
    base = load(sd15_folder, dtype)
    for model in (base.text_encoder, base.vae, base.unet):
        assert not model.training
        assert all(p.dtype == dtype and not p.requires_grad for p in model.parameters())
    assert base.prediction_type == "epsilon" and base.latent_factor == 8 and base.latent_channels == 4
    assert (base.dtype, base.device, base.folder) == (dtype, torch.device("cpu"), sd15_folder)


def test_weights_are_the_files(sd15, sd15_folder):
    for part, model in (("unet", sd15.unet), ("vae", sd15.vae)):
        stored = load_file(sd15_folder / part / "diffusion_pytorch_model.safetensors")
        assert stored.keys() == model.state_dict().keys()
        assert all(torch.equal(stored[name], tensor) for name, tensor in model.state_dict().items())


def test_noise_schedule_is_the_bases(sd15):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(sd15.scheduler.betas, betas)
    assert sd15.scheduler.config.steps_offset == 1


def test_v_prediction_is_honoured_and_others_are_refused(copy):
    file = copy / "scheduler" / "scheduler_config.json"
    edit(file, prediction_type="v_prediction")
    assert load(copy).prediction_type == "v_prediction"
    edit(file, prediction_type="sample")
    with pytest.raises(UserError, match="prediction_type sample"):
        load(copy)


def test_old_prefixed_text_encoder_loads_the_same(copy, sd15):
    add_text_prefix(copy / "text_encoder" / "model.safetensors")
    old = load(copy).text_encoder.state_dict()
    assert all(torch.equal(old[name], tensor) for name, tensor in sd15.text_encoder.state_dict().items())


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "vae", "unet", "scheduler"])
def test_a_missing_part_is_named(copy, part):
    shutil.rmtree(copy / part)
    with pytest.raises(UserError, match=f"{part}/ is missing"):
        load(copy)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("model_index.json", "model_index.json"),
        ("tokenizer/merges.txt", "vocabulary"),
        ("unet/config.json", "unet/ lacks config.json"),
        ("vae/diffusion_pytorch_model.safetensors", "no weights"),
        ("scheduler/scheduler_config.json", "scheduler/ lacks scheduler_config.json"),
    ],
)
def test_a_missing_file_is_named(copy, file, words):
    (copy / file).unlink()
    with pytest.raises(UserError, match=words):
        load(copy)


def test_pickled_weights_are_not_opened(copy):
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(UserError, match="pickled"):
        load(copy)


@pytest.mark.parametrize("part", ["text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"])
def test_damaged_weights_are_named(copy, part):
    file = copy / f"{part}.safetensors"
    for content in (file.read_bytes()[:-100], b"", b"not safetensors at all"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=str(file.parent)):
            load(copy)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("text_encoder/model", "encoder.layers.1.mlp.fc1.weight"),
        ("unet/diffusion_pytorch_model", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"),
        ("vae/diffusion_pytorch_model", "decoder.conv_out.weight"),
    ],
)
def test_weights_that_are_missing_or_misshapen_are_an_error_not_random_numbers(copy, part, key):
    file = copy / f"{part}.safetensors"
    tensors = load_file(file)
    tensor = tensors.pop(key)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        load(copy)
    save_file({**tensors, key: tensor[:-1].contiguous()}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=file.parent.name):
        load(copy)


def test_other_architectures_are_refused(copy):
    index = json.loads((copy / "model_index.json").read_text())
    for changes, words in (
        ({"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "tokenizer_2/ is missing"),
        ({"text_encoder_2": ["transformers", "X"], "text_encoder": [None, None]}, "refiner"),
        (
            {"transformer": ["diffusers", "SD3Transformer2DModel"], "_class_name": "StableDiffusion3Pipeline"},
            "StableDiffusion3Pipeline",
        ),
    ):
        (copy / "model_index.json").write_text(json.dumps({**index, **changes}))
        with pytest.raises(UserError, match=words):
            load(copy)
    (copy / "model_index.json").write_text(json.dumps({**index, "unet": ["diffusers", "UNet3DConditionModel"]}))
    with pytest.raises(UserError, match="UNet3DConditionModel"):
        load(copy)


def test_parts_that_do_not_belong_together_are_refused(copy):
    vocabulary = copy / "tokenizer" / "vocab.json"
    words = json.loads(vocabulary.read_text())
    vocabulary.write_text(json.dumps({**words, "extra</w>": len(words)}))
    with pytest.raises(UserError, match="49409 words"):
        load(copy)


@pytest.mark.parametrize("path", ["/no/such/folder", "./missing", "~/missing/model", "a/b/c", "nothing"])
def test_a_path_that_is_no_folder(path):
    with pytest.raises(UserError, match="no such folder"):
        find_base(ModelConfig(path=path))


def test_a_file_is_no_folder(copy):
    with pytest.raises(UserError, match="is a file"):
        load(copy / "model_index.json")


def test_hub_errors_are_human(monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def failing(error):
        def download(*args, **kwargs):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    class Response:
        status_code, headers, request, url = 404, {}, None, "https://hub"

    failing(errors.LocalEntryNotFoundError("cannot find an appropriate cached snapshot\nmore lines"))
    with pytest.raises(UserError, match=r"some/model: can't be fetched .* check the network") as caught:
        find_base(ModelConfig(path="some/model"))
    assert "\n" not in str(caught.value)
    failing(ConnectionError(""))
    with pytest.raises(UserError, match="ConnectionError"):
        find_base(ModelConfig(path="some/model"))
    failing(errors.RepositoryNotFoundError("404", response=Response()))
    with pytest.raises(UserError, match="no public model"):
        find_base(ModelConfig(path="some/model"))
    failing(errors.RevisionNotFoundError("404", response=Response()))
    with pytest.raises(UserError, match="revision nope"):
        find_base(ModelConfig(path="some/model", revision="nope"))
    failing(errors.GatedRepoError("403", response=Response()))
    with pytest.raises(UserError, match="licence"):
        find_base(ModelConfig(path="some/model"))


def test_only_the_parts_that_are_used_are_fetched(monkeypatch, sd15_folder):
    import fnmatch

    import huggingface_hub

    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **kw: asked.update(kw) or str(sd15_folder))
    find_base(ModelConfig(path="some/model", revision="main"))

    def fetched(name):
        return any(fnmatch.fnmatch(name, pattern) for pattern in asked["allow_patterns"])

    assert asked["revision"] == "main"
    assert all(fetched(str(p.relative_to(sd15_folder))) for p in sd15_folder.rglob("*") if p.is_file())
    for name in (
        "v1-5-pruned.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "safety_checker/model.safetensors",
    ):
        assert not fetched(name)


def test_devices_and_precisions():
    assert resolve_precision("auto", torch.device("cpu")) == "fp32"
    assert resolve_precision("bf16", torch.device("cpu")) == "bf16"
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="precision=fp32"):
        resolve_precision("fp16", torch.device("cpu"))
    with pytest.raises(UserError, match="fp8"):
        resolve_precision("fp8", torch.device("cpu"))
    for name in ("gpu", "meta"):
        with pytest.raises(UserError, match="use auto, cpu, cuda"):
            resolve_device(name)


def test_precision_follows_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert resolve_precision("auto", torch.device("cuda")) == "fp16"
    with pytest.raises(UserError, match="Old GPU has no bf16; use precision=fp16"):
        resolve_precision("bf16", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert resolve_precision("auto", torch.device("cuda")) == "bf16"


def test_no_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="no CUDA GPU"):
        resolve_device("cuda")


def test_scheduler_is_the_published_one(sd15_folder):
    assert json.loads((sd15_folder / "scheduler" / "scheduler_config.json").read_text()) == SCHEDULER


def test_layers_are_fused_by_the_setting(sd15_folder):
    """On a CPU not by itself; where it is asked for, in Triton's interpreter, UNet and VAE take the fused classes and
    give the same."""
    pytest.importorskip("triton", reason="the kernels are Triton's")

    def loaded(fused):
        base = load_base(ModelConfig(path=str(sd15_folder), fused=fused), torch.float32, "cpu")
        return base, [{type(layer).__name__ for layer in model.modules()} for model in (base.unet, base.vae)]

    plain, kinds = loaded(None)
    assert not any(name.startswith("Fused") for names in kinds for name in names)
    fused, kinds = loaded(True)
    assert all("FusedResnetBlock2D" in names and "ResnetBlock2D" not in names for names in kinds)
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 4, plain.unet.config.cross_attention_dim)
    with torch.no_grad():
        one, other = (base.unet(latents, 5, text).sample for base in (plain, fused))
    assert torch.allclose(one, other, atol=1e-4) and one.std() > 0
