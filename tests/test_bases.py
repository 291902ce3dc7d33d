"""Every base of the published layouts, at tiny width: trained, drawn, scored, exported, opened by stock diffusers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_scorer import FakeScorer
from layouts import TRUE, build, make, tiny
from PIL import Image
from safetensors.torch import load_file
from tiny_job import GUIDANCE, GUIDED, draw_pictures, words

from cdiff.adapter import apply_adapter, load_adapter
from cdiff.cli import main
from cdiff.data.augment import View
from cdiff.data.latents import size_and_crop
from cdiff.engine import sdxl_conditions
from cdiff.errors import UserError
from cdiff.methods import prepare
from cdiff.models import load_base
from cdiff.schema import MethodConfig, ModelConfig
from cdiff.tokens import PromptEncoder

NEW = ("sd21", "sd21_base", "sdxl")  # Stable Diffusion 1.5 is what every other test uses
PROMPT = "a <new1> dog on the beach"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """name -> (folder of the tiny base, folder of a run on it), made once."""
    made, home = {}, tmp_path_factory.mktemp("bases")

    def get(name: str) -> tuple[Path, Path]:
        if name not in made:
            folder = build(name, home / name)
            made[name] = folder, home / f"{name}_run"
            before = Path.cwd()
            os.chdir(home)
            try:
                pictures = draw_pictures(home / f"{name}_pictures")
                job = [*words(folder, pictures), f"model={name}", "optimizer.learning_rate=2e-2"]
                job = [word for word in job if word != "model=sd15"]
                assert main([*job, "images_per_prompt=1", f"output={made[name][1]}"]) == 0
            finally:
                os.chdir(before)
        return made[name]

    return get


def load(folder: Path, **options):
    return load_base(ModelConfig(path=str(folder), **options), torch.float32, "cpu")


def stock(folder: Path, image: dict) -> np.ndarray:
    """One image by the stock pipeline from the prompt itself."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(image["seed"])
    options = {"num_inference_steps": 3, "guidance_scale": GUIDANCE, "height": 64, "width": 64}
    return np.asarray(pipe(image["prompt"], generator=generator, **options).images[0])


@pytest.mark.parametrize("name", TRUE)
def test_key_names_and_settings_are_the_published_ones(name):
    """At the true size, on no device: every key of the tiny parts, and the counts that are known of these models."""
    millions = {"sd15": 859.5, "sd21": 865.9, "sd21_base": 865.9, "sdxl": 2567.5}
    layers = {"sd15": 16, "sd21": 16, "sd21_base": 16, "sdxl": 70}
    with torch.device("meta"):
        unet = make("unet", TRUE[name]["unet"])
        small = make("unet", tiny(name)["unet"])
    assert unet.state_dict().keys() == small.state_dict().keys()
    assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(millions[name], abs=0.1)
    assert sum(key.endswith("attn2.to_k.weight") for key in unet.state_dict()) == layers[name]


@pytest.mark.parametrize("name", NEW)
def test_a_base_is_trained_and_the_stock_pipeline_draws_its_images(name, bases, tmp_path):
    _, run = bases(name)
    job = ["task=sample", f"run={run}", f"prompts=['{PROMPT}','a photo of a dog']", "images_per_prompt=1", GUIDED]
    assert main([*job, "sampler.steps=3", "sampler.batch_size=1", "device=cpu", f"output={tmp_path / 'own'}"]) == 0
    assert main(["task=export", f"run={run}", "format=diffusers", f"export.folder={tmp_path / 'whole'}"]) == 0
    table = json.loads((tmp_path / "own" / "samples" / "prompts.json").read_text())
    assert len(table) == 2
    for file, image in table.items():
        own = np.asarray(Image.open(tmp_path / "own" / "samples" / file))
        assert np.array_equal(stock(tmp_path / "whole", image), own)
    told = json.loads((run / "adapter" / "adapter.json").read_text())
    assert told["unet_tensors"] == (140 if name == "sdxl" else 32)


@pytest.mark.parametrize("name", ["sd21", "sdxl"])
def test_a_run_is_scored(name, bases, monkeypatch, tmp_path):
    from cdiff.evaluation import evaluating

    monkeypatch.setattr(evaluating, "open_metrics", lambda *_: [FakeScorer()])
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "cache"))
    _, run = bases(name)
    own = ["protocol.prompts=['a photo of a {}']", "protocol.live=[]", "protocol.images_per_prompt=2"]
    assert main(["task=evaluate", f"run={run}", *own, "sampler.steps=2", "device=cpu", f"output={tmp_path}/out"]) == 0
    result = json.loads((run / "evaluation" / "quick" / "metrics.json").read_text())
    assert result["overall"]["clip_t"]["images"] == 2 and result["overall"]["clip_i"]["mean"] > 0


