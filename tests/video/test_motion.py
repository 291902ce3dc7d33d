"""The motion adapter: found, checked against the base, put into its UNet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from layouts import build
from motion_adapter import build_motion_adapter

from cdiff import pocket
from cdiff.errors import UserError
from cdiff.hub import COMMIT, PINS
from cdiff.schema import ModelConfig, VideoConfig
from cdiff.video.motion import animated, check_fit, find_motion, load_motion


def conf(folder: Path | str, **more) -> VideoConfig:
    return VideoConfig(**{"motion_adapter": str(folder), "frames": 4} | more)


def fit(folder: Path, base: Path, **more) -> None:
    check_fit(folder, ModelConfig(path=str(base)), conf(folder, **more))


def test_the_motion_unet_holds_the_weights_of_both(sd15, motion_folder):
    with torch.no_grad():
        for name, parameter in sd15.unet.named_parameters():
            if ".attn2.to_k" in name:
                parameter.add_(1.0)  # as a tuned base differs from the untouched one
    motion = load_motion(motion_folder, conf(motion_folder), torch.float32)
    before = torch.random.get_rng_state()
    unet = animated(sd15, motion).unet
    assert torch.equal(torch.random.get_rng_state(), before)
    found, own, adapters = unet.state_dict(), sd15.unet.state_dict(), motion.state_dict()
    assert all(torch.equal(found[name], value) for name, value in own.items())
    assert all(torch.equal(found[name], value) for name, value in adapters.items())
    assert set(found) == set(own) | set(adapters)
    assert not any(parameter.requires_grad for parameter in unet.parameters()) and not unet.training


def test_what_fits(sd15_folder, motion_folder, tmp_path):
    fit(motion_folder, sd15_folder, frames=8)
    fit(motion_folder, sd15_folder, frames=40, free_noise=8)
    fit(build_motion_adapter(tmp_path / "plain", use_motion_mid_block=False), sd15_folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"block_out_channels": (16, 16, 16, 32)}, r"channels \[16, 16, 16, 32\], the base has \[16, 16, 16, 16\]"),
        ({"block_out_channels": (16, 16)}, r"channels \[16, 16\], the base has"),
        ({"motion_layers_per_block": 1}, r"layers in each block \[1, 1, 1, 1\], the base has \[2, 2, 2, 2\]"),
        ({"motion_norm_num_groups": 4}, "groups of a norm 4, the base has 8"),
        ({"conv_in_channels": 9}, "starts from a picture"),
    ],
)
def test_an_adapter_of_another_shape(changes, sentence, sd15_folder, tmp_path):
    folder = build_motion_adapter(tmp_path / "other", **changes)
    with pytest.raises(UserError, match=sentence):
        fit(folder, sd15_folder)


def test_more_frames_than_the_adapter_takes(sd15_folder, motion_folder):
    with pytest.raises(UserError, match=r"video.frames=9: .* 8 frames at most"):
        fit(motion_folder, sd15_folder, frames=9)
    with pytest.raises(UserError, match=r"video.frames=7 \(and video.margin=1 before and after\): .* 8 frames at most"):
        fit(motion_folder, sd15_folder, frames=7, margin=1)
    with pytest.raises(UserError, match=r"video.free_noise=9: .* 8 frames at most"):
        fit(motion_folder, sd15_folder, frames=40, free_noise=9)


def test_a_base_that_no_adapter_is_for(motion_folder, tmp_path):
    with pytest.raises(UserError, match="is an SDXL"):
        fit(motion_folder, build("sdxl", tmp_path / "sdxl"))


def test_the_published_adapter_is_for_text_of_one_width(sd15_folder, motion_folder):
    published = conf("guoyww/animatediff-motion-adapter-v1-5-2")
    with pytest.raises(UserError, match=r"trained on Stable Diffusion 1.5 \(text of width 768\).*width 32"):
        check_fit(motion_folder, ModelConfig(path=str(sd15_folder)), published)
    assert COMMIT.fullmatch(PINS[published.motion_adapter])


def test_weights_that_its_configuration_does_not_say(sd15_folder, motion_folder, tmp_path):
    folder = Path(shutil.copytree(motion_folder, tmp_path / "motion"))
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"motion_max_seq_length": 16}))
    with pytest.raises(UserError, match=r"can't be loaded as MotionAdapter|has a shape"):
        load_motion(folder, conf(folder), torch.float32)
    (folder / "config.json").write_text(json.dumps(told | {"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(UserError, match="is a UNet2DConditionModel, and a MotionAdapter is needed"):
        fit(folder, sd15_folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"is no motion adapter: it lacks config\.json"):
        fit(folder, sd15_folder)


def test_an_adapter_without_weights(motion_folder, tmp_path):
    folder = Path(shutil.copytree(motion_folder, tmp_path / "motion"))
    with pytest.raises(UserError, match=r"no fp16 weights: say video\.variant=null"):
        load_motion(folder, conf(folder, variant="fp16"), torch.float32)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match="no weights"):
        load_motion(folder, conf(folder), torch.float32)


def test_where_an_adapter_is_looked_for(motion_folder, tmp_path, monkeypatch):
    assert find_motion(conf(motion_folder)) == motion_folder
    with pytest.raises(UserError, match="no such folder"):
        find_motion(conf(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="is a file"):
        find_motion(conf(motion_folder / "config.json"))
    with pytest.raises(UserError, match="can't be fetched from the hub"):
        find_motion(conf("nobody/nothing"))
    monkeypatch.setattr(pocket, "WEIGHTS", tmp_path)
    with pytest.raises(UserError, match=r"pretrain\.stage=clips.*pretrain\.stage=motion.*video\.motion_adapter="):
        find_motion(conf("pocket"))
    (tmp_path / "motion").mkdir()
    assert find_motion(conf("pocket")) == tmp_path / "motion"
