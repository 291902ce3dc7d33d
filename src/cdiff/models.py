"""The parts of a base model: checked, loaded frozen in the wanted dtype.

A base is a folder (or a hub id, or a single-file checkpoint: base_files) in the layout of Stable Diffusion 1.x and 2.x:
model_index.json, tokenizer/, text_encoder/, vae/, unet/, scheduler/; of SDXL with tokenizer_2/ and text_encoder_2/ too.
The pocket base shipped in the package is such a folder.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from cdiff import shared
from cdiff.base_files import find_base, first_line, root_line
from cdiff.devices import DTYPES, numbered, resolve_device, resolve_precision
from cdiff.errors import UserError
from cdiff.fused.fusing import fuse, try_kernels
from cdiff.schema import ModelConfig
from cdiff.weights import place, read_ahead, stored_dtype

CPU = torch.device("cpu")
PART_CLASSES = {
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder": ("CLIPTextModel",),
    "vae": ("AutoencoderKL",),
    "unet": ("UNet2DConditionModel",),
}
XL_CLASSES = {
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}


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
    tokenizer_2: CLIPTokenizer | None = None  # SDXL
    text_encoder_2: CLIPTextModelWithProjection | None = None  # SDXL
    zero_empty_prompt: bool = False  # SDXL: guidance without a negative prompt is from zeros, not from ""

    @property
    def is_sdxl(self) -> bool:
        """Two text encoders, a pooled text feature, and a UNet that is told the picture's size and crop."""
        return self.text_encoder_2 is not None

    @property
    def encoders(self) -> list[tuple[CLIPTokenizer, nn.Module]]:
        """Each text encoder with its tokenizer. A token's vector is the rows of all of them, one after the other."""
        second = [(self.tokenizer_2, self.text_encoder_2)] if self.is_sdxl else []
        return [(self.tokenizer, self.text_encoder), *second]

    @property
    def token_widths(self) -> list[int]:
        """The width of a token's row in each text encoder."""
        return [model.get_input_embeddings().weight.shape[1] for _, model in self.encoders]

    def models(self) -> list[nn.Module]:
        """Every part that has weights."""
        return [*(model for _, model in self.encoders), self.unet, self.vae]

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


