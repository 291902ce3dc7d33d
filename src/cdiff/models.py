"""The parts of a base model: found, checked, loaded frozen in the wanted dtype.

A base is a folder (or a hub id) in the layout of Stable Diffusion 1.5: model_index.json, tokenizer/, text_encoder/,
vae/, unet/, scheduler/. The pocket base shipped in the package is such a folder too.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from cdiff import shared
from cdiff.errors import UserError
from cdiff.hub import pinned
from cdiff.schema import ModelConfig

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PART_CLASSES = {
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder": ("CLIPTextModel",),
    "vae": ("AutoencoderKL",),
    "unet": ("UNet2DConditionModel",),
}
PARTS = (*PART_CLASSES, "scheduler")


@dataclass(repr=False)
class Base:
    """A loaded base model: every part frozen, in eval mode, on `device`."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler  # the noise schedule of training; `.config` keeps the base's own keys for samplers
    path: str  # as configured: "pocket", a folder or a hub id
    dtype: torch.dtype  # of every frozen weight
    device: torch.device
    folder: Path | None = None  # where the parts were read from
    revision: str | None = None

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: "epsilon" or "v_prediction"."""
        return self.scheduler.config.prediction_type

    @property
    def latent_factor(self) -> int:
        """Pixels of an image to one latent cell, along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        return self.vae.config.latent_channels


def resolve_device(device: str) -> torch.device:
    """`auto` is the first GPU when there is one, else the CPU.

    Raises:
        UserError: for a device that torch does not know or this machine does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device={device} is not a device: use auto, cpu, cuda or cuda:N.") from error
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UserError(f"device={device}: torch finds no CUDA GPU on this machine; use device=cpu or device=auto.")
        if chosen.index is not None and chosen.index >= count:
            raise UserError(f"device={device}: this machine has {count} GPU(s), numbered from 0.")
    elif chosen.type != "cpu":
        raise UserError(f"device={device} is not supported: use auto, cpu, cuda or cuda:N.")
    return chosen


def resolve_precision(precision: str, device: torch.device | str) -> str:
    """`auto` is bf16 on a GPU that has it, fp16 on an older GPU, fp32 on the CPU. Returns fp32, fp16 or bf16.

    Raises:
        UserError: for a precision that the device lacks.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    has_bf16 = on_gpu and torch.cuda.get_device_capability(device) >= (8, 0)  # emulated below, and slow
    if precision == "auto":
        if not on_gpu:
            return "fp32"
        return "bf16" if has_bf16 else "fp16"
    if precision not in DTYPES:
        raise UserError(f"precision={precision} is not known: use auto, {', '.join(DTYPES)}.")
    if precision == "fp16" and not on_gpu:
        raise UserError("precision=fp16 needs a GPU, and this run is on the CPU: use precision=fp32 (or auto).")
    if precision == "bf16" and on_gpu and not has_bf16:
        name = torch.cuda.get_device_name(device)
        raise UserError(f"precision=bf16: the GPU {name} has no bf16; use precision=fp16 or precision=fp32.")
    return precision


