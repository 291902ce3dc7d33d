"""Clips against diffusers' own AnimateDiffPipeline, and each setting of memory against none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, EulerDiscreteScheduler, MotionAdapter

from cdiff.errors import UserError
from cdiff.sampling import Request, make_requests
from cdiff.schema import SamplerConfig, VideoConfig, VideoScheduleConfig
from cdiff.video.drawing import draw_clips, make_clip_pipeline
from cdiff.video.motion import animated, load_motion

LINEAR = VideoScheduleConfig(beta_schedule="linear", steps_offset=1)
SAMPLER = SamplerConfig(name="ddim", steps=3, guidance_scale=7.5, batch_size=1, negative_prompt="bad quality")
VIDEO = VideoConfig(frames=4, schedule=LINEAR)
REQUESTS = [Request("a dog on the beach", 0, 5), Request("a cat", 0, 6)]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def draw(sd15, motion_folder):
    """(video, sampler, requests) -> an array (clips, frames, height, width, 3)."""
    motion = load_motion(motion_folder, VIDEO, torch.float32)
    base = animated(sd15, motion)

    def run(video=VIDEO, sampler=SAMPLER, requests=REQUESTS, **options) -> np.ndarray:
        pipe = make_clip_pipeline(base, motion, video, sampler, torch.device("cpu"))
        drawn = list(draw_clips(base, pipe, requests, video, sampler, resolution=64, **options))
        assert [request for request, _ in drawn] == list(requests)
        return np.stack([np.stack([np.asarray(frame) for frame in frames]) for _, frames in drawn])

    return run


def stock(sd15_folder, motion_folder, scheduler, request: Request, frames=4, eta=0.0, window=None, latents=None):
    """The frames of the pipeline that any user of diffusers has."""
    adapter = MotionAdapter.from_pretrained(motion_folder, torch_dtype=torch.float32)
    pipe = AnimateDiffPipeline.from_pretrained(
        sd15_folder, motion_adapter=adapter, scheduler=scheduler, torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    if window:
        pipe.enable_free_noise(context_length=window, context_stride=2)
    [drawn] = pipe(
        request.prompt,
        negative_prompt="bad quality",
        num_frames=frames,
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=7.5,
        eta=eta,
        generator=torch.Generator().manual_seed(request.seed),
        latents=latents,
    ).frames
    return np.stack([np.asarray(frame) for frame in drawn])


def ddim(sd15_folder) -> DDIMScheduler:
    return DDIMScheduler.from_pretrained(
        sd15_folder, subfolder="scheduler", clip_sample=False, beta_schedule="linear", steps_offset=1
    )


def test_the_frames_are_the_stock_pipelines(draw, sd15_folder, motion_folder):
    found = draw()
    for frames, request in zip(found, REQUESTS):
        assert np.array_equal(frames, stock(sd15_folder, motion_folder, ddim(sd15_folder), request))
    assert not np.array_equal(found[0][0], found[0][1]) and not np.array_equal(found[0], found[1])


def test_new_noise_at_each_step_and_another_sampler(draw, sd15_folder, motion_folder):
    eta = draw(sampler=replace(SAMPLER, eta=1.0), requests=REQUESTS[:1])[0]
    assert np.array_equal(eta, stock(sd15_folder, motion_folder, ddim(sd15_folder), REQUESTS[0], eta=1.0))
    euler = EulerDiscreteScheduler.from_pretrained(
        sd15_folder, subfolder="scheduler", beta_schedule="linear", steps_offset=1
    )
    theirs = stock(sd15_folder, motion_folder, euler, REQUESTS[0]).astype(int)
    ours = draw(sampler=replace(SAMPLER, name="euler"), requests=REQUESTS[:1])[0]
    assert np.abs(ours - theirs).max() <= 1  # the noise is scaled and scaled back


def test_frames_with_noise_in_common(draw, sd15_folder, motion_folder):
    found = draw(replace(VIDEO, shared_noise=0.75), requests=REQUESTS[:1])[0]
    generator = torch.Generator().manual_seed(REQUESTS[0].seed)
    own, common = (torch.randn(1, 4, frames, 8, 8, generator=generator) for frames in (4, 1))
    mixed = 0.75**0.5 * common + 0.25**0.5 * own
    theirs = stock(sd15_folder, motion_folder, ddim(sd15_folder), REQUESTS[0], latents=mixed)
    assert np.array_equal(found, theirs)


def test_frames_that_look_at_an_anchor(draw):
    """Two clips at once each have their own."""
    plain, anchored = draw(), replace(VIDEO, anchor="middle")
    found = draw(anchored)
    assert not np.array_equal(found, plain)
    together = draw(anchored, sampler=replace(SAMPLER, batch_size=2))
    assert np.abs(together.astype(int) - found.astype(int)).max() <= 2
    windows = replace(anchored, frames=12, free_noise=6, free_noise_stride=2)  # which the temporal layers alone have
    assert draw(windows, requests=REQUESTS[:1]).shape[1] == 12


def test_a_margin_is_drawn_and_left_away(draw):
    with_all = draw(replace(VIDEO, frames=8, anchor="first", shared_noise=0.5))
    kept = draw(replace(VIDEO, frames=4, margin=2, anchor="first", shared_noise=0.5))
    assert np.array_equal(kept, with_all[:, 2:6])


def test_long_clips_in_windows(draw, sd15_folder, motion_folder):
    ours = draw(replace(VIDEO, frames=12, free_noise=6, free_noise_stride=2), requests=REQUESTS[:1])[0]
    theirs = stock(sd15_folder, motion_folder, ddim(sd15_folder), REQUESTS[0], frames=12, window=6)
    assert len(ours) == 12 and np.array_equal(ours, theirs)


@pytest.mark.parametrize("settings", [{"decode_frames": 1}, {"decode_frames": 3}, {"vae_slicing": True}])
def test_memory_settings_change_next_to_nothing(draw, settings):
    plain = draw(requests=REQUESTS[:1]).astype(int)
    assert np.abs(draw(replace(VIDEO, **settings), requests=REQUESTS[:1]) - plain).max() <= 2


def test_two_clips_at_once_are_those_of_one_by_one(draw):
    one_by_one = draw().astype(int)
    at_once = draw(sampler=replace(SAMPLER, batch_size=2))
    assert np.abs(at_once - one_by_one).max() <= 2


def test_half_precision_keeps_latents_in_full(sd15, motion_folder):
    """The parts are bf16; noise, latents and the sampler's arithmetic are not."""
    for model in sd15.models():
        model.to(torch.bfloat16)
    motion = load_motion(motion_folder, VIDEO, torch.bfloat16)
    base = animated(sd15, motion)
    assert {p.dtype for p in base.unet.parameters()} == {torch.bfloat16}
    pipe = make_clip_pipeline(base, motion, VIDEO, SAMPLER, torch.device("cpu"))
    seen, step = set(), pipe.scheduler.step

    def watched(noise, t, latents, **more):
        seen.update({noise.dtype, latents.dtype})
        return step(noise, t, latents, **more)

    pipe.scheduler.step = watched
    [(_, frames)] = draw_clips(base, pipe, REQUESTS[:1], VIDEO, SAMPLER, resolution=64)
    assert seen == {torch.float32} and len(frames) == 4


