"""A step on tensors that stay where they are is the eager step; a replay of its operations is one too. By counts: what
a step calls, allocates and waits for."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest
import torch
from test_engine import DOG, Recorder, make_config, make_views
from test_keeping import keeper
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cdiff import engine
from cdiff.checkpoint import read
from cdiff.engine import train
from cdiff.execution import SETTLE
from cdiff.methods import prepare
from cdiff.models import load_base
from cdiff.schema import MethodConfig, ModelConfig
from cdiff.stepping import StaticStep
from cdiff.tokens import add_tokens

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique")  # operations that wait for a GPU


class Tape(TorchDispatchMode):
    """Records every operation with its tensors, and does them again on the same tensors: what a CUDA graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found

    def names(self) -> Counter:
        return Counter(func.overloadpacket.__name__ for func, *_ in self.calls)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, found in self.calls:
            for place, value in zip(tree_leaves(found), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


def tape_recorder(tapes: list[Tape]):
    """Like `graph_recorder`: nothing is executed while it records, so what recording changed is put back."""

    def record(function):
        tape, state = Tape(), tape_recorder.state
        before = [tensor.clone() for tensor in state()]
        with tape:
            function()
        with torch.no_grad():
            for tensor, value in zip(state(), before, strict=True):
                tensor.copy_(value)
        tapes.append(tape)
        return tape.replay

    return record


def static(monkeypatch, record=None, tapes=None) -> list[StaticStep]:
    """Let every training take static steps; the steps made so are kept."""
    made = []

    def make(execution, conf, accelerator, module, state, batches):
        if tapes is not None:
            tape_recorder.state = lambda: everything(made[-1])
        made.append(StaticStep(conf, accelerator, module, state, batches, record=record))
        return made[-1]

    monkeypatch.setattr(engine, "make_step", make)
    return made


def everything(step: StaticStep) -> list[torch.Tensor]:
    """All that a step changes."""
    moments = [value for own in step.optimizer.state.values() for value in own.values()]
    return [*step.state.trained, *moments, step.flat, step.sums, step.values, step.state.guard.skipped]


def training(folder, conf, views=None, prior=None, keeping=None):
    base = load_base(ModelConfig(path=str(folder)), torch.float32, "cpu")
    rows, recorder = add_tokens(base, [DOG]), Recorder()
    torch.manual_seed(0)
    trainables = prepare(base, conf.method, conf.loss.spl_weight)
    result = train(
        conf, base, [DOG], rows, trainables, views or make_views(), recorder, prior_views=prior, keeping=keeping
    )
    return result, recorder.rows


def config(**changes):
    """Adam's epsilon damps steps made of gradients that are rounding alone."""
    return make_config(
        **({"train__steps": 7, "train__log_every": 1, "lr_schedule__name": "linear"} | changes),
        optimizer__epsilon=1e-2,
    )


def assert_close(one, other) -> None:
    (result, rows), (wanted, wanted_rows) = one, other
    assert rows.keys() == wanted_rows.keys()
    for step, row in wanted_rows.items():
        for name, value in row.items():
            if name != "images_per_second":
                assert rows[step][name] == pytest.approx(value, rel=1e-4, abs=1e-6), (step, name)
    torch.testing.assert_close(result.token_rows, wanted.token_rows, rtol=0, atol=3e-5)
    for name, weight in wanted.unet_weights.items():
        torch.testing.assert_close(result.unet_weights[name], weight, rtol=0, atol=3e-5)


CASES = {
    "plain": {},
    "accumulated": {"train__gradient_accumulation_steps": 3, "train__batch_size": 1},
    "clipped": {"train__max_grad_norm": 0.05},
    "no clipping": {"train__max_grad_norm": None},
    "token alone": {"method__train_unet": "none"},
    "without SPL": {"loss__spl_weight": 0.0},
    "lora": {"method": MethodConfig("lora", "lora", True, rank=4)},
}


@pytest.mark.parametrize("case", CASES)
def test_static_steps_and_their_replays_are_eager_steps(case, sd15_folder, monkeypatch):
    changes = dict(CASES[case])
    method = changes.pop("method", None)
    conf = config(**changes)
    conf.method = method or conf.method
    prior = make_views(3, "a photo of a dog", seed=1) if case == "accumulated" else None
    eager = training(sd15_folder, conf, prior=prior)
    static(monkeypatch)
    assert_close(training(sd15_folder, conf, prior=prior), eager)
    tapes: list[Tape] = []
    made = static(monkeypatch, tape_recorder(tapes), tapes)
    assert_close(training(sd15_folder, conf, prior=prior), eager)
    assert made[0].captured and made[0].done == 7 > SETTLE and len(tapes) == 2


def test_a_bad_step_leaves_the_weights_alone_in_a_replay_too(sd15_folder, monkeypatch, caplog):
    views = make_views(14)
    views.mean[11] = float("nan")  # each view is used once: one bad step
    conf = config(train__skip_not_finite=1)
    eager = training(sd15_folder, conf, views)
    tapes: list[Tape] = []
    static(monkeypatch, tape_recorder(tapes), tapes)
    with caplog.at_level(logging.WARNING, "cdiff"):
        assert_close(training(sd15_folder, conf, views), eager)
    assert "1 of 1 allowed" in caplog.text and len(eager[1]) == 6


def test_a_checkpoint_goes_on_in_the_other_kind_of_step(sd15_folder, monkeypatch, tmp_path):
    conf = config()
    whole = training(sd15_folder, conf)
    training(sd15_folder, conf, keeping=keeper(tmp_path, every=3, keep=9))
    start = read(tmp_path / "checkpoints" / "step-000003")
    static(monkeypatch)
    result, rows = training(sd15_folder, conf, keeping=keeper(tmp_path, every=0, start=start))
    assert_close((result, rows), (whole[0], {step: row for step, row in whole[1].items() if step > 3}))


def test_a_capture_that_fails_goes_on_with_one_sentence(sd15_folder, monkeypatch, caplog):
    def refuse(function):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    eager = training(sd15_folder, config())
    made = static(monkeypatch, refuse)
    with caplog.at_level(logging.WARNING, "cdiff"):
        assert_close(training(sd15_folder, config()), eager)
    told = [record.message for record in caplog.records if "CUDA graph" in record.message]
    assert len(told) == 1 and "operation not permitted when stream is capturing): it goes on" in told[0]
    assert not made[0].captured and made[0].record is None


def test_what_a_step_does_by_count(sd15_folder, monkeypatch):
    """One pass of the UNet, one of the text encoder, none of the VAE, and nothing that waits for the device."""
    tapes: list[Tape] = []
    static(monkeypatch, tape_recorder(tapes), tapes)
    base = load_base(ModelConfig(path=str(sd15_folder)), torch.float32, "cpu")
    calls = Counter()
    for part in ("unet", "text_encoder", "vae"):
        getattr(base, part).register_forward_hook(lambda *_, part=part: calls.update([part]))
    rows = add_tokens(base, [DOG])
    conf = config(train__steps=SETTLE)
    train(conf, base, [DOG], rows, prepare(base, conf.method, 1.0), make_views(), Recorder())
    # the class side of SPL is encoded once beside the steps
    assert calls == {"unet": SETTLE, "text_encoder": SETTLE + 1}
    training(sd15_folder, config())
    counts = [tape.names() for tape in tapes]
    for count in counts:
        assert not {name: times for name, times in count.items() if name in WAITS}
    backward, update = counts
    assert backward["convolution"] == convolutions(base.unet)
    assert backward["_fused_adamw_"] == 0 and update["_fused_adamw_"] == 2  # two rates: the weights', the tokens'
    # no gradient of a frozen weight: a convolution's backward is asked for its input's alone
    masks = [args[-1] for func, args, *_ in tapes[0].calls if "convolution_backward" in str(func)]
    assert masks and all(mask == [True, False, False] for mask in masks)


def convolutions(model) -> int:
    return sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())


