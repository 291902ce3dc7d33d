"""A metric's model, found and read: a folder, a hub id, or "pocket" for the one shipped in the package."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from cdiff.errors import UserError
from cdiff.hub import pinned
from cdiff.models import no_progress_bar

SHIPPED = {"clip": "clip", "dino": "identity", "blip": "blip", "probe": "probe"}  # setting -> folder of the weights
KINDS = {"clip": "a CLIP model", "dino": "a ViT", "blip": "a BLIP or BLIP-2 model", "probe": "a ResNet classifier"}
TYPES = {"clip": ("clip",), "dino": ("vit",), "blip": ("blip", "blip-2"), "probe": ("resnet",)}


def find_model(setting: str, source: str) -> Path:
    """The folder of `metrics.SETTING=source`, with a config.json of the right kind of model.

    Raises:
        UserError: no such folder, no such model on the hub, or a model of another kind.
    """
    if source == "pocket":
        from cdiff.pocket import weights_folder

        folder = Path(weights_folder(SHIPPED[setting]))
    else:
        folder = Path(source).expanduser()
        if folder.is_file():
            raise UserError(f"metrics.{setting}={source} is a file; name the folder that holds config.json.")
        if not folder.is_dir():
            folder = _fetch(setting, source)
    kind = str(read_config(folder, setting, source).get("model_type"))
    if kind not in TYPES[setting]:
        raise UserError(f"metrics.{setting}={source} is a model of the type '{kind}', and {KINDS[setting]} is needed.")
    return folder


def read_config(folder: Path, setting: str, source: str) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"metrics.{setting}={source} is no model folder: it has no config.json ({folder}).")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is not readable JSON: {error}.") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} is not a model's configuration.")
    return config


def load_model(
    cls: type, folder: Path, dtype: torch.dtype, device: torch.device, unused: tuple[str, ...] = (), **options: Any
) -> nn.Module:
    """The model, frozen, in eval mode. Weights that the files lack are an error, but for those named `unused...`.

    Raises:
        UserError: broken files, missing weights, shapes that config.json does not say.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it lists weights that are not used; those that lack are told below
    try:
        with no_progress_bar():
            model, info = cls.from_pretrained(
                folder, dtype=dtype, local_files_only=True, output_loading_info=True, **options
            )
    except Exception as error:  # safetensors, torch and transformers raise different families
        raise UserError(f"{folder} can't be loaded as {cls.__name__}: {_first_line(error)}.") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(unused or ("\n",)))
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} weights of a {cls.__name__}, first {missing[0]}.")
    if mismatched := [key[0] for key in info.get("mismatched_keys") or []]:
        raise UserError(f"{folder}: {mismatched[0]} has a shape that its config.json does not say.")
    return model.requires_grad_(False).eval().to(device)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
        raise UserError(f"{folder} lacks the tokenizer's vocabulary: tokenizer.json, vocab.json or vocab.txt.")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust tokenizer raises bare Exception
        raise UserError(f"{folder} can't be read as a tokenizer: {_first_line(error)}.") from error


def fingerprint(folder: Path) -> str:
    """Changes with any byte of the model's weights or configuration."""
    files = {*folder.glob("*config.json"), *folder.glob("*.safetensors")}
    for index in folder.glob("*.index.json"):
        files |= {folder / name for name in json.loads(index.read_text())["weight_map"].values()}
    if not any(file.suffix == ".safetensors" for file in files):
        files |= set(folder.glob("*.bin"))
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _fetch(setting: str, source: str) -> Path:
    """Download what is used into the hub's cache: safetensors, or where there are none torch's own format."""
    from huggingface_hub import errors, snapshot_download

    if source.startswith((".", "~", "/")) or source.count("/") != 1 or "\\" in source:
        raise UserError(f"metrics.{setting}={source}: there is no such folder, and it is not a hub id (owner/name).")
    try:
        commit = pinned(source)
        for weights in ("*.safetensors", "*.bin"):
            patterns = ["*.json", "*.txt", weights]
            left_out = ["*/*", "tf_*", "flax_*"]
            folder = Path(snapshot_download(source, revision=commit, allow_patterns=patterns, ignore_patterns=left_out))
            if any(folder.glob(weights)):
                break
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"metrics.{setting}={source}: no such folder, and no public model on the hub.") from error
    except Exception as error:  # httpx's and the hub's own network errors share no parent
        raise UserError(
            f"metrics.{setting}={source}: can't be fetched from the hub ({_first_line(error)}); check the network, or "
            f"name a folder that holds the model, or leave it out by metrics.names=[...]."
        ) from error
    return folder


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