def test_progress_counts_every_step(draw):
    steps = []
    draw(progress=steps.append)
    assert sum(steps) == len(REQUESTS) * SAMPLER.steps


def test_a_schedule_that_is_not_set_is_the_bases_own(sd15, motion_folder):
    motion = load_motion(motion_folder, VIDEO, torch.float32)
    base = animated(sd15, motion)
    own = make_clip_pipeline(base, motion, VideoConfig(), SAMPLER, torch.device("cpu")).scheduler.config
    other = make_clip_pipeline(base, motion, VIDEO, SAMPLER, torch.device("cpu")).scheduler.config
    assert (own.beta_schedule, other.beta_schedule) == ("scaled_linear", "linear")
    assert other.steps_offset == 1 and other.clip_sample is False
    assert (own.beta_start, own.beta_end) == (other.beta_start, other.beta_end) == (0.00085, 0.012)


def test_cpu_offload_needs_a_gpu_and_is_asked_of_diffusers(sd15, motion_folder, monkeypatch):
    motion = load_motion(motion_folder, VIDEO, torch.float32)
    base, video = animated(sd15, motion), replace(VIDEO, cpu_offload=True)
    with pytest.raises(UserError, match="cpu_offload=true needs a GPU"):
        make_clip_pipeline(base, motion, video, SAMPLER, torch.device("cpu"))
    asked = []
    monkeypatch.setattr(AnimateDiffPipeline, "enable_model_cpu_offload", lambda self, device: asked.append(device))
    make_clip_pipeline(base, motion, video, SAMPLER, torch.device("cuda", 0))
    assert asked == [torch.device("cuda", 0)]


def test_frames_that_are_no_numbers(draw, sd15):
    with torch.no_grad():
        sd15.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="aren't finite"):
        draw(requests=REQUESTS[:1])


def test_a_prompt_too_long_is_told_once(draw, caplog):
    draw(requests=make_requests(["a dog " * 60], 1, 0))
    assert sum("too long" in record.message for record in caplog.records) == 1
