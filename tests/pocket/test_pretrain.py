"""The stages, each for two steps of tiny models on the CPU: what they write opens like the published models."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cdiff.compose import compose, to_checked_config
from cdiff.errors import UserError
from cdiff.pocket.pretrain import run_stage
from cdiff.pocket.pretrain.clips import LENGTH
from cdiff.pocket.pretrain.loop import SETTLE, average_gradients, fit
from cdiff.pocket.pretrain.tokenizer import build_tokenizer
from cdiff.pocket.pretrain.vae import LATENT_CHANNELS

COMMON = {"steps": 2, "batch_size": 4, "learning_rate": 1e-3}
TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = TOWER | {"patch_size": 32}
NOISE = {"min_snr_gamma": 5.0, "caption_drop": 0.5, "save_every": 0.0}
SETTINGS = {
    "pictures": {"shard": 16},
    "judge": {"shard": 16, "pictures": 16},
    "clips": {"clips": 4, "shard": 2},
    "vae": COMMON | {"channels": [16, 16, 16, 16], "kl_weight": 1e-5},
    "clip": COMMON | {"text": TOWER, "vision": VISION},
    # torch 2.13 on a CPU corrupts memory in the backward of convolutions of fewer channels than 16, channels last
    "probe": COMMON | {"channels": [16, 16, 16, 16]},
    "identity": COMMON | {"vision": VISION, "temperature": 0.07},
    "blip": COMMON | {"text": TOWER, "vision": VISION, "matched": 3, "itm_weight": 0.2},
    "unet": COMMON | NOISE | {"channels": [32, 32], "pictures": 16, "latents": 32},
    "motion": COMMON | NOISE | {"latents": 4, "batch_size": 2},
}


def make(stage: str, folder: Path, said: list | None = None, minutes=None, deadline=None, **more) -> dict:
    torch.set_num_threads(1)
    log = (said if said is not None else []).append
    return run_stage(stage, folder, SETTINGS.get(stage, {}) | more, 64, 1, minutes, "cpu", log, deadline)


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """All stages in their order, in one folder."""
    folder = tmp_path_factory.mktemp("pretrain")
    for stage in ("pictures", "judge", "clips", "vae", "clip", "probe", "identity", "blip", "unet", "motion"):
        record = make(stage, folder)
        assert record.get("steps", 2) == 2
    return folder


@pytest.fixture
def copied(made, tmp_path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "pretrain"))


def fp16(file: Path) -> bool:
    from safetensors.torch import load_file

    return all(t.dtype in (torch.float16, torch.int64) for t in load_file(file).values())


def pixels(folder: Path, count: int = 4) -> torch.Tensor:
    array = np.load(folder / "pictures" / "0000-pixels.npy")[:count]
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_the_base_draws_in_stock_diffusers(made):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(made / "weights" / "base", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a dog on the beach", num_inference_steps=2, height=128, width=128).images[0]
    assert image.size == (128, 128)
    assert type(pipe.scheduler).__name__ == "DDIMScheduler" and pipe.vae.config.scaling_factor == 1.0


def test_every_weight_file_is_half_precision_and_nothing_is_left_over(made):
    weights = made / "weights"
    files = list(weights.rglob("*.safetensors"))
    assert len(files) == 8 and all(fp16(file) for file in files)
    assert not list(weights.rglob(".part-*"))
    assert '"float16"' not in "".join(config.read_text() for config in weights.rglob("config.json"))


def test_clip_shares_the_text_tower_with_the_base(made):
    from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

    weights = made / "weights"
    index = json.loads((weights / "clip" / "model.safetensors.index.json").read_text())["weight_map"]
    assert "../base/text_encoder/model.safetensors" in index.values()
    clip = CLIPModel.from_pretrained(weights / "clip", dtype=torch.float32).eval()
    text = CLIPTextModel.from_pretrained(weights / "base" / "text_encoder", dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(weights / "clip")
    ids = tokenizer(["a red dog", "a cat"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        own = clip.text_projection(text(ids).pooler_output)
        assert torch.equal(own, clip.get_text_features(ids).pooler_output)


def test_the_metric_models_open_and_read_pictures(made):
    from transformers import AutoImageProcessor, AutoModel

    from cdiff.pocket.probe import Probe
    from cdiff.pocket.world.render import render
    from cdiff.pocket.world.sample import CONCEPT, sample_scene

    weights = made / "weights"
    picture = render(sample_scene(random.Random(1), base=CONCEPT))
    model = AutoModel.from_pretrained(weights / "identity", add_pooling_layer=False, dtype=torch.float32)
    inputs = AutoImageProcessor.from_pretrained(weights / "identity")(picture, return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 3, 128, 128)
    assert model(**inputs).last_hidden_state.shape[-1] == 32
    assert len(Probe(weights / "probe").read([picture, picture])) == 2


def test_blip_opens_as_the_published_ones_do(made):
    from PIL import Image
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, BlipForImageTextRetrieval

    folder = made / "weights" / "blip"
    model = BlipForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == "BlipProcessor"
    images = [Image.new("L", (90, 200), 40), Image.new("RGB", (128, 128), (200, 0, 0))]
    texts = ["a red dog on the beach", "a cat"]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        cosines = model(**inputs, use_itm_head=False)[0]
        seen = model.vision_model(inputs.pixel_values).last_hidden_state[:, 0]
        read = model.text_encoder(inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state[:, 0]
    normal = torch.nn.functional.normalize
    plain = normal(model.vision_proj(seen), dim=-1) @ normal(model.text_proj(read), dim=-1).T
    assert cosines.shape == (2, 2) and torch.allclose(cosines, plain, atol=1e-6)
    assert model(**inputs)[0].shape == (2, 2)  # the matching head's two logits
    assert AutoTokenizer.from_pretrained(folder)(texts[0]).input_ids == inputs.input_ids[0].tolist()
    assert AutoImageProcessor.from_pretrained(folder)(images[0]).pixel_values[0].shape == (3, 128, 128)


def test_blip_masks_what_follows_the_first_end_token():
    from cdiff.pocket.pretrain.blip import mask_of

    tokenizer = build_tokenizer()
    batch = tokenizer(["a dog", "a red dog on the beach"], padding="max_length", max_length=20, return_tensors="pt")
    assert torch.equal(mask_of(batch.input_ids, tokenizer.eos_token_id), batch.attention_mask)


def test_the_adapter_moves_the_base_in_stock_diffusers(made):
    from diffusers import AnimateDiffPipeline, MotionAdapter, UNet2DConditionModel

    weights = made / "weights"
    adapter = MotionAdapter.from_pretrained(weights / "motion", torch_dtype=torch.float32)
    assert max(adapter.up_blocks[1].motion_modules[0].proj_out.weight.abs().flatten()) > 0  # it has been trained
    pipe = AnimateDiffPipeline.from_pretrained(
        weights / "base", motion_adapter=adapter, torch_dtype=torch.float32, feature_extractor=None, image_encoder=None
    )
    base = UNet2DConditionModel.from_pretrained(weights / "base" / "unet", torch_dtype=torch.float32)
    assert torch.equal(pipe.unet.conv_in.weight, base.conv_in.weight)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe("a dog running", num_frames=16, num_inference_steps=1, height=128, width=128).frames[0]
    assert len(frames) == 16 and frames[0].size == (128, 128)


def test_an_untrained_adapter_changes_nothing(made):
    from diffusers import UNet2DConditionModel

    from cdiff.pocket.pretrain.motion import build_motion, joined

    unet = UNet2DConditionModel.from_pretrained(made / "weights" / "base" / "unet", torch_dtype=torch.float32)
    adapter = build_motion(unet, (1, 0))
    model = joined(unet, adapter)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(p) for p in adapter.parameters()}
    clip, text = torch.randn(1, LATENT_CHANNELS, 3, 16, 16), torch.randn(3, 77, 32)
    with torch.no_grad():
        moved = model(clip, torch.tensor([500]), text, return_dict=False)[0]
        single = unet(clip[0].transpose(0, 1), torch.tensor([500] * 3), text, return_dict=False)[0]
    assert torch.allclose(moved[0].transpose(0, 1), single, atol=1e-4)


def test_whiten_keeps_the_reconstruction_and_evens_the_latents(made):
    from diffusers import AutoencoderKL

    from cdiff.pocket.pretrain.vae import build_vae, whiten

    torch.manual_seed(0)
    vae, images = build_vae([16, 16, 16, 16]).eval(), pixels(made, 16)
    assert isinstance(vae, AutoencoderKL)
    with torch.no_grad():
        before = vae.encode(images).latent_dist
        decoded = vae.decode(before.mean).sample
        whiten(vae, before.mean)
        after = vae.encode(images).latent_dist
        assert torch.allclose(vae.decode(after.mean).sample, decoded, atol=2e-4)
        assert torch.allclose(after.mean.mean((0, 2, 3)), torch.zeros(LATENT_CHANNELS), atol=1e-4)
        assert torch.allclose(after.mean.std((0, 2, 3)), torch.ones(LATENT_CHANNELS), atol=1e-3)
        ratio = after.std / before.std  # the posterior is as wide as before, in the new units
        assert torch.allclose(ratio.std((0, 2, 3)), torch.zeros(LATENT_CHANNELS), atol=1e-3)


def test_decoder_only_keeps_the_encoder_bit_identical(copied):
    from safetensors.torch import load_file

    file = copied / "weights" / "base" / "vae" / "diffusion_pytorch_model.safetensors"
    before = load_file(file)
    make("vae", copied, warm_start=True, decoder_only=True)
    after = load_file(file)
    own = [k for k in before if k.startswith(("encoder.", "quant_conv."))]
    assert own and all(torch.equal(before[k], after[k]) for k in own)
    assert not torch.equal(before["decoder.conv_out.weight"], after["decoder.conv_out.weight"])


def test_a_stage_without_what_it_needs_says_so(made, tmp_path):
    with pytest.raises(UserError, match=r"pretrain\.stage=pictures"):
        make("vae", tmp_path / "empty")
    with pytest.raises(UserError, match=r"pretrain\.stage=clips"):
        make("motion", tmp_path / "empty")
    (tmp_path / "half").mkdir()
    for data in ("pictures", "clips"):
        shutil.copytree(made / data, tmp_path / "half" / data)
    for stage in ("unet", "motion"):
        with pytest.raises(UserError, match=f"stage {stage} needs the weights of stage vae"):
            make(stage, tmp_path / "half")
    with pytest.raises(UserError, match="no weights of stage vae came in time"):
        make("unet", tmp_path / "half", wait=True, patience=0.0)
    with pytest.raises(UserError, match="other settings"):
        make("clips", tmp_path / "half", shard=3)
    with pytest.raises(UserError, match=r"shard=6 is no multiple of 4"):
        make("pictures", tmp_path / "odd", shard=6)
    for file in (tmp_path / "half" / "pictures").glob("*.npy"):
        file.unlink()
    with pytest.raises(UserError, match="in time"):
        make("vae", tmp_path / "half", patience=0.0)


def test_a_stage_that_waits_takes_the_weights_it_waited_for(copied):
    """The same seed and steps, whether the text encoder was there from the first or came later."""
    from safetensors.torch import load_file

    file = copied / "weights" / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    make("unet", copied)
    plain = load_file(file)
    make("unet", copied, wait=True, text=TOWER, patience=5.0)
    waited = load_file(file)
    assert all(torch.equal(plain[name], waited[name]) for name in plain)


WARM = {
    "unet": "conv_in.weight",
    "vae": "decoder.conv_in.weight",
    "motion": "down_blocks.0.motion_modules.0.proj_out.weight",
}


def test_a_warm_start_goes_on_from_the_weights_that_are_there(copied):
    """With a learning rate of almost nothing the weights stay where they were put, to half precision."""
    from safetensors.torch import load_file, save_file

    for stage, place in (("unet", "base/unet"), ("vae", "base/vae"), ("motion", "motion")):
        file = copied / "weights" / place / "diffusion_pytorch_model.safetensors"
        before, name = load_file(file), WARM[stage]
        before[name] += 0.1  # where no start of its own would be
        save_file(before, file, {"format": "pt"})
        record = copied / "weights" / "training" / f"{stage}.json"
        first = json.loads(record.read_text())
        make(stage, copied, warm_start=True, learning_rate=1e-12)
        assert json.loads(record.read_text())["before"] == [first]
        assert "_name_or_path" not in file.with_name("config.json").read_text()
        after = load_file(file)
        assert torch.allclose(before[name].float(), after[name].float(), atol=1e-3)
        make(stage, copied, learning_rate=1e-3, steps=8)
        assert not torch.allclose(before[name].float(), load_file(file)[name].float(), atol=1e-3)


def test_a_text_encoder_of_another_vocabulary_is_refused(copied):
    other = build_tokenizer()
    other.add_tokens(["gnu"])
    for place in ("base/tokenizer", "clip"):
        other.save_pretrained(copied / "weights" / place)
    for stage, more in (("unet", {}), ("motion", {}), ("clip", {"warm_start": True})):
        with pytest.raises(UserError, match="another vocabulary"):
            make(stage, copied, **more)


def test_a_rerun_of_rendering_keeps_what_is_there(copied):
    said: list[str] = []
    make("clips", copied, said)
    assert said == []


def test_saves_on_the_way_for_a_run_that_is_cut_off(copied):
    """save_every 0: after each step. A run that dies at its third step leaves the average of two."""
    from diffusers import MotionAdapter

    from cdiff.pocket.pretrain import loop

    shutil.rmtree(copied / "weights" / "motion")
    real, calls = loop.average_gradients, []

    def dies(params):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(params)

    loop.average_gradients = dies
    try:
        with pytest.raises(KeyboardInterrupt):
            make("motion", copied, steps=5)
    finally:
        loop.average_gradients = real
    adapter = MotionAdapter.from_pretrained(copied / "weights" / "motion")
    assert float(adapter.up_blocks[1].motion_modules[0].proj_out.weight.detach().abs().max()) > 0


class Slow:
    """A one-weight model whose first two steps "compile"."""

    def __init__(self, first: float, later: float):
        self.module, self.first, self.later = torch.nn.Linear(1, 1), first, later
        self.rates: list[float] = []

    def draw(self, step: int) -> tuple[torch.Tensor, ...]:
        time.sleep(self.first if step < 2 else self.later)
        return (torch.ones(1, 1),)

    def loss_of(self, ones: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.module(ones).sum()}


def run_slow(model: Slow, minutes: float | None, **settings) -> tuple[int, float]:
    start = time.time()
    settings = {"learning_rate": 0.1} | settings
    _, steps = fit(model.module, model.draw, model.loss_of, settings, minutes, lambda line: None)
    return steps, time.time() - start


def test_minutes_are_counted_from_the_end_of_compilation():
    steps, seconds = run_slow(Slow(0.3, 0.002), 0.5 / 60)
    assert seconds > 1.0 and steps > 10


def test_a_deadline_ends_a_run_of_steps_or_minutes():
    steps, seconds = run_slow(Slow(0.05, 0.002), None, steps=10**9, deadline=time.time() + 0.5)
    assert steps > 5 and seconds < 10.0
    steps, seconds = run_slow(Slow(0.05, 0.002), 10.0, deadline=time.time() + 0.5)
    assert steps > 5 and seconds < 10.0
    steps, _ = run_slow(Slow(0.1, 0.002), 10.0, deadline=time.time() + 0.05)  # spent by compiling
    assert steps == SETTLE


def test_the_average_follows_and_forgets_the_start():
    """Against the recursion of its definition, in float64."""
    model = Slow(0.0, 0.0)
    start = [p.detach().double().clone() for p in model.module.parameters()]
    seen: list[list[torch.Tensor]] = []

    def loss_of(ones: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append([p.detach().double().clone() for p in model.module.parameters()])
        return model.loss_of(ones)

    settings = {"learning_rate": 0.1, "ema": 0.9, "steps": 40, "weight_decay": 0.0}
    average, _ = fit(model.module, model.draw, loss_of, settings, None, lambda line: None)
    seen.append([p.detach().double().clone() for p in model.module.parameters()])
    expected = start
    for count, current in enumerate(seen[1:], 1):
        keep = min(0.9, (1 + count) / (10 + count))
        expected = [keep * e + (1 - keep) * c for e, c in zip(expected, current)]
    for mine, other in zip(average.parameters(), expected):
        assert torch.allclose(mine.double(), other, atol=1e-5)
    assert not any(p.requires_grad for p in average.parameters())


def test_the_judge_sees_what_training_never_shows(made):
    from cdiff.pocket.pretrain.pictures import scene_at
    from cdiff.pocket.world.sample import is_held_out

    assert not any(is_held_out(scene_at(i)) for i in range(2000))
    assert sum(is_held_out(scene_at(i, "judge")) for i in range(2000)) > 20
    assert json.loads((made / "judge" / "pictures.json").read_text())["split"] == "judge"


def test_compile_can_be_switched_off():
    from cdiff.pocket.pretrain.loop import compiled

    function = abs
    assert compiled(function, torch.device("cuda"), {"compile": False}) is function
    assert compiled(function, torch.device("cpu"), {}) is function


def test_gradients_of_a_single_process_stay():
    weight = torch.nn.Parameter(torch.ones(2))
    average_gradients([weight])  # nothing to do, and no gradient to look for
    assert weight.grad is None


TWO = """
import sys, torch, torch.distributed as dist
from cdiff.pocket.pretrain.loop import average_gradients
rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
unused = torch.nn.Parameter(torch.ones(3))
batch = torch.randn(8, 5)
params = [*model.parameters(), unused]
model(batch[4 * rank : 4 * rank + 4]).pow(2).mean().backward()
average_gradients(params)
mine = [p.grad.clone() for p in model.parameters()]
model.zero_grad()
model(batch).pow(2).mean().backward()
assert all(torch.allclose(a, p.grad, atol=1e-6) for a, p in zip(mine, model.parameters()))
assert unused.grad is None
print("EQUAL")
"""


def test_two_processes_take_the_step_of_one_on_the_joined_batch(tmp_path):
    command = [sys.executable, "-c", TWO]
    pair = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    assert [p.communicate(timeout=60)[0].strip() for p in pair] == ["EQUAL", "EQUAL"]


def test_frames_share_noise_where_the_motion_stage_is_told_to(copied, monkeypatch):
    from cdiff.pocket.pretrain import motion

    real, seen = motion.share_noise, []

    def noted(own, common, share):
        seen.append((tuple(own.shape[:3]), tuple(common.shape[:3]), share))
        return real(own, common, share)

    monkeypatch.setattr(motion, "share_noise", noted)
    make("motion", copied, shared_noise=[0.25, 0.5])
    shape = (SETTINGS["motion"]["batch_size"], LATENT_CHANNELS)
    assert {(own, common) for own, common, _ in seen} == {((*shape, LENGTH), (*shape, 1))}
    shares = torch.cat([share.flatten() for *_, share in seen])
    assert len(set(shares.tolist())) == len(shares) == shape[0] * len(seen)  # each clip has its own
    assert shares.min() >= 0.25 and shares.max() <= 0.5


@pytest.mark.parametrize("given", [0.5, [0.5], [0.5, 0.2], [0.1, 1.5], "much", ["a", "b"]])
def test_a_range_of_shared_noise_that_is_none(copied, given):
    with pytest.raises(UserError, match="two numbers from 0 to 1"):
        make("motion", copied, shared_noise=given)


def test_clips_of_another_length_are_refused(copied):
    index = copied / "clips" / "clips.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"frames": 16}))
    with pytest.raises(UserError, match="clips of 16 frames, and training takes 20"):
        make("motion", copied)


def test_a_warm_start_without_weights(copied):
    shutil.rmtree(copied / "weights" / "motion")
    with pytest.raises(UserError, match=r"there are none in .*motion"):
        make("motion", copied, warm_start=True)


def test_frames_look_at_an_anchor_where_the_motion_stage_is_told_to(copied, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "cdiff.pocket.pretrain.motion.anchor_frames", lambda _unet, frames, anchor: seen.append((frames, anchor))
    )
    make("motion", copied)
    assert not seen
    make("motion", copied, anchor="first")
    assert seen == [(LENGTH, "first")]


def test_an_adapter_is_scored_by_clips_drawn_as_task_video_draws_them(monkeypatch):
    from cdiff.pocket import WEIGHTS
    from cdiff.schema import Config
    from cdiff.tasks.pretrain import _clip_drawer

    class Drawn(Exception):
        pass

    def drawn(_base, _motion, video, sampler, *_others):
        raise Drawn(video, sampler)

    monkeypatch.setattr("cdiff.video.drawing.make_clip_pipeline", drawn)
    settings = {"video": {"shared_noise": 0.0}, "clips_at_once": 3}
    with pytest.raises(Drawn) as caught:
        _clip_drawer(WEIGHTS, settings, Config(device="cpu"))
    words = ["task=video", "video=pocket", "video.shared_noise=0"]
    asked = to_checked_config(compose(words, []))
    assert caught.value.args[0] == replace(asked.video, motion_adapter=str(WEIGHTS / "motion"))
    assert caught.value.args[1] == replace(asked.sampler, batch_size=3)


def test_the_base_is_scored_as_its_settings_say(monkeypatch):
    from cdiff.pocket import WEIGHTS
    from cdiff.schema import Config
    from cdiff.tasks.pretrain import _drawer

    monkeypatch.setattr("cdiff.sampling.sample", lambda _base, requests, sampler: (requests, sampler))
    settings = to_checked_config(compose(["task=pretrain", "pretrain.stage=scores"], [])).pretrain.settings["scores"]
    requests, sampler = _drawer(WEIGHTS, dict(settings), Config(device="cpu"))(["a dog", "a cat"])
    assert [request.prompt for request in requests] == ["a dog", "a cat"]
    assert (sampler.name, sampler.steps, sampler.guidance_scale, sampler.eta) == ("ddim", 25, 4.0, 1.0)


def test_the_base_is_judged_by_what_its_pictures_show():
    """True renders in the base's place score high, two subjects too; the same picture for every prompt does not."""
    from cdiff.pocket import WEIGHTS
    from cdiff.pocket.pretrain.scores import fresh_scene, score_base
    from cdiff.pocket.world.render import render

    def true(texts: list[str]) -> list:
        return [render(fresh_scene(10**6 + index)) for index in range(len(texts))]

    right = score_base(WEIGHTS, "cpu", true, count=60, held=0)
    assert right["grammar_class"] >= 90 and right["grammar_two_subjects"] >= 80
    assert 0 < right["grammar_two_subjects_prompts"] < 30
    wrong = score_base(WEIGHTS, "cpu", lambda texts: [render(fresh_scene(1))] * len(texts), count=60, held=0)
    assert wrong["grammar_class"] < 20 and wrong["grammar_two_subjects"] < 20


