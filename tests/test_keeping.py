"""A training that stops and goes on ends in the same bits as one that did not, whatever trains; and what breaks."""

from __future__ import annotations

import copy
import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_engine import DOG, Recorder, make_config, make_views

from cdiff.batches import Batches
from cdiff.checkpoint import Store, steps
from cdiff.engine import train
from cdiff.errors import UserError
from cdiff.keeping import APART, FIRST_GUESS, SHARE, Keeper, Keeping
from cdiff.methods import prepare
from cdiff.models import load_base
from cdiff.schema import CheckpointConfig, MethodConfig, ModelConfig
from cdiff.signals import Interrupted, StopRequest
from cdiff.tokens import add_tokens

METHODS = {
    "class_diffusion": (MethodConfig(), 1.0),
    "textual_inversion": (MethodConfig("textual_inversion", "none"), 0.0),
    "lora": (MethodConfig("lora", "lora", True, rank=4), 1.0),
    "dreambooth + text encoder": (MethodConfig("dreambooth", "all", None, train_text_encoder=True), 1.0),
}


def keeper(folder, stop=None, every=2, keep=2, start=None) -> Keeper:
    store = Store(folder, keep)
    return Keeper(CheckpointConfig(every, keep), store, lambda: {"events": 0}, stop or StopRequest(), start)


def config(method="class_diffusion", **changes):
    conf = make_config(**({"train__steps": 7, "train__log_every": 3, "lr_schedule__name": "linear"} | changes))
    conf.method, conf.loss.spl_weight = METHODS[method]
    conf.method = replace(conf.method)
    return conf


def training(folder, conf, keeping: Keeping | None = None, progress=None, views=None):
    """(result, rows logged) of a training set up from nothing; what else the process drew before must not matter."""
    for draw in (torch.rand, np.random.rand, lambda _: random.random()):
        draw(3)
    base = load_base(ModelConfig(path=str(folder)), torch.float32, "cpu")
    rows, recorder = add_tokens(base, [DOG]), Recorder()
    trainables = prepare(base, conf.method, conf.loss.spl_weight)
    views = views or make_views()
    result = train(conf, base, [DOG], rows, trainables, views, recorder, progress=progress, keeping=keeping)
    return result, {
        step: {k: v for k, v in row.items() if k != "images_per_second"} for step, row in recorder.rows.items()
    }


def stopping(stop: StopRequest, step: int):
    """A progress callback that asks to stop after so many steps, as a signal's handler does."""
    count = itertools.count(1)

    def progress(_):
        if next(count) == step:
            stop.asked = "SIGTERM"

    return progress


def assert_same(one, other) -> None:
    for part in ("unet_weights", "text_encoder_weights"):
        found, wanted = getattr(one, part), getattr(other, part)
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert torch.equal(one.token_rows, other.token_rows) and one.losses == other.losses and one.steps == other.steps


@pytest.mark.parametrize("method", METHODS)
def test_stopped_at_any_step_it_ends_in_the_same_bits(method, sd15_folder, tmp_path):
    conf = config(method)
    torch.manual_seed(3)  # a LoRA starts from random numbers
    whole, logged = training(sd15_folder, conf)
    for step in (1, 4, 7):
        stop, folder = StopRequest(), tmp_path / str(step)
        folder.mkdir()
        torch.manual_seed(3)
        with pytest.raises(Interrupted, match=f"Stopped by SIGTERM at step {step} and saved"):
            training(sd15_folder, conf, keeper(folder, stop, every=0), stopping(stop, step))
        start = Store(folder, 2).newest()
        assert start.step == step
        torch.manual_seed(4)
        result, rows = training(sd15_folder, conf, keeper(folder, every=0, start=start))
        assert_same(result, whole)
        assert rows == {at: row for at, row in logged.items() if at > step}


def test_with_accumulation_and_every_random_state(sd15_folder, tmp_path):
    conf = config(train__gradient_accumulation_steps=2, train__steps=4)
    whole, _ = training(sd15_folder, conf)
    training(sd15_folder, conf, keeper(tmp_path, every=3))
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    start = next(c for c in [Store(tmp_path, 2).newest()] if c.step == 4)
    again, rows = training(sd15_folder, conf, keeper(tmp_path, start=start))
    assert rows == {} and again.losses == whole.losses  # nothing was left to do
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_a_checkpoint_of_another_training_is_refused_by_the_name_that_does_not_fit(sd15_folder, tmp_path):
    training(sd15_folder, config(), keeper(tmp_path))
    start = Store(tmp_path, 2).newest()
    with pytest.raises(UserError, match=r"holds unet\..*, which does not train here"):
        training(sd15_folder, config("textual_inversion"), keeper(tmp_path, start=start))
    for spoil, words in (
        (lambda c: c.tensors["weights"].pop("rows"), "lacks rows"),
        (lambda c: c.tensors["weights"].update(rows=torch.zeros(2, 2)), "another shape or precision of rows"),
        (lambda c: c.tensors["optimizer"].update({"rows::exp_avg": torch.zeros(1)}), "rows::exp_avg has another shape"),
        (lambda c: c.facts.pop("window"), "does not fit this training .KeyError"),
        (lambda c: c.facts.update(random=[{"python": [3, [1], None], "numpy": []}]), "does not fit this training"),
    ):
        spoiled = copy.deepcopy(start)
        spoil(spoiled)
        with pytest.raises(UserError, match=words):
            training(sd15_folder, config(), keeper(tmp_path, start=spoiled))


