"""The arithmetic of method.md's section on the true size, as the plan shows it."""

from __future__ import annotations

import pytest

from cdiff.cli import main
from cdiff.compose import compose, to_checked_config
from cdiff.cost import cost


def cost_of(*words: str):
    return cost(to_checked_config(compose(["model=sd15", *words])))


def test_a_step_of_batch_2_is_the_counted_one():
    found = cost_of("train.steps=1", "train.batch_size=2", "train.then=[]", "augment.views=1")
    assert found.training == pytest.approx(3.34 + 1.12, rel=0.01) and found.drawing == 0


def test_what_doubles():
    def training(*more):
        return cost_of("train.steps=100", "train.then=[]", "augment.views=1", *more).training - 1.12

    assert training("train.batch_size=4") == pytest.approx(2 * training("train.batch_size=2"))
    assert training("prior=folder", "prior.images=x") == pytest.approx(2 * training())
    assert training("model.resolution=256", "augment.views=1") < training() / 3


def test_the_papers_protocol_is_500_images_a_run():
    found = cost_of("protocol=paper", "sampler=ddim100", "train.then=[evaluate]", "train.steps=1")
    assert found.drawing == pytest.approx(25 * 20 * (100 * 2 * 0.805 + 2.51))


def test_nothing_is_said_of_a_model_of_another_size():
    assert cost(to_checked_config(compose([]))) is None


def test_the_paper_is_one_command_whose_dry_run_tells_gpu_hours(capsys):
    command = ["-m", "experiment=paper", "concept=dog,dog2", "method=class_diffusion,dreambooth", "name=paper"]
    assert main([*command, "dry_run=true"]) == 0
    said = capsys.readouterr().out
    whole = said[said.index("The whole sweep") :]
    assert "4" in whole and "GPU hours at the least" in whole and "not measured" in whole
    assert "outputs/sweeps/paper/3-" in said and "dreambooth" in said


def test_an_experiment_that_is_a_sweep_asks_for_m(capsys):
    assert main(["experiment=methods"]) == 2
    assert "This experiment is a sweep (method=class_diffusion,custom_diffusion" in capsys.readouterr().err
