"""Eager, graph, compile: which is taken, and that what a machine refuses goes on with one sentence."""

from __future__ import annotations

import logging

import pytest
import torch
from test_stepping import Tape

from cdiff.execution import SETTLE, Graphed, choose, compiled
from cdiff.sampling import make_requests, sample
from cdiff.schema import SamplerConfig

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def tape(function):
    recorded = Tape()
    with recorded:
        function()
    return recorded.replay


def refuse(_function):
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def test_the_choice(caplog):
    def chosen(wanted, calls=500, device=CUDA, precision=None):
        return choose("train.execution", wanted, calls, device, precision)

    assert chosen("auto", device=CPU) == "eager" == chosen("auto", precision="fp16") == chosen("auto", 5)
    assert chosen("auto") == "graph" == chosen("graph", 5)
    assert chosen("compile", 5) == "compile" and chosen("eager") == "eager" and not caplog.records
    with caplog.at_level(logging.WARNING, "cdiff"):
        assert chosen("graph", device=CPU) == chosen("compile", precision="fp16") == "eager"
    told = [record.message for record in caplog.records]
    assert told == [
        "train.execution=graph does not work on a CPU: it goes on as it comes.",
        "train.execution=compile does not work with precision=fp16: it goes on as it comes.",
    ]


def test_graphed_calls_are_the_calls_for_every_shape():
    seen = []

    def function(x, *, y, factor, extra=None):
        seen.append(factor)
        return (x * factor + y["bias"], "label")

    graphed = Graphed(function, tape, "It")
    for number in range(3 * SETTLE):
        for size in (2, 5):
            x, bias = torch.full((size,), float(number)), torch.ones(size)
            found, label = graphed(x, y={"bias": bias}, factor=3)
            assert torch.equal(found, x * 3 + bias) and label == "label"
    assert len(seen) == 2 * (SETTLE + 1)  # each shape: the calls before the capture, and the capture
    first = graphed(torch.zeros(2), y={"bias": torch.zeros(2)}, factor=3)[0]
    graphed(torch.ones(2), y={"bias": torch.zeros(2)}, factor=3)
    assert torch.equal(first, torch.zeros(2))  # a result is not overwritten by the next call


def test_a_refused_capture_and_a_failed_compilation_go_on(caplog, monkeypatch):
    with caplog.at_level(logging.WARNING, "cdiff"):
        graphed = Graphed(lambda x: x + 1, refuse, "The UNet")
        assert [graphed(torch.tensor(float(n))).item() for n in range(6)] == [1, 2, 3, 4, 5, 6]

        def broken(function, **_):
            def call(*_):
                raise RuntimeError("no compiler was found")

            return call

        monkeypatch.setattr(torch, "compile", broken)
        call = compiled(lambda x: x + 1, "The UNet")
        assert call(1) == 2 and call(2) == 3
    told = [record.message for record in caplog.records]
    assert len(told) == 2 and "stream is capturing): it goes on" in told[0]
    assert told[1] == "The UNet can't be compiled (no compiler was found): it goes on uncompiled."


@pytest.mark.parametrize("name", ["dpmpp", "ddim"])
def test_graphed_sampling_draws_the_same_pictures_and_leaves_the_unet_as_it_was(sd15, monkeypatch, name):
    requests = make_requests(["a dog", "a cat", "a dog on the beach"], 1, 0)
    conf = SamplerConfig(name=name, steps=6, batch_size=2)
    plain = sample(sd15, requests, conf, resolution=64)
    made = []

    def graphed(function, _recorder, what):
        made.append(Graphed(function, tape, what))
        return made[-1]

    monkeypatch.setattr("cdiff.sampling.choose", lambda *_: "graph")
    monkeypatch.setattr("cdiff.sampling.graph_recorder", lambda _stream, hurried: None)
    monkeypatch.setattr("cdiff.sampling.Graphed", graphed)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: None)
    drawn = sample(sd15, requests, conf, resolution=64)
    assert [image.tobytes() for image in drawn] == [image.tobytes() for image in plain]
    assert len(made[0].graphs) == 2 and "forward" not in vars(sd15.unet)  # a batch of two, and one of one


def test_by_count_a_step_of_sampling_is_one_pass_and_pictures_are_decoded_in_batches(sd15):
    passes = {"unet": [], "decoder": [], "text_encoder": []}
    hooks = [
        sd15.unet.register_forward_hook(lambda _m, inputs, _o: passes["unet"].append(len(inputs[0]))),
        sd15.vae.decoder.register_forward_hook(lambda _m, inputs, _o: passes["decoder"].append(len(inputs[0]))),
        sd15.text_encoder.register_forward_hook(lambda *_: passes["text_encoder"].append(1)),
    ]
    sample(sd15, make_requests(["a dog", "a cat"], 3, 0), SamplerConfig(steps=4, batch_size=3), resolution=64)
    for hook in hooks:
        hook.remove()
    assert passes["unet"] == [6] * 8  # two batches of three, guidance in one pass, four steps
    assert passes["decoder"] == [3, 3] and len(passes["text_encoder"]) == 3  # each prompt once, and the empty one


def test_nothing_is_compiled_unasked():
    assert choose("train.execution", "auto", 10**9, torch.device("cuda")) == "graph"