def load_base(conf: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> Base:
    """Load every part of the base model, frozen, in `dtype`, on `device`.

    The jobs of a sweep read the files once: each gets a copy of its own, so that none meets what another has trained.
    SDXL's VAE overflows in fp16 where its config says so (force_upcast): it is then loaded in fp32.

    Raises:
        UserError: names the part that is missing, broken, of another architecture, or can't be fetched.
    """
    device = torch.device(device)
    folder = find_base(conf)
    half = device.type == "cuda" and dtype != torch.float32
    channels_last = half if conf.channels_last is None else conf.channels_last
    fused = half and channels_last if conf.fused is None else conf.fused
    tried = try_kernels(numbered(device)) if fused else None  # while the weights are read
    if shared.keeping():
        key = (conf.path, conf.revision, conf.variant, dtype, _stamp(folder))
        base = shared.get("base", key, lambda: _read_base(conf, folder, dtype, torch.device("cpu")))
        base = replace(copy.deepcopy(base), device=device)
        for model in base.models():
            model.to(device)
    else:
        base = _read_base(conf, folder, dtype, device)
    if channels_last:
        for model in (base.unet, base.vae):
            model.to(memory_format=torch.channels_last)
    if fused:
        fuse(*base.models(), tried=tried)
    return base


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes when a file of the model is exchanged while a sweep runs."""
    files = [(file, file.stat()) for file in sorted(folder.rglob("*")) if file.is_file()]
    return tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in files)


def _read_base(conf: ModelConfig, folder: Path, dtype: torch.dtype, device: torch.device) -> Base:
    """The base on the device."""
    index = _check_index(folder, conf.path)
    is_sdxl = _is_sdxl(index)
    read_ahead(folder)
    upcast = is_sdxl and dtype == torch.float16 and _forces_upcast(folder)
    vae = _load_model(AutoencoderKL, folder, "vae", conf, torch.float32 if upcast else dtype, device)
    base = Base(
        tokenizer=_load_tokenizer(folder, "tokenizer"),
        text_encoder=_load_model(CLIPTextModel, folder, "text_encoder", conf, dtype, device),
        vae=vae,
        unet=_load_model(UNet2DConditionModel, folder, "unet", conf, dtype, device),
        scheduler=_load_scheduler(folder),
        path=conf.path,
        dtype=dtype,
        device=device,
        folder=folder,
        revision=conf.revision,
    )
    if is_sdxl:
        base.tokenizer_2 = _load_tokenizer(folder, "tokenizer_2")
        base.text_encoder_2 = _load_model(CLIPTextModelWithProjection, folder, "text_encoder_2", conf, dtype, device)
        base.zero_empty_prompt = bool(index.get("force_zeros_for_empty_prompt", True))
        _pool_at_end(base)
    _check_fit(folder, base)
    for model in base.models():
        model.requires_grad_(False).eval()
    return base


def base_of(pipe: Any) -> Base:
    """The parts of a stock pipeline as a Base, shared with it, so that what is put into one is in the other.

    Raises:
        UserError: no StableDiffusionPipeline, or one with other parts (a LoRA loaded by diffusers renames its layers).
    """
    parts = {part: getattr(pipe, part, None) for part in (*PART_CLASSES, "scheduler")}
    for part, known in PART_CLASSES.items():
        if type(parts[part]).__name__ not in known:
            kind = type(pipe).__name__
            raise UserError(f"the {part} of this {kind} is a {type(parts[part]).__name__}; cdiff knows {known[0]}.")
    unet = pipe.unet
    scheduler = DDPMScheduler.from_config(parts.pop("scheduler").config)
    base = Base(**parts, scheduler=scheduler, path="the pipeline", dtype=unet.dtype, device=unet.device)
    if getattr(pipe, "text_encoder_2", None) is not None:
        base.tokenizer_2, base.text_encoder_2 = pipe.tokenizer_2, pipe.text_encoder_2
        _pool_at_end(base)
    return base


def _is_sdxl(index: dict[str, Any]) -> bool:
    return bool((index.get("text_encoder_2") or [None])[0])


def _pool_at_end(base: Base) -> None:
    """SDXL's text config says eos_token_id 2, which makes transformers pool at the largest token id: with a new token
    in the prompt at that token, before the class word. ComfyUI and A1111 pool at the end-of-text token; so do we, and
    what is saved says so. Prompts without a new token are pooled where they were."""
    eos = base.tokenizer_2.eos_token_id
    base.text_encoder_2.config.eos_token_id = eos
    base.text_encoder_2.text_model.config.eos_token_id = eos
    base.text_encoder_2.text_model.eos_token_id = eos


def _check_index(folder: Path, path: str) -> dict[str, Any]:
    """model_index.json names the class of each part; the architectures of SD 1.x, 2.x and XL are trained here."""
    index = read_json(folder / "model_index.json", f"model.path={path} is not a pipeline folder: it lacks")
    classes = PART_CLASSES | (XL_CLASSES if _is_sdxl(index) else {})
    if _is_sdxl(index) and not (index.get("text_encoder") or [None])[0]:
        raise UserError(f"model.path={path} has the second text encoder alone (the SDXL refiner): use the SDXL base.")
    if (index.get("text_encoder_3") or [None])[0] or (index.get("transformer") or [None])[0]:
        raise UserError(
            f"model.path={path} is a {index.get('_class_name')}: cdiff trains Stable Diffusion 1.x, 2.x, XL."
        )
    for part, known in classes.items():
        name = (index.get(part) or [None, None])[1]
        if name is not None and name not in known:
            raise UserError(f"model.path={path}: its {part} is a {name}, and cdiff trains {known[0]} only.")
    for part in (*classes, "scheduler"):
        if not (folder / part).is_dir():
            raise UserError(f"model.path={path}: the part {part}/ is missing from {folder}.")
    return index


def _load_tokenizer(folder: Path, name: str) -> CLIPTokenizer:
    part = folder / name
    has_files = (part / "tokenizer.json").is_file() or all((part / n).is_file() for n in ("vocab.json", "merges.txt"))
    if not has_files:  # CLIPTokenizer would silently start with three words
        raise UserError(f"{part} lacks the vocabulary: vocab.json and merges.txt, or tokenizer.json.")
    try:
        return CLIPTokenizer.from_pretrained(part, local_files_only=True)
    except Exception as error:  # the Rust tokenizer raises bare Exception
        raise UserError(f"{part} can't be read as a CLIP tokenizer: {first_line(error)}.") from error


def _forces_upcast(folder: Path) -> bool:
    return bool(read_json(folder / "vae" / "config.json", "the part vae/ lacks").get("force_upcast", True))


def _load_model(
    cls: type, folder: Path, part: str, conf: ModelConfig, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """Load one part from safetensors; weights that the files do not hold are an error, never random numbers."""
    read_json(folder / part / "config.json", f"the part {part}/ lacks")
    return read_weights(cls, folder / part, conf.variant, dtype, "model.variant", device)


def read_weights(
    cls: type, folder: Path, variant: str | None, dtype: torch.dtype, setting: str, device: torch.device = CPU
) -> nn.Module:
    """A model from the safetensors of a folder; `setting` is the name of the one that chose the variant.

    Raises:
        UserError: files that are missing or broken, weights that lack, shapes that config.json does not say.
    """
    if not any(folder.glob("*.safetensors")):
        other = any(folder.glob("*.bin"))
        what = "only pickled .bin weights; convert them to safetensors" if other else "no weights (*.safetensors)"
        raise UserError(f"{folder} holds {what}.")
    if variant and not any(folder.glob(f"*.{variant}*.safetensors")):
        raise UserError(f"{folder} holds no {variant} weights: say {setting}=null.")
    read_as = dtype if device.type == "cpu" else stored_dtype(folder, variant) or dtype
    try:
        with no_progress_bar():
            model, info = cls.from_pretrained(
                folder,
                variant=variant,
                dtype=read_as,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # safetensors, diffusers and transformers raise different families
        raise UserError(f"{folder} can't be loaded as {cls.__name__}: {root_line(error)}.") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} weights of its {cls.__name__}, first {missing[0]}.")
    mismatched = [key[0] for key in info.get("mismatched_keys") or []]
    if mismatched:
        raise UserError(f"{folder}: {mismatched[0]} has a shape that its config.json does not say.")
    if device.type != "cpu":
        place(model, device, dtype)
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
    config = read_json(folder / "scheduler" / "scheduler_config.json", "the part scheduler/ lacks")
    scheduler = DDPMScheduler.from_config(config)
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(
            f"{folder / 'scheduler'}: prediction_type {scheduler.config.prediction_type} is not supported; "
            "epsilon and v_prediction are."
        )
    return scheduler


def _check_fit(folder: Path, base: Base) -> None:
    """The parts must belong together: vocabulary, text width, latent channels, and of SDXL the pooled text's width."""
    unet, vae = base.unet, base.vae
    for tokenizer, text_encoder in base.encoders:
        rows = text_encoder.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > rows:
            raise UserError(f"{folder}: the tokenizer has {len(tokenizer)} words, the text encoder {rows} embeddings.")
    width = sum(base.token_widths)
    if unet.config.cross_attention_dim != width:
        raise UserError(
            f"{folder}: the UNet reads text of width {unet.config.cross_attention_dim}, the text encoder gives {width}."
        )
    if unet.config.in_channels != vae.config.latent_channels:
        raise UserError(
            f"{folder}: the UNet takes {unet.config.in_channels} channels and the VAE makes "
            f"{vae.config.latent_channels} (an inpainting model?); use a text-to-image base."
        )
    if base.is_sdxl:
        _check_conditions(folder, base)


def _check_conditions(folder: Path, base: Base) -> None:
    """SDXL's UNet takes the pooled text and six numbers of size and crop."""
    config, pooled = base.unet.config, base.text_encoder_2.config.projection_dim
    wanted = config.projection_class_embeddings_input_dim
    given = 6 * (config.addition_time_embed_dim or 0) + pooled
    if config.addition_embed_type != "text_time" or wanted != given:
        raise UserError(f"{folder}: the UNet takes {wanted} numbers of pooled text, size and crop; SDXL gives {given}.")


def read_json(path: Path, lacks: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{lacks} {path.name} ({path}).")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold one JSON object.")
    return found


__all__ = [
    "DTYPES",
    "Base",
    "base_of",
    "find_base",
    "load_base",
    "no_progress_bar",
    "read_json",
    "read_weights",
    "resolve_device",
    "resolve_precision",
]