def test_a_replayed_step_allocates_a_row_of_losses_and_its_batch(sd15_folder, monkeypatch):
    tapes: list[Tape] = []
    made = static(monkeypatch, tape_recorder(tapes), tapes)
    training(sd15_folder, config())
    step = made[0]
    places = [tensor.data_ptr() for tensor in [*step.batch.tensors(), *everything(step)]]
    step.accelerator = SimpleNamespace(num_processes=1, process_index=0)  # the training's own is gone with it
    ready = step.batches[0]
    step.batches = defaultdict(lambda: ready)  # a batch is made on the CPU and waits for nothing
    with Tape() as outside:
        monkeypatch.setattr(step, "backward", lambda: None)
        monkeypatch.setattr(step, "apply", lambda: None)
        step()
    assert [tensor.data_ptr() for tensor in [*step.batch.tensors(), *everything(step)]] == places
    names = outside.names()
    assert names["clone"] == 1 and not {name: names[name] for name in WAITS if names[name]}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("execution", ["graph", "compile"])
def test_graphs_on_a_gpu_are_eager_steps(execution, sd15_folder):
    found = []
    for wanted in ("eager", execution):
        conf = config(train__execution=wanted, train__steps=20)
        base = load_base(ModelConfig(path=str(sd15_folder)), torch.float32, "cuda")
        rows, recorder = add_tokens(base, [DOG]), Recorder()
        train(conf, base, [DOG], rows, prepare(base, conf.method, 1.0), make_views(), recorder)
        found.append([row["loss/total"] for row in recorder.rows.values()])
    assert found[1] == pytest.approx(found[0], rel=1e-3)