def load_base(conf: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> Base:
    """Load every part of the base model, frozen, in `dtype`, on `device`.

    The jobs of a sweep read the files once: each gets a copy of its own, so that none meets what another has trained.

    Raises:
        UserError: names the part that is missing, broken, of another architecture, or can't be fetched.
    """
    device = torch.device(device)
    folder = find_base(conf)
    key = (conf.path, conf.revision, conf.variant, dtype, _stamp(folder)) if shared.keeping() else ()
    base = shared.get("base", key, lambda: _read_base(conf, folder, dtype))
    # A copy in either case: the last bits of a product on the CPU depend on where in memory its weights begin, and a
    # file's do not begin where torch's own do. So a job of a sweep and a run alone give the same bits.
    base = replace(copy.deepcopy(base) if shared.keeping() or device.type == "cpu" else base, device=device)
    for model in (base.text_encoder, base.vae, base.unet):
        model.to(device)
    return base


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes when a file of the model is exchanged while a sweep runs."""
    files = [(file, file.stat()) for file in sorted(folder.rglob("*")) if file.is_file()]
    return tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in files)


def _read_base(conf: ModelConfig, folder: Path, dtype: torch.dtype) -> Base:
    """The base on the CPU."""
    _check_index(folder, conf.path)
    tokenizer = _load_tokenizer(folder)
    text_encoder = _load_model(CLIPTextModel, folder, "text_encoder", conf, dtype)
    vae = _load_model(AutoencoderKL, folder, "vae", conf, dtype)
    unet = _load_model(UNet2DConditionModel, folder, "unet", conf, dtype)
    scheduler = _load_scheduler(folder)
    _check_fit(folder, tokenizer, text_encoder, vae, unet)
    for model in (text_encoder, vae, unet):
        model.requires_grad_(False).eval()
    cpu = torch.device("cpu")
    return Base(tokenizer, text_encoder, vae, unet, scheduler, conf.path, dtype, cpu, folder, conf.revision)


def find_base(conf: ModelConfig) -> Path:
    """The folder of the base model: the shipped one for "pocket", a folder as it is, else fetched from the hub."""
    if conf.path == "pocket":
        from cdiff.pocket import weights_folder

        return Path(weights_folder("base"))
    folder = Path(conf.path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"model.path={conf.path} is a file; name the folder that holds model_index.json.")
    looks_local = conf.path.startswith((".", "~", os.sep)) or conf.path.count("/") != 1 or "\\" in conf.path
    if looks_local:
        raise UserError(f"model.path={conf.path}: there is no such folder, and it is not a hub id (owner/name).")
    return _fetch(conf)


def _fetch(conf: ModelConfig) -> Path:
    """Download the parts that are used, and nothing else, into the hub's cache."""
    from huggingface_hub import errors, snapshot_download

    what = f"model.path={conf.path}" + (f" at revision {conf.revision}" if conf.revision else "")
    suffix = f".{conf.variant}.safetensors" if conf.variant else ".safetensors"
    patterns = ["model_index.json", "tokenizer/*", "scheduler/*"]
    for part in ("text_encoder", "vae", "unet"):
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        patterns += [f"{part}/config.json", f"{part}/{stem}{suffix}", f"{part}/{stem}*-of-*", f"{part}/*.index*.json"]
    try:
        commit = pinned(conf.path, conf.revision)
        return Path(snapshot_download(conf.path, revision=commit, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise UserError(f"{what} is gated: accept its licence on huggingface.co, then `hf auth login`.") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{what}: no folder, and no public model of this name on the hub; check the name.") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{what}: the hub has the model but not this revision; check model.revision.") from error
    except errors.HFValidationError as error:
        raise UserError(f"{what} is neither a folder nor a hub id (owner/name).") from error
    except Exception as error:  # requests', httpx's and the hub's own network errors share no parent
        raise UserError(
            f"{what}: can't be fetched from the hub ({_first_line(error)}); check the network, or set model.path to a "
            "folder that holds the model (model=pocket needs no network)."
        ) from error


def _check_index(folder: Path, path: str) -> None:
    """model_index.json names the class of each part; only the architecture of SD 1.5 and 2.x is trained here."""
    index = _read_json(folder / "model_index.json", f"model.path={path} is not a pipeline folder: it lacks")
    if (index.get("text_encoder_2") or [None])[0]:
        raise UserError(f"model.path={path} is an SDXL-like model with two text encoders: not supported.")
    for part, known in PART_CLASSES.items():
        name = (index.get(part) or [None, None])[1]
        if name is not None and name not in known:
            raise UserError(f"model.path={path}: its {part} is a {name}, and cdiff trains {known[0]} only.")
    for part in PARTS:
        if not (folder / part).is_dir():
            raise UserError(f"model.path={path}: the part {part}/ is missing from {folder}.")


def _load_tokenizer(folder: Path) -> CLIPTokenizer:
    part = folder / "tokenizer"
    has_files = (part / "tokenizer.json").is_file() or all((part / n).is_file() for n in ("vocab.json", "merges.txt"))
    if not has_files:  # CLIPTokenizer would silently start with three words
        raise UserError(f"{part} lacks the vocabulary: vocab.json and merges.txt, or tokenizer.json.")
    try:
        return CLIPTokenizer.from_pretrained(part, local_files_only=True)
    except Exception as error:  # the Rust tokenizer raises bare Exception
        raise UserError(f"{part} can't be read as a CLIP tokenizer: {_first_line(error)}.") from error


def _load_model(cls: type, folder: Path, part: str, conf: ModelConfig, dtype: torch.dtype) -> nn.Module:
    """Load one part from safetensors; weights that the files do not hold are an error, never random numbers."""
    _read_json(folder / part / "config.json", f"the part {part}/ lacks")
    if not any((folder / part).glob("*.safetensors")):
        other = any((folder / part).glob("*.bin"))
        what = "only pickled .bin weights; convert them to safetensors" if other else "no weights (*.safetensors)"
        raise UserError(f"{folder / part} holds {what}.")
    try:
        with no_progress_bar():
            model, info = cls.from_pretrained(
                folder,
                subfolder=part,
                variant=conf.variant,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # safetensors, diffusers and transformers raise different families
        raise UserError(f"{folder / part} can't be loaded as {cls.__name__}: {_first_line(error)}.") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(f"{folder / part} lacks {len(missing)} weights of its {cls.__name__}, first {missing[0]}.")
    mismatched = [key[0] for key in info.get("mismatched_keys") or []]
    if mismatched:
        raise UserError(f"{folder / part}: {mismatched[0]} has a shape that its config.json does not say.")
    return model


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """transformers shows a bar for each file, even one of a few megabytes."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _load_scheduler(folder: Path) -> DDPMScheduler:
    config = _read_json(folder / "scheduler" / "scheduler_config.json", "the part scheduler/ lacks")
    scheduler = DDPMScheduler.from_config(config)
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(
            f"{folder / 'scheduler'}: prediction_type {scheduler.config.prediction_type} is not supported; "
            "epsilon and v_prediction are."
        )
    return scheduler


def _check_fit(folder: Path, tokenizer, text_encoder, vae, unet) -> None:
    """The parts must belong together: vocabulary, text width and latent channels."""
    rows = text_encoder.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(f"{folder}: the tokenizer has {len(tokenizer)} words, the text encoder {rows} embeddings.")
    width = text_encoder.config.hidden_size
    if unet.config.cross_attention_dim != width:
        raise UserError(
            f"{folder}: the UNet reads text of width {unet.config.cross_attention_dim}, the text encoder gives {width}."
        )
    if unet.config.in_channels != vae.config.latent_channels:
        raise UserError(
            f"{folder}: the UNet takes {unet.config.in_channels} channels and the VAE makes "
            f"{vae.config.latent_channels} (an inpainting model?); use a text-to-image base."
        )


def _read_json(path: Path, lacks: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{lacks} {path.name} ({path}).")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold one JSON object.")
    return found


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