def test_v_prediction_reaches_the_loss(bases):
    """The target of sd21 is v, that of its base the noise."""
    from cdiff.losses import diffusion_target

    clean, noise, steps = torch.ones(1, 4, 2, 2), torch.full((1, 4, 2, 2), 3.0), torch.tensor([500])
    v, epsilon = (load(bases(name)[0]).scheduler for name in ("sd21", "sd21_base"))
    alpha = v.alphas_cumprod[500]
    expected = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    torch.testing.assert_close(diffusion_target(v, clean, noise, steps), expected)
    assert torch.equal(diffusion_target(epsilon, clean, noise, steps), noise)


def test_padding_is_the_tokenizers_own(bases):
    """OpenCLIP pads with "!": other hidden states behind the end than CLIP's, and the stock pipeline's own."""
    base = load(bases("sd21")[0])
    encoder = PromptEncoder(base)
    ids = encoder.tokenize(["a dog"])[0].tolist()
    assert ids[-1] == base.tokenizer.convert_tokens_to_ids("!") != encoder.eos_id and ids[3] == encoder.eos_id


# ---- SDXL ----


@pytest.fixture
def sdxl(bases):
    folder, run = bases("sdxl")
    return load(folder), run


def test_both_tokens_train_and_no_other_row_moves(sdxl):
    base, run = sdxl
    stored = load_file(run / "adapter" / "<new1>.safetensors")
    assert {name: tuple(value.shape) for name, value in stored.items()} == {"clip_l": (32,), "clip_g": (48,)}
    vectors = [stored["clip_l"], stored["clip_g"]]
    tables = [model.get_input_embeddings().weight.clone() for _, model in base.encoders]
    dog = base.tokenizer("dog", add_special_tokens=False).input_ids[0]
    for value, table in zip(vectors, tables, strict=True):
        moved = (value - table[dog]).abs()  # the token starts as its class word
        assert (moved > 1e-3).float().mean() > 0.9
    apply_adapter(base, load_adapter(run))
    for vector, before, (_, model) in zip(vectors, tables, base.encoders, strict=True):
        after = model.get_input_embeddings().weight
        assert torch.equal(after[: len(before)], before) and len(after) == len(before) + 1
        assert torch.equal(after[-1], vector)


def test_spl_looks_at_both_encoders(sdxl):
    from cdiff.concepts import Concept
    from cdiff.engine import Personalizer
    from cdiff.schema import Config
    from cdiff.tokens import add_tokens

    base, _ = sdxl
    concept = Concept("dog", "<new1>", "dog", "cat", Path())
    rows = add_tokens(base, [concept])
    module = Personalizer(base, [concept], rows, Config())
    loss = module._spl(module.encoder.encode(module.concept_phrases)[0].states)
    loss.backward()
    first, second = rows.grad[0].split(base.token_widths)
    assert first.abs().sum() > 0 and second.abs().sum() > 0
    features = zip(module.encoder.features(module.encoder.encode(module.concept_phrases)[0]), module.class_features)
    each = [1 - torch.cosine_similarity(ours, theirs) for ours, theirs in features]
    torch.testing.assert_close(loss, torch.cat(each).mean())


def test_text_is_what_the_stock_pipeline_makes_of_it(sdxl):
    """Joined hidden states and pooled feature, of prompts with and without the token."""
    from cdiff.sampling import make_pipeline
    from cdiff.schema import SamplerConfig

    base, run = sdxl
    apply_adapter(base, load_adapter(run))
    pipe = make_pipeline(base, SamplerConfig())
    for prompt in (PROMPT, "a photo of a dog"):
        ours = PromptEncoder(base).encode_sample([prompt])
        hidden, _, pooled, _ = pipe.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=True)
        assert torch.equal(ours.hidden, hidden) and torch.equal(ours.pooled, pooled)
    dog, cat = (PromptEncoder(base).encode_sample([f"a <new1> {word}"]).pooled for word in ("dog", "cat"))
    assert not torch.allclose(dog, cat)  # pooled at the end, behind the class word


@pytest.mark.parametrize(
    ("view", "size", "expected"),
    [
        (View(0), (90, 80), (64, 64, 0, 0, 64, 64)),  # no smaller than the training image
        (View(0), (40, 30), (30, 30, 0, 0, 64, 64)),
        (View(0, scale=1.25, left=8, top=4), (90, 80), (64, 64, 4, 8, 64, 64)),
        (View(0, scale=0.5, left=8, top=4), (90, 80), (64, 64, 0, 0, 64, 64)),  # pasted, not cropped
    ],
)
def test_size_and_crop(view, size, expected):
    assert size_and_crop(view, size, 64) == expected


