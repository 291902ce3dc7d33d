"""The training loop on the tiny Stable Diffusion 1.5."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny import TinyConcept

from cdiff.batches import Batches
from cdiff.data.latents import TrainingViews
from cdiff.engine import learning_rate_scale, train
from cdiff.errors import UserError
from cdiff.methods import prepare
from cdiff.models import load_base
from cdiff.schema import Config, ModelConfig
from cdiff.tokens import PromptEncoder, add_tokens

NAMES = {"loss/total", "loss/recon", "loss/spl", "lr", "grad_norm", "token_norm", "images_per_second"}


class Recorder:
    def __init__(self):
        self.rows: dict[int, dict[str, float]] = {}

    def log(self, values, step):
        self.rows[step] = dict(values)


def make_views(count: int = 6, prompt: str = "a photo of a <new1> dog", seed: int = 0) -> TrainingViews:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.ones(count, 1, 8, 8)
    masks[::2, :, :3] = 0
    mean = torch.randn(count, 4, 8, 8, generator=generator)
    return TrainingViews(mean, 0.1 * torch.ones_like(mean), masks, [prompt] * count, [0] * count)


def make_config(**changes) -> Config:
    conf = Config()
    conf.train.steps, conf.train.log_every, conf.optimizer.learning_rate = 4, 2, 1e-3
    for path, value in changes.items():
        group, name = path.split("__")
        setattr(getattr(conf, group), name, value)
    return conf


DOG = TinyConcept()


def run_training(folder, conf, concepts=(DOG,), precision=torch.float32, device="cpu", **arguments):
    """(base, result, recorder, state dicts of the base before and after)."""
    base = load_base(ModelConfig(path=str(folder)), precision, device)
    before = states(base)
    rows = add_tokens(base, concepts)
    trainables = prepare(base, conf.method)
    recorder = Recorder()
    result = train(conf, base, list(concepts), rows, trainables, make_views(), recorder, **arguments)
    return base, result, recorder, before


def states(base) -> dict[str, dict[str, torch.Tensor]]:
    return {part: copy.deepcopy(getattr(base, part).state_dict()) for part in ("unet", "text_encoder", "vae")}


def test_losses_are_finite_and_logged_by_name(sd15_folder):
    told = []
    _, result, recorder, _ = run_training(sd15_folder, make_config(), progress=lambda losses: told.append(losses))
    assert list(recorder.rows) == [1, 2, 4] and len(told) == 4 and result.steps == 4
    for row in recorder.rows.values():
        assert set(row) == NAMES and all(math.isfinite(value) for value in row.values())
        assert row["lr"] == pytest.approx(2e-3)  # 1e-3 x batch of 2
        assert row["loss/total"] == pytest.approx(row["loss/recon"] + row["loss/spl"], rel=1e-5)
    assert set(result.losses) == {"loss/total", "loss/recon", "loss/spl"}
    assert result.learning_rate == pytest.approx(2e-3)


def test_only_keys_values_and_the_new_row_change(sd15_folder):
    base, result, _, before = run_training(sd15_folder, make_config())
    after = states(base)
    for part, tensors in before.items():
        for name, tensor in tensors.items():
            trained = part == "unet" and name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))
            assert torch.equal(tensor, after[part][name]) != trained, name
    table = before["text_encoder"][next(n for n in before["text_encoder"] if n.endswith("token_embedding.weight"))]
    dog = base.tokenizer("dog", add_special_tokens=False).input_ids[0]
    assert not torch.equal(result.token_rows[0], table[dog])
    assert all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in result.unet_weights.values())


def test_the_same_seed_gives_the_same_bits_twice_in_one_process(sd15_folder):
    _, first, rows, _ = run_training(sd15_folder, make_config())
    torch.manual_seed(7)  # what else the process drew must not matter
    _, second, again, _ = run_training(sd15_folder, make_config())
    assert torch.equal(first.token_rows, second.token_rows)
    assert all(torch.equal(first.unet_weights[name], second.unet_weights[name]) for name in first.unet_weights)
    assert rows.rows[4]["loss/total"] == again.rows[4]["loss/total"]
    other = make_config()
    other.seed = 1
    assert not torch.equal(first.token_rows, run_training(sd15_folder, other)[1].token_rows)


def test_two_accumulated_batches_of_one_are_one_batch_of_two(sd15_folder):
    damped = {"optimizer__epsilon": 1e-3}  # else Adam makes whole steps of gradients that are rounding alone
    conf = make_config(train__batch_size=1, train__gradient_accumulation_steps=2, **damped)
    _, accumulated, _, _ = run_training(sd15_folder, conf)
    _, whole, _, _ = run_training(sd15_folder, make_config(**damped))
    torch.testing.assert_close(accumulated.token_rows, whole.token_rows, rtol=0, atol=1e-5)
    for name, weight in whole.unet_weights.items():
        torch.testing.assert_close(accumulated.unet_weights[name], weight, rtol=0, atol=1e-5)
    assert accumulated.losses == pytest.approx(whole.losses, rel=1e-4)


def test_without_spl_weight_the_loss_is_reconstruction_alone_and_spl_is_still_logged(sd15_folder):
    _, result, recorder, _ = run_training(sd15_folder, make_config(loss__spl_weight=0.0))
    for row in recorder.rows.values():
        assert set(row) == NAMES and row["loss/total"] == row["loss/recon"] and 0 < row["loss/spl"] < 2
    _, with_spl, _, _ = run_training(sd15_folder, make_config(loss__spl_weight=10.0))
    assert with_spl.losses["loss/spl"] < result.losses["loss/spl"]


def test_prior_and_spl_go_together(sd15_folder):
    prior = make_views(3, "a photo of a dog", seed=1)
    conf = make_config(loss__prior_weight=0.5)
    _, result, recorder, _ = run_training(sd15_folder, conf, prior_views=prior)
    row = recorder.rows[4]
    assert set(row) == NAMES | {"loss/prior"}
    assert row["loss/total"] == pytest.approx(row["loss/recon"] + 0.5 * row["loss/prior"] + row["loss/spl"], rel=1e-5)
    assert result.learning_rate == pytest.approx(4e-3)  # doubled, as released


def test_token_alone_and_unet_alone(sd15_folder):
    _, token, _, _ = run_training(sd15_folder, make_config(method__train_unet="none"))
    assert token.unet_weights == {}
    base, unet, _, _ = run_training(sd15_folder, make_config(method__train_token=False, loss__spl_weight=0.0))
    start = PromptEncoder(base, torch.nn.Parameter(unet.token_rows)).table
    dog = base.tokenizer("dog", add_special_tokens=False).input_ids[0]
    assert torch.equal(unet.token_rows[0], start[dog])


def test_two_concepts_train_together(sd15_folder):
    concepts = (TinyConcept(), TinyConcept("<new2>", "cat", name="cat"))
    _, result, _, _ = run_training(sd15_folder, make_config(), concepts)
    assert result.token_rows.shape[0] == 2 and result.token_rows.isfinite().all()


def test_a_loss_that_is_not_finite_stops_with_step_rate_and_part(sd15_folder):
    conf = make_config(optimizer__learning_rate=1.0, optimizer__scale_learning_rate=False)
    base = load_base(ModelConfig(path=str(sd15_folder)), torch.float32, "cpu")
    views = make_views()
    views.mean[2] = float("nan")
    rows = add_tokens(base, [TinyConcept()])
    with pytest.raises(UserError, match=r"step \d+: loss/recon is nan at learning rate 1"):
        train(conf, base, [TinyConcept()], rows, prepare(base, conf.method), views, Recorder())
    run_training(sd15_folder, make_config())  # and nothing of it is left for the next job


def test_bfloat16_trains_fp32_weights_among_frozen_half_ones(sd15_folder):
    base, result, _, _ = run_training(sd15_folder, make_config(), precision=torch.bfloat16)
    assert base.unet.conv_in.weight.dtype == torch.bfloat16
    trained = [p for p in base.unet.parameters() if p.requires_grad]
    assert trained and {p.dtype for p in trained} == {torch.float32}
    _, exact, _, _ = run_training(sd15_folder, make_config())
    assert result.losses["loss/total"] == pytest.approx(exact.losses["loss/total"], rel=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float32])
def test_gpu_agrees_with_the_cpu(sd15_folder, precision):
    _, result, _, _ = run_training(sd15_folder, make_config(), precision=precision, device="cuda")
    _, exact, _, _ = run_training(sd15_folder, make_config())
    assert result.losses["loss/total"] == pytest.approx(exact.losses["loss/total"], rel=0.02)
    assert all(weight.device.type == "cpu" for weight in result.unet_weights.values())


def test_validation_is_called_in_time_and_the_schedule_falls(sd15_folder):
    steps = []
    conf = make_config(validation__every=2, lr_schedule__name="linear", train__log_every=1)
    _, _, recorder, _ = run_training(sd15_folder, conf, on_validation=steps.append)
    assert steps == [2, 4]
    rates = [row["lr"] for row in recorder.rows.values()]
    assert rates == pytest.approx([2e-3, 1.5e-3, 1e-3, 0.5e-3])


def test_a_micro_batch_follows_from_its_number(sd15):
    views = make_views(5)
    batches = Batches(sd15.scheduler, views, None, 2, 42, torch.device("cpu"))
    late = batches[7]
    again = Batches(sd15.scheduler, views, None, 2, 42, torch.device("cpu"))[7]
    assert torch.equal(late.noisy, again.noisy) and torch.equal(late.timesteps, again.timesteps)
    assert not torch.equal(late.noisy, batches[8].noisy)
    seen = [batches._view("concept", 5, sample) for sample in range(10)]
    assert sorted(seen[:5]) == sorted(seen[5:]) == list(range(5))  # each view once, then each again


def test_learning_rate_scale():
    conf = make_config(train__batch_size=4, train__gradient_accumulation_steps=2)
    assert learning_rate_scale(conf, 3, False) == 24 and learning_rate_scale(conf, 3, True) == 48
    conf.optimizer.scale_learning_rate = False
    assert learning_rate_scale(conf, 3, True) == 1
