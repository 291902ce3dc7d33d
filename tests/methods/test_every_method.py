"""What each method promises: which weights move, that nothing else does, and that its adapter gives them back."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
from dataclasses import dataclass, field, replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import VOCABULARY, TinyConcept

from cdiff.adapter import apply_adapter, load_adapter, save_adapter
from cdiff.data.latents import TrainingViews
from cdiff.engine import train
from cdiff.errors import UserError
from cdiff.methods import METHODS, prepare
from cdiff.models import load_base
from cdiff.schema import Config, MethodConfig, ModelConfig
from cdiff.tokens import PromptEncoder, add_tokens, write_rows

DOG = TinyConcept()
KV = r"unet\..*\.attn2\.to_[kv]\.weight"
QKVO = r"unet\..*\.attn2\.(to_[qkv]\.weight|to_out\.0\.(weight|bias))"
ATTENTION = r"unet\..*\.attn[12]\.(to_[qkv]|to_out\.0)\.weight"


@dataclass
class Case:
    """A method, and a pattern of the names that it promises to change."""

    method: MethodConfig
    promised: str
    token: bool
    spl: float = 0.0
    kind: str = "custom_diffusion"
    files: set[str] = field(default_factory=lambda: {"pytorch_custom_diffusion_weights.safetensors"})


WHOLE = MethodConfig("dreambooth", "all", None)
LORA = MethodConfig("lora", "lora", False, rank=4)
LORA_FILES = {"pytorch_lora_weights.safetensors"}
CASES = {
    "class_diffusion": Case(MethodConfig("class_diffusion"), KV, True, 1.0),
    "custom_diffusion": Case(MethodConfig("custom_diffusion"), KV, True),
    "custom_diffusion crossattn": Case(MethodConfig("custom_diffusion", "crossattn"), QKVO, True),
    "textual_inversion": Case(MethodConfig("textual_inversion", "none"), r"(?!)", True, files=set()),
    "textual_inversion + spl": Case(MethodConfig("textual_inversion", "none"), r"(?!)", True, 1.0, files=set()),
    "dreambooth": Case(WHOLE, r"unet\..*", False, kind="full", files={"full_unet.safetensors"}),
    "dreambooth + spl": Case(WHOLE, r"unet\..*", True, 1.0, "full", {"full_unet.safetensors"}),
    "dreambooth + text encoder": Case(
        replace(WHOLE, train_text_encoder=True),
        r"unet\..*|text_encoder\.(?!.*token_embedding).*",
        True,
        kind="full",
        files={"full_unet.safetensors", "full_text_encoder.safetensors"},
    ),
    "lora": Case(LORA, ATTENTION, False, kind="lora", files=LORA_FILES),
    "lora + token + spl": Case(replace(LORA, train_token=True), ATTENTION, True, 1.0, "lora", LORA_FILES),
    "lora of cross-attention": Case(
        replace(LORA, targets=["attn2.to_k", "attn2.to_v"], alpha=2.0), KV, False, kind="lora", files=LORA_FILES
    ),
}


def fresh(folder, dtype=torch.float32):
    return load_base(ModelConfig(path=str(folder)), dtype, "cpu")


def states(base) -> dict[str, torch.Tensor]:
    parts = ("unet", "text_encoder", "vae")
    return {
        f"{part}.{name}": tensor.clone()
        for part in parts
        for name, tensor in copy.deepcopy(getattr(base, part).state_dict()).items()
    }


def make_views(prompt="a photo of a <new1> dog", count=4):
    mean = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return TrainingViews(mean, 0.1 * torch.ones_like(mean), torch.ones(count, 1, 8, 8), [prompt] * count, [0] * count)


class Silent:
    def log(self, values, step):
        self.last = dict(values)


def run_training(base, method, spl=0.0, concepts=(DOG,), steps=3, on_validation=None):
    """(trainables, rows before, result, tracker) after a few large steps on `base`."""
    if method.name == "lora":
        pytest.importorskip("peft")
    conf = Config(method=method)
    conf.loss.spl_weight, conf.train.steps, conf.optimizer.learning_rate = spl, steps, 1e-3
    conf.validation.every = 1 if on_validation else 0
    rows = add_tokens(base, concepts)
    start, tracker = rows.detach().clone(), Silent()
    trainables = prepare(base, method, spl)
    result = train(conf, base, list(concepts), rows, trainables, make_views(), tracker, on_validation=on_validation)
    return trainables, start, result, tracker


def finish(base, trainables, result, concepts=(DOG,)):
    """What tasks.train does once training is over."""
    trainables.restore()
    write_rows(base, result.token_rows, [concept.token for concept in concepts])


def save(folder, result, method, concepts=(DOG,)):
    vectors = {concept.token: row for concept, row in zip(concepts, result.token_rows, strict=True)}
    return save_adapter(folder, result.unet_weights, vectors, {"method": method.name}, result.text_encoder_weights)


def pipeline(base):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    parts = {name: getattr(base, name) for name in ("tokenizer", "text_encoder", "vae", "unet")}
    pipe = StableDiffusionPipeline(
        **parts,
        scheduler=DDIMScheduler.from_config(base.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, prompt="a photo of a <new1> dog"):
    generator = torch.Generator().manual_seed(3)
    return pipe(prompt, num_inference_steps=2, generator=generator, output_type="latent", height=64, width=64).images


def test_every_method_is_tried():
    assert {case.method.name for case in CASES.values()} == set(METHODS)


@pytest.mark.parametrize("name", CASES)
def test_what_is_promised_changes_and_nothing_else_and_the_adapter_gives_it_back(name, sd15_folder, tmp_path):
    case = CASES[name]
    base = fresh(sd15_folder)
    before = states(base)
    trainables, start, result, _ = run_training(base, case.method, case.spl)
    assert trainables.train_token == case.token
    assert torch.equal(result.token_rows, start) != case.token
    trainables.restore()
    after = states(base)
    assert after.keys() == before.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    promised = {key for key in before if re.fullmatch(case.promised, key)}
    # without a gradient by nature: a key's bias, and who looks at whom where 8 x 8 latents have become one cell
    idle = re.compile(r".*k_proj\.bias|unet\.mid_block.*\.attn1\.to_[qk]\.weight")
    still = {key for key in promised - moved if not idle.fullmatch(key)}
    assert moved <= promised and not still
    assert not any(p.requires_grad for part in (base.unet, base.text_encoder, base.vae) for p in part.parameters())

    write_rows(base, result.token_rows, ["<new1>"])
    folder = save(tmp_path / "adapter", result, case.method)
    assert {p.name for p in folder.iterdir()} == case.files | {"<new1>.safetensors", "adapter.json"}
    adapter = load_adapter(folder)
    assert adapter.info["method"] == case.method.name and (adapter.kind == case.kind or not case.files)
    loaded = fresh(sd15_folder)
    apply_adapter(loaded, adapter)
    mine, theirs = states(base), states(loaded)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert torch.equal(draw(pipeline(loaded)), draw(pipeline(base)))


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_stock_load_lora_weights_opens_ours_and_draws_the_same(sd15_folder, tmp_path, alpha):
    method = replace(LORA, train_token=True, alpha=alpha)
    base = fresh(sd15_folder)
    trainables, _, result, _ = run_training(base, method)
    folder = save(tmp_path / "adapter", result, method)
    finish(base, trainables, result)
    stock = pipeline(fresh(sd15_folder))
    untouched = draw(stock, "a photo of a dog")
    stock.load_lora_weights(folder)
    assert (draw(stock, "a photo of a dog") - untouched).abs().max() > 1e-2
    stock.load_textual_inversion(folder / "<new1>.safetensors", token="<new1>")
    torch.testing.assert_close(draw(stock), draw(pipeline(base)), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("alpha", [4, 6])
def test_a_lora_that_diffusers_saved_is_read_with_its_scale(sd15_folder, tmp_path, alpha):
    peft = pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline
    from peft.utils import get_peft_model_state_dict

    theirs = fresh(sd15_folder)
    conf = peft.LoraConfig(r=4, lora_alpha=alpha, target_modules=["to_q", "to_v"], init_lora_weights=False)
    theirs.unet.add_adapter(conf)
    metadata = {"r": 4, "lora_alpha": alpha, "target_modules": ["to_q", "to_v"]}
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, get_peft_model_state_dict(theirs.unet), unet_lora_adapter_metadata=metadata
    )
    ours = fresh(sd15_folder)
    apply_adapter(ours, load_adapter(tmp_path))
    expected, plain = draw(pipeline(theirs), "a dog"), draw(pipeline(fresh(sd15_folder)), "a dog")
    torch.testing.assert_close(draw(pipeline(ours), "a dog"), expected, atol=2e-4, rtol=1e-4)
    assert (plain - expected).abs().max() > 1e-2


def test_lora_without_peft_is_one_sentence(sd15, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install cdiff\[lora\]"):
        prepare(sd15, LORA)


def test_a_lora_target_that_is_not_there(sd15):
    pytest.importorskip("peft")
    with pytest.raises(UserError, match=r"attn3\.to_k fits no layer"):
        prepare(sd15, replace(LORA, targets=["to_q", "attn3.to_k"]))
    assert not hasattr(sd15.unet, "peft_config")


def test_dreambooth_keeps_fp32_masters_in_a_half_precision_base(sd15_folder, tmp_path):
    drawn = []
    base = fresh(sd15_folder, torch.bfloat16)
    method = replace(WHOLE, train_text_encoder=True)

    def validate(step):
        from cdiff.sampling import make_requests, sample
        from cdiff.schema import SamplerConfig

        encoder = PromptEncoder(base, torch.zeros(1, 32))
        drawn.extend(sample(base, make_requests(["a dog"], 1, 0), SamplerConfig(steps=2), encoder, resolution=64))

    trainables, _, result, _ = run_training(base, method, steps=2, on_validation=validate)
    assert {p.dtype for p in trainables.trainable_parameters()} == {torch.float32} and len(drawn) == 2
    assert {p.dtype for p in base.vae.parameters()} == {torch.bfloat16}
    trained = result.unet_weights["conv_in.weight"]
    assert trained.dtype == torch.float32 and not torch.equal(trained, trained.bfloat16().float())
    trainables.restore()
    assert {p.dtype for p in base.unet.parameters()} == {p.dtype for p in base.text_encoder.parameters()}
    assert base.unet.conv_in.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["lora + token + spl", "class_diffusion"])
def test_half_precision_bases_train_fp32_weights(name, sd15_folder):
    case = CASES[name]
    base = fresh(sd15_folder, torch.bfloat16)
    trainables, _, result, _ = run_training(base, case.method, case.spl)
    assert {p.dtype for p in trainables.trainable_parameters()} == {torch.float32}
    _, _, exact, _ = run_training(fresh(sd15_folder), case.method, case.spl)
    assert result.losses["loss/recon"] == pytest.approx(exact.losses["loss/recon"], rel=0.03)
    trainables.restore()
    assert {p.dtype for p in base.unet.parameters()} == {torch.bfloat16}


def test_dreambooth_in_half_the_size(sd15_folder, tmp_path):
    method = replace(WHOLE, save_precision="fp16")
    trainables, _, result, _ = run_training(fresh(sd15_folder), method)
    folder = save(tmp_path / "adapter", result, method)
    assert {t.dtype for t in load_file(folder / "full_unet.safetensors").values()} == {torch.float16}
    loaded = fresh(sd15_folder)
    apply_adapter(loaded, load_adapter(folder))
    weight = loaded.unet.conv_in.weight
    assert weight.dtype == torch.float32 and torch.equal(weight, trainables.named["conv_in.weight"].half().float())
    with torch.no_grad():
        trainables.named["conv_in.bias"].fill_(1e6)  # past fp16
    assert trainables.unet_state()["conv_in.bias"].dtype == torch.float32


@pytest.fixture(scope="module")
def saved(sd15_folder, tmp_path_factory):
    """The adapter of a case after one step, made once."""
    folders = {}

    def adapter(name):
        if name not in folders:
            _, _, result, _ = run_training(fresh(sd15_folder), CASES[name].method, steps=1)
            folders[name] = save(tmp_path_factory.mktemp("saved") / "adapter", result, CASES[name].method)
        return folders[name]

    return adapter


def tamper(folder, file, change):
    """Change a file's tensors, and mend their count in adapter.json."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)
    info = json.loads((folder / "adapter.json").read_text())
    info["text_encoder_tensors" if "text" in file else "unet_tensors"] = len(tensors)
    (folder / "adapter.json").write_text(json.dumps(info))


LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2"
WRONG = [
    ("dreambooth", "full_unet", lambda w: w.pop("conv_in.bias"), "lacks conv_in.bias of the UNet"),
    ("dreambooth", "full_unet", lambda w: w.update(stray=torch.zeros(2)), "stray has no place"),
    ("dreambooth", "full_unet", lambda w: w.update({"conv_in.bias": torch.zeros(3)}), r"conv_in.bias has shape \(3,\)"),
    ("dreambooth", "full_unet", lambda w: w["conv_in.bias"].fill_(float("inf")), "conv_in.bias holds values"),
    (
        "dreambooth + text encoder",
        "full_text_encoder",
        lambda w: w.pop("final_layer_norm.bias"),
        "lacks final_layer_norm.bias of the text encoder",
    ),
    ("lora", "pytorch_lora_weights", lambda w: w.pop(f"unet.{LAYER}.to_k.lora.up.weight"), "lacks .*to_k.lora.up"),
    (
        "lora",
        "pytorch_lora_weights",
        lambda w: w.update({f"unet.{LAYER}.to_k.lora.up.weight": torch.zeros(16, 5)}),
        "no product",
    ),
    (
        "lora",
        "pytorch_lora_weights",
        lambda w: w.update({f"unet.{LAYER}.to_k.lora.down.weight": torch.zeros(4, 31)}),
        r"has shape \(16, 31\)",
    ),
    (
        "lora",
        "pytorch_lora_weights",
        lambda w: w.update({"text_encoder.q.lora.up.weight": torch.zeros(4, 4)}),
        "text_encoder.q.lora.up.weight is no LoRA weight of the UNet",
    ),
    (
        "lora",
        "pytorch_lora_weights",
        lambda w: w.update({f"unet.x.lora.{s}.weight": torch.zeros(4, 4) for s in ("up", "down")}),
        "no layer x.weight",
    ),
]