def test_the_unet_is_told_size_crop_and_pooled_text(sdxl):
    base, _ = sdxl
    encoded = PromptEncoder(base).encode_sample(["a dog"])
    noisy, step = torch.randn(1, 4, 8, 8), torch.tensor([3])

    def predict(size: int) -> torch.Tensor:
        conditions = sdxl_conditions(encoded, torch.tensor([[size, size, 0, 0, 64, 64]]).float())
        return base.unet(noisy, step, encoded.hidden, added_cond_kwargs=conditions, return_dict=False)[0]

    assert not torch.equal(predict(64), predict(16))


def test_an_sdxl_lora_under_kohyas_names_opens_in_the_stock_pipeline(bases, tmp_path):
    """Layer for layer: the LoRA that diffusers reads out of the file is the difference that was trained."""
    from diffusers import DiffusionPipeline

    folder, run = bases("sdxl")
    assert main(["task=export", f"run={run}", "format=kohya", f"export.folder={tmp_path / 'out'}"]) == 0
    tensors = load_file(tmp_path / "out" / "folder.safetensors")
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_up.weight" in tensors
    assert "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_v.alpha" in tensors
    embedding = load_file(tmp_path / "out" / "embeddings" / "new1.safetensors")
    assert {name: tuple(value.shape) for name, value in embedding.items()} == {"clip_l": (1, 32), "clip_g": (1, 48)}
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.load_lora_weights(tmp_path / "out", weight_name="folder.safetensors")
    pipe.fuse_lora()
    merged = load(folder)
    apply_adapter(merged, load_adapter(run))
    fused = {name.replace(".base_layer", ""): p for name, p in pipe.unet.named_parameters() if ".lora_" not in name}
    for name, parameter in merged.unet.named_parameters():
        torch.testing.assert_close(fused[name], parameter, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_sdxl_is_said(bases, sdxl, sd15_folder, capsys):
    _, run = bases("sdxl")
    assert main(["task=export", f"run={run}", "format=release"]) == 2
    assert "two text encoders" in capsys.readouterr().err
    with pytest.raises(UserError, match="one text encoder"):
        prepare(sdxl[0], MethodConfig("dreambooth", "all", train_text_encoder=True))
    with pytest.raises(UserError, match=r"trained on another base|no place in this base model"):
        apply_adapter(load(sd15_folder), load_adapter(run))


# ---- files ----


def test_half_precision_variants(tmp_path):
    folder = build("sdxl", tmp_path / "half", variant="fp16")
    assert (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    assert load(folder, variant="fp16").unet.dtype == torch.float32
    half = load_base(ModelConfig(path=str(folder), variant="fp16"), torch.float16, "cpu")
    assert half.unet.dtype == half.text_encoder_2.dtype == torch.float16
    assert half.vae.dtype == torch.float32  # force_upcast
    with pytest.raises(UserError, match="can't be loaded"):
        load(folder)
    plain = build("sd21_base", tmp_path / "plain")
    with pytest.raises(UserError, match=r"holds no fp16 weights: say model\.variant=null"):
        load(plain, variant="fp16")


@pytest.mark.parametrize(
    ("change", "words_of_it"),
    [
        ({"projection_class_embeddings_input_dim": 90}, "pooled text, size and crop"),
        ({"cross_attention_dim": 32}, "reads text of width 32"),
    ],
)
def test_an_sdxl_unet_of_other_numbers(tmp_path, change, words_of_it):
    folder = build("sdxl", tmp_path / "sdxl")
    with torch.random.fork_rng(devices=[]):
        make("unet", tiny("sdxl")["unet"] | change).save_pretrained(folder / "unet")
    with pytest.raises(UserError, match=words_of_it):
        load(folder)


def test_sdxl_with_prior_preservation_token_adjustment_and_merging(bases, tmp_path, monkeypatch):
    """What else meets the second text encoder."""
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "cache"))
    folder, run = bases("sdxl")
    job = [word for word in words(folder, draw_pictures(tmp_path / "pictures", 1)) if word != "model=sd15"]
    job += ["model=sdxl", "train.steps=1", "prior=generated", "prior.count=1", "images_per_prompt=1"]
    assert main([*job, "sampler.token_adjust.alpha=0.5", "sampler.steps=1", f"output={tmp_path / 'prior'}"]) == 0
    runs = f"runs=[{run},{tmp_path / 'prior'}]"
    assert main(["task=merge", runs, "merge.rename=true", "device=cpu", f"output={tmp_path / 'merged'}"]) == 0
    merged = load_adapter(tmp_path / "merged")
    assert set(merged.tokens) == {"<new1>", "<new2>"} and merged.tokens["<new2>"].shape == (80,)
    base = load(folder)
    apply_adapter(base, merged)
    assert "<new2>" in base.tokenizer_2.get_vocab()