def test_a_changed_learning_rate_holds_after_a_resume(sd15_folder, tmp_path):
    stop = StopRequest()
    with pytest.raises(Interrupted):
        training(sd15_folder, config(), keeper(tmp_path, stop), stopping(stop, 3))
    conf = config(optimizer__learning_rate=5e-4, lr_schedule__name="constant")
    _, rows = training(sd15_folder, conf, keeper(tmp_path, start=Store(tmp_path, 2).newest()))
    assert {row["lr"] for row in rows.values()} == {1e-3}


# ---- losses that are no numbers ----


def broken_views():
    """The view of sample 4 is no number: it stands in the third step first, and once in every three."""
    views = make_views()
    order = Batches(None, views, None, 2, make_config().seed, torch.device("cpu"))
    views.mean[order._view("concept", len(views), 4)] = float("nan")
    return views


def test_a_bad_step_stops_and_the_state_before_it_is_kept(sd15_folder, tmp_path):
    """The checkpoint is the one that a training of as many steps as were good would have written."""
    conf = config(train__log_every=5)
    with pytest.raises(UserError) as told:
        training(sd15_folder, conf, keeper(tmp_path, every=0), views=broken_views())
    sentence = str(told.value)
    bad = int(sentence.split("step ")[1].split(":")[0])
    assert bad == 3, sentence
    assert "loss/recon is nan at learning rate 0.00143 (batch 2: view " in sentence
    assert "'a photo of a <new1> dog'" in sentence and "the state before it is kept (step 2)" in sentence
    kept = Store(tmp_path, 2).newest()
    other = tmp_path / "other"
    other.mkdir()
    stop = StopRequest()
    with pytest.raises(Interrupted):
        training(sd15_folder, conf, keeper(other, stop, every=0), stopping(stop, bad - 1), broken_views())
    wanted = Store(other, 2).newest()
    assert kept.step == wanted.step == bad - 1
    for group in ("weights", "optimizer"):
        assert kept.tensors[group].keys() == wanted.tensors[group].keys()
        assert all(torch.equal(kept.tensors[group][n], t) for n, t in wanted.tensors[group].items())
    assert torch.equal(kept.tensors["rest"]["window"], wanted.tensors["rest"]["window"])


def test_bad_steps_are_skipped_up_to_the_number_allowed(sd15_folder, tmp_path, caplog):
    conf = config(train__skip_not_finite=2, train__steps=6)  # six views in batches of two: one bad step in three
    result, rows = training(sd15_folder, conf, keeper(tmp_path), views=broken_views())
    assert result.token_rows.isfinite().all() and all(w.isfinite().all() for w in result.unet_weights.values())
    assert all(np.isfinite(row["loss/total"]) for row in rows.values())
    told = [record.getMessage() for record in caplog.records if "Skipped" in record.getMessage()]
    assert len(told) == 2 and told[0].startswith("Skipped step 3: ") and told[1].endswith("2 of 2 allowed.")
    conf.train.skip_not_finite, other = 1, tmp_path / "other"
    other.mkdir()
    with pytest.raises(UserError, match=r"Training broke at step [456]: .*the state before it is kept"):
        training(sd15_folder, conf, keeper(other, every=0), views=broken_views())


def test_a_skipped_step_changes_nothing_and_resumes_as_skipped(sd15_folder, tmp_path):
    conf = config(train__skip_not_finite=9, train__steps=6)
    whole, logged = training(sd15_folder, conf, views=broken_views())
    stop = StopRequest()
    with pytest.raises(Interrupted):
        training(sd15_folder, conf, keeper(tmp_path, stop, every=0), stopping(stop, 4), broken_views())
    start = Store(tmp_path, 2).newest()
    assert start.facts["skipped"] == 1
    result, rows = training(sd15_folder, conf, keeper(tmp_path, start=start), views=broken_views())
    assert_same(result, whole)
    assert rows[6] == logged[6]


def test_an_infinite_gradient_alone_is_found_too(sd15_folder, tmp_path, monkeypatch):
    from cdiff import engine

    real = engine.reconstruction_loss

    def spiked(prediction, target, mask):
        prediction.register_hook(lambda gradient: gradient * float("inf"))
        return real(prediction, target, mask)

    monkeypatch.setattr(engine, "reconstruction_loss", spiked)
    with pytest.raises(UserError, match=r"step 1: grad_norm is (inf|nan) .*no step was done before it"):
        training(sd15_folder, config(), keeper(tmp_path))
    assert not list(steps(tmp_path / "checkpoints"))


# ---- when ----


def test_by_itself_it_saves_no_oftener_than_its_share_of_the_time(tmp_path):
    from types import SimpleNamespace

    own = keeper(tmp_path, every=None)
    accelerator = SimpleNamespace(num_processes=1)
    state = SimpleNamespace(step=1, seconds=0.0, trained=[torch.zeros(1000)], window=SimpleNamespace(steps=[]))
    fixed, _ = FIRST_GUESS
    assert not own._due(accelerator, state, False)
    state.seconds = 1.01 * (fixed + 12_000 / 50e6) / SHARE
    assert own._due(accelerator, state, False)
    own.cost, own.spent = 1.0, 1.0  # it turned out dearer
    assert not own._due(accelerator, state, True)
    state.seconds = 101.0
    assert own._due(accelerator, state, False)
    own.cost, own.spent, own.saved_at = 0.01, 0.5, 95.0  # it is cheap, but there was one a moment ago
    assert not own._due(accelerator, state, False) and own._due(accelerator, state, True)
    state.seconds = 95.0 + APART
    assert own._due(accelerator, state, False)


def test_every_so_many_steps_and_at_the_end(sd15_folder, tmp_path):
    training(sd15_folder, config(), keeper(tmp_path, every=3, keep=5))
    assert [step for step, _ in steps(tmp_path / "checkpoints")] == [3, 6, 7]