def test_the_card_tells_of_each_model(copied):
    unet = copied / "weights" / "training" / "unet.json"
    last = json.loads(unet.read_text())
    unet.write_text(json.dumps(last | {"steps": 31, "before": [last | {"steps": 17}]}))
    scores = {"settings": {"steps": 25}, "device": "cpu", "vae": {"psnr_db": 31.5}, "blip": {"caption_among_100": 97.0}}
    (copied / "weights" / "scores.json").write_text(json.dumps(scores))
    path = make("card", copied)["card"]
    text = Path(path).read_text()
    assert path.endswith("weights/README.md") and text.startswith("---\nlicense: apache-2.0")
    for part in ("base/vae", "base/unet", "clip", "probe", "identity", "blip", "motion"):
        assert f"| `{part}` |" in text
    assert "| vae | psnr_db | 31.5 |" in text and "| blip | caption_among_100 | 97.0 |" in text
    assert "pretrain.stage=motion" in text and '"batch_size": 2' in text and "Apache-2.0" in text
    assert text.index("| unet | 17 |") < text.index("| unet | 31 |") and text.count("pretrain.stage=unet`") == 2
    assert str(copied) not in text
    size = (copied / "weights" / "motion" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert f"{size / 1e6:.2f}" in text


def test_a_card_without_records_is_an_error(tmp_path):
    with pytest.raises(UserError, match="records"):
        make("card", tmp_path)


def test_task_video_draws_with_the_adapter_that_was_made(made):
    from PIL import Image

    from cdiff.cli import main

    weights = made / "weights"
    job = ["task=video", "run=base", "device=cpu", f"model.path={weights / 'base'}", "sampler.steps=2", "output=out"]
    job += [f"video.motion_adapter={weights / 'motion'}", "prompt='a dog running on the beach'", "video.mp4=false"]
    assert main(job) == 0
    with Image.open("out/clips/a-dog-running-on-the-beach-0.gif") as clip:
        assert clip.n_frames == 16 and clip.size == (128, 128)
    config = json.loads(Path("out/clips/prompts.json").read_text())["a-dog-running-on-the-beach-0.gif"]
    assert config["guidance_scale"] == 5.0 and config["negative_prompt"] == ""  # of video=pocket, taken by itself


def test_the_motion_stage_on_a_base_made_elsewhere(made, tmp_path):
    shutil.copytree(made / "clips", tmp_path / "clips")
    with pytest.raises(UserError, match="stage motion needs the weights of stage vae"):
        make("motion", tmp_path)
    with pytest.raises(UserError, match="there is no base model"):
        make("motion", tmp_path, base=str(tmp_path))
    make("motion", tmp_path, base=str(made / "weights" / "base"))
    ours, theirs = (f / "weights" / "motion" / "diffusion_pytorch_model.safetensors" for f in (tmp_path, made))
    assert ours.read_bytes() == theirs.read_bytes() and not (tmp_path / "weights" / "base").exists()


def test_the_shipped_base_takes_a_motion_adapter(made, tmp_path):
    """Its own vocabulary and shapes: what a user without the pretraining run of the base makes an adapter for."""
    from cdiff.pocket import WEIGHTS
    from cdiff.schema import ModelConfig, VideoConfig
    from cdiff.video.motion import check_fit

    shutil.copytree(made / "clips", tmp_path / "clips")
    make("motion", tmp_path, base="shipped", steps=1, batch_size=1)
    motion = tmp_path / "weights" / "motion"
    assert (motion / "diffusion_pytorch_model.safetensors").stat().st_size < 16 * 2**20
    check_fit(motion, ModelConfig(path=str(WEIGHTS / "base")), VideoConfig(motion_adapter=str(motion), frames=32))


def test_the_scores_of_the_motion_adapter(copied):
    """Drawn as task=video draws, judged by the probe; kept beside the scores of the other models."""
    from cdiff.cli import main

    path = copied / "weights" / "scores.json"
    path.write_text(json.dumps({"vae": {"psnr_db": 31.5}}))
    small = "{prompts: 1, clips: 2, clips_at_once: 2, only: [motion], guidance_scale: 5.0, steps: 2}"
    job = ["task=pretrain", "pretrain.stage=scores", f"pretrain.folder={copied}", "device=cpu"]
    assert main([*job, f"pretrain.settings.scores={small}"]) == 0
    scores = json.loads(path.read_text())
    assert scores["vae"] == {"psnr_db": 31.5} and scores["motion"]["moving_clips"] == 2
    asked = {"moving_as_asked", "moving_all_stay", "moving_class_stays", "moving_scene_stays", "still_as_asked"}
    assert asked <= set(scores["motion"]) and all(0 <= scores["motion"][name] <= 100 for name in asked)
    make("card", copied)
    assert (
        f"| motion | moving_as_asked | {scores['motion']['moving_as_asked']} |"
        in (copied / "weights" / "README.md").read_text()
    )