@pytest.mark.parametrize(("name", "file", "change", "message"), WRONG, ids=[case[3] for case in WRONG])
def test_a_tensor_that_does_not_fit_is_named_and_nothing_changes(
    name, file, change, message, saved, sd15_folder, tmp_path
):
    folder = shutil.copytree(saved(name), tmp_path / "adapter")
    tamper(folder, f"{file}.safetensors", change)
    base = fresh(sd15_folder)
    before = states(base)
    with pytest.raises(UserError, match=message):
        apply_adapter(base, load_adapter(folder))
    after = states(base)
    assert all(torch.equal(before[key], after[key]) for key in before) and len(base.tokenizer) == VOCABULARY


def test_two_kinds_in_one_folder_are_refused(saved, tmp_path):
    folder = shutil.copytree(saved("dreambooth"), tmp_path / "adapter")
    save_file({"a": torch.zeros(1)}, folder / "pytorch_lora_weights.safetensors")
    with pytest.raises(UserError, match="two adapters"):
        load_adapter(folder)


EIGHT = ("dog", "cat", "teapot", "toy bear", "red clock", "teapot boot", "bird", "car")


def test_eight_concepts_share_keys_and_values(sd15_folder, tmp_path):
    concepts = [TinyConcept(f"<new{i}>", word, name=f"c{i}") for i, word in enumerate(EIGHT, 1)]
    base = fresh(sd15_folder)
    method = MethodConfig()
    trainables, start, result, tracker = run_training(base, method, 1.0, concepts)
    assert (result.token_rows != start).any(dim=1).all() and tracker.last["loss/spl"] > 0
    folder = save(tmp_path / "adapter", result, method, concepts)
    finish(base, trainables, result, concepts)
    loaded = fresh(sd15_folder)
    apply_adapter(loaded, load_adapter(folder))
    prompt = "a <new1> dog next to a <new8> car"
    assert torch.equal(draw(pipeline(loaded), prompt), draw(pipeline(base), prompt))


def test_a_text_encoder_that_trains_is_held_to_the_class_as_the_base_knew_it(sd15_folder):
    """Its own features move, those SPL compares with do not; and nothing it encodes is remembered."""
    base = fresh(sd15_folder)
    first = PromptEncoder(base).constant(["a photo of a dog"]).hidden
    run_training(base, replace(WHOLE, train_text_encoder=True), 1.0)
    encoder = PromptEncoder(base, torch.zeros(1, 32))
    moved = encoder.constant(["a photo of a dog"]).hidden
    assert not torch.equal(moved, first)
    with torch.no_grad():
        base.text_encoder.final_layer_norm.bias.add_(1)
    torch.testing.assert_close(encoder.constant(["a photo of a dog"]).hidden, moved + 1)
