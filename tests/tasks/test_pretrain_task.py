"""task=pretrain: its stages by name, and what it says when something is not there. The stages: tests/pocket."""

from __future__ import annotations

import json

import pytest

from cdiff.errors import UserError
from cdiff.schema import Config, PretrainConfig
from cdiff.tasks.pretrain import run


def configured(folder, stage: str, settings: dict | None = None) -> Config:
    return Config(
        task="pretrain",
        device="cpu",
        pretrain=PretrainConfig(stage=stage, folder=str(folder), workers=1, settings={stage: settings or {}}),
    )


def test_an_unknown_stage_lists_those_there_are(tmp_path):
    with pytest.raises(UserError, match="vae, clip, probe, identity, blip, unet, motion"):
        run(configured(tmp_path, "vea"))


def test_scores_without_weights_and_of_unknown_models(tmp_path):
    settings = {"prompts": 2, "clips": 2, "steps": 2, "guidance_scale": 5.0}
    with pytest.raises(UserError, match="no weights"):
        run(configured(tmp_path, "scores", settings))
    (tmp_path / "weights").mkdir()
    with pytest.raises(UserError, match="vea"):
        run(configured(tmp_path, "scores", settings | {"only": ["vea"]}))


def test_scores_keep_what_is_not_measured_again(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "scores.json").write_text(json.dumps({"vae": {"psnr_db": 30.0}}))
    assert run(configured(tmp_path, "scores", {"prompts": 2, "clips": 2}))["vae"] == {"psnr_db": 30.0}


def test_a_card_and_clips_through_the_task(tmp_path):
    training = tmp_path / "weights" / "training"
    training.mkdir(parents=True)
    record = {"settings": {"batch_size": 8}, "minutes": 2.0, "steps": 9, "seconds": 5, "processes": 2}
    record |= {"device": "some card", "torch": "2", "date": "2026-01-01"}
    (training / "vae.json").write_text(json.dumps(record))
    run(configured(tmp_path, "card"))
    text = (tmp_path / "weights" / "README.md").read_text()
    assert "| vae | 9 | 8 x 2 | 5 | 2 x some card |" in text and "pretrain.minutes=2.0" in text
    assert run(configured(tmp_path, "clips", {"clips": 1, "shard": 1})) == {"clips": 1}
    assert (tmp_path / "clips" / "0000-pixels.npy").exists()
