"""The motion adapter: found, checked against the base before either is loaded, and put into the base's UNet."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import MotionAdapter, UNetMotionModel
from diffusers.utils import logging as diffusers_logging

from cdiff import pocket
from cdiff.base_files import find_base, first_line
from cdiff.errors import UserError
from cdiff.hub import pinned
from cdiff.models import Base, read_json, read_weights
from cdiff.schema import ModelConfig, VideoConfig

POCKET = "pocket"
TEXT_WIDTHS = {"guoyww/animatediff-motion-adapter-v1-5-2": 768}  # of the base that a published adapter was trained on
OTHERS = "video.motion_adapter=DIR names an adapter of this base"


def find_motion(conf: VideoConfig) -> Path:
    """The adapter's folder: the shipped one for "pocket", a folder as it is, else fetched from the hub.

    Raises:
        UserError: there is none, or it can't be fetched.
    """
    named = conf.motion_adapter
    if named == POCKET:
        return _shipped()
    path = Path(named).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"video.motion_adapter={named} is a file: name the folder of a diffusers MotionAdapter.")
    if named.startswith((".", "~", os.sep)) or named.count("/") != 1:
        raise UserError(f"video.motion_adapter={named}: there is no such folder, and it is not a hub id (owner/name).")
    return _fetch(conf)


def _shipped() -> Path:
    folder = pocket.WEIGHTS / "motion"
    if folder.is_dir():
        return folder
    raise UserError(
        f"The motion adapter of the pocket base is not part of this version ({folder} is missing): make it on a GPU "
        "with `python -m cdiff task=pretrain pretrain.stage=clips` and then `python -m cdiff task=pretrain "
        "pretrain.stage=motion pretrain.settings.motion.base=shipped`, and name it: "
        "video.motion_adapter=outputs/pretrain/weights/motion."
    )


def _fetch(conf: VideoConfig) -> Path:
    from huggingface_hub import snapshot_download

    weights = f"diffusion_pytorch_model{f'.{conf.variant}' if conf.variant else ''}.safetensors"
    try:
        commit = pinned(conf.motion_adapter, conf.revision)
        patterns = ["config.json", weights]
        return Path(snapshot_download(conf.motion_adapter, revision=commit, allow_patterns=patterns))
    except Exception as error:  # requests', httpx's and the hub's own errors share no parent
        raise UserError(
            f"video.motion_adapter={conf.motion_adapter}: can't be fetched from the hub ({first_line(error)}); check "
            "the name and the network, or name a folder that holds the adapter."
        ) from error


def check_fit(folder: Path, model: ModelConfig, conf: VideoConfig) -> None:
    """Whether the adapter fits the base and takes so many frames, by their config.json alone.

    Raises:
        UserError: says what does not fit.
    """
    motion = read_json(
        folder / "config.json", f"video.motion_adapter={conf.motion_adapter} is no motion adapter: it lacks"
    )
    if motion.get("_class_name") != "MotionAdapter":
        kind = motion.get("_class_name") or motion.get("model_type") or "model of another kind"
        raise UserError(f"video.motion_adapter={conf.motion_adapter} is a {kind}, and a MotionAdapter is needed.")
    base = find_base(model)
    if (read_json(base / "model_index.json", "the base lacks").get("text_encoder_2") or [None])[0]:
        raise UserError(
            f"task=video draws with bases of Stable Diffusion 1.5's architecture; {model.path} is an SDXL, and "
            f"{conf.motion_adapter} is no adapter for it: name a run of another base, run=FOLDER."
        )
    _check_shapes(read_json(base / "unet" / "config.json", "the part unet/ lacks"), motion, model, conf)
    _check_frames(int(motion.get("motion_max_seq_length", 32)), conf)


def _check_shapes(unet: Mapping[str, Any], motion: Mapping[str, Any], model: ModelConfig, conf: VideoConfig) -> None:
    """Equal widths, layers and groups. diffusers takes the groups of norms from the base, whatever the adapter says."""
    channels = list(unet.get("block_out_channels", (320, 640, 1280, 1280)))
    blocks = len(channels)
    own = {
        "channels": channels,
        "layers in each block": _each(unet.get("layers_per_block", 2), blocks),
        "groups of a norm": unet.get("norm_num_groups", 32),
    }
    adapters = {
        "channels": list(motion.get("block_out_channels", (320, 640, 1280, 1280))),
        "layers in each block": _each(motion.get("motion_layers_per_block", 2), blocks),
        "groups of a norm": motion.get("motion_norm_num_groups", 32),
    }
    for what, value in own.items():
        if value != adapters[what]:
            raise UserError(
                f"The motion adapter {conf.motion_adapter} does not fit the base {model.path}: "
                f"{what} {adapters[what]}, the base has {value}; {OTHERS}."
            )
    if motion.get("conv_in_channels"):
        raise UserError(
            f"The motion adapter {conf.motion_adapter} starts from a picture (PIA), which task=video has not."
        )
    width, wanted = unet.get("cross_attention_dim"), TEXT_WIDTHS.get(conf.motion_adapter)
    if wanted is not None and width != wanted:
        raise UserError(
            f"The motion adapter {conf.motion_adapter} was trained on Stable Diffusion 1.5 (text of width {wanted}); "
            f"the base {model.path} reads text of width {width}, where it would draw noise; {OTHERS}."
        )


def _check_frames(longest: int, conf: VideoConfig) -> None:
    if conf.free_noise is not None and conf.free_noise > longest:
        raise UserError(
            f"video.free_noise={conf.free_noise}: a window of this motion adapter has {longest} frames at most."
        )
    if conf.free_noise is None and conf.drawn_frames > longest:
        margin = f" (and video.margin={conf.margin} before and after)" if conf.margin else ""
        raise UserError(
            f"video.frames={conf.frames}{margin}: this motion adapter takes {longest} frames at most; "
            "video.free_noise=N draws longer clips, in windows of N frames."
        )


def _each(value: Any, blocks: int) -> list[Any]:
    return [value] * blocks if isinstance(value, int) else list(value)


def load_motion(folder: Path, conf: VideoConfig, dtype: torch.dtype) -> MotionAdapter:
    """The adapter, frozen, on the CPU.

    Raises:
        UserError: weights that lack, or of other shapes than its config.json says.
    """
    motion = read_weights(MotionAdapter, folder, conf.variant, dtype, "video.variant")
    return motion.requires_grad_(False).eval()


def animated(base: Base, motion: MotionAdapter) -> Base:
    """The base with a UNetMotionModel in its UNet's place: its own weights, whatever was put into them, and the
    adapter's. The UNet it had is left as it was; drop it to have its memory back."""
    with quiet_diffusers(), torch.random.fork_rng(devices=[]), torch.device(base.unet.device):
        unet = UNetMotionModel.from_unet2d(base.unet, motion)  # which first draws random weights, faster on a GPU
    return replace(base, unet=unet.requires_grad_(False).eval())


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Without its warnings, where there is nothing to warn of."""
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity)
