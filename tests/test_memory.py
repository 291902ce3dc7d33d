"""Memory: low memory computes the same in less, the estimate follows the settings, and too little gives a sentence."""

from __future__ import annotations

import pytest
import torch
from test_engine import DOG, Recorder, make_config, make_views

from cdiff.compose import compose, to_checked_config
from cdiff.dispatch import guarded
from cdiff.engine import train
from cdiff.memory import FUSED, SIZES, estimate, views_at_once
from cdiff.methods import prepare
from cdiff.models import load_base
from cdiff.plan import plan
from cdiff.schema import ModelConfig
from cdiff.tokens import add_tokens


def config_of(*words: str):
    return to_checked_config(compose(["task=train", "model=sd15", *words], []))


def saved(folder, memory: str) -> tuple[dict, float]:
    """Losses of a short training, and the bytes that a step keeps for its backward pass."""
    conf = make_config()
    conf.memory = memory
    base = load_base(ModelConfig(path=str(folder)), torch.float32, "cpu")
    rows, recorder = add_tokens(base, [DOG]), Recorder()
    kept: list[float] = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        train(conf, base, [DOG], rows, prepare(base, conf.method, 1.0), make_views(), recorder)
    assert not base.unet.is_gradient_checkpointing  # as it was: what is drawn afterwards has no use for it
    return {step: row["loss/total"] for step, row in recorder.rows.items()}, sum(kept)


def test_low_memory_keeps_less_and_trains_the_same(sd15_folder):
    losses, kept = saved(sd15_folder, "normal")
    low_losses, low_kept = saved(sd15_folder, "low")
    assert low_losses == pytest.approx(losses, rel=1e-6)
    assert low_kept < 0.5 * kept


def test_low_memory_draws_and_encodes_one_by_one():
    low = config_of("memory=low")
    assert low.sampler.batch_size == 1 and views_at_once("low", 512) == 1
    assert config_of("memory=low", "sampler.batch_size=4").sampler.batch_size == 4
    assert config_of().sampler.batch_size == 8 and views_at_once("normal", 512) == 8
    assert views_at_once("normal", 64) == 64 and views_at_once("normal", 2048) == 1


def test_a_cpu_encodes_few_views_at_a_time():
    assert views_at_once("normal", 128, "cpu") == 8 and views_at_once("low", 128, "cpu") == 1
    assert views_at_once("normal", 512, "cpu") == 1


@pytest.mark.parametrize(
    ("words", "measured"),  # GiB on an H200 and, unfused, an H100: experiments/speed
    [([], 3.485), (["train.batch_size=8"], 6.680), (["memory=low"], 2.748), (["model.fused=false"], 3.94)],
)
def test_the_estimate_is_near_what_was_measured(words, measured):
    assert estimate(config_of(*words)).training == pytest.approx(measured, rel=0.05)


def test_the_estimate_follows_the_settings():
    normal = estimate(config_of())
    weights = 1066.2e6 * 2 / 2**30
    assert weights < normal.training < weights + 3 and not normal.lowest
    assert estimate(config_of("memory=low")).most < normal.most
    assert estimate(config_of("precision=fp32")).training > 1.9 * (normal.training - 0.3)
    wider = estimate(config_of("train.batch_size=4")).training
    assert wider == pytest.approx(normal.training + 2 * FUSED * SIZES["sd15"].step["kv"][0])
    assert estimate(config_of("prior=generated")).training == pytest.approx(wider)
    assert estimate(config_of("method=dreambooth")).training > 860e6 * 16 / 2**30
    assert estimate(config_of("model=pocket")) is None
    assert "GiB" in plan(config_of())["memory"] and plan(config_of("method=lora"))["memory"].startswith("at least")
    assert "memory" not in plan(config_of("model=pocket"))


def test_a_gpu_without_memory_left_is_told_in_a_sentence(capsys):
    def full() -> int:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    assert guarded(full) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "The GPU's memory is used up" in said and "memory=low" in said and "train.batch_size" in said
