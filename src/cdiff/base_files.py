"""Where the files of a base model come from: the package, a folder, a single-file checkpoint or the hub."""

from __future__ import annotations

import os
from pathlib import Path

from cdiff.errors import UserError
from cdiff.hub import pinned
from cdiff.schema import ModelConfig

WEIGHTS = {  # part -> the stem of its weight file
    "text_encoder": "model",
    "text_encoder_2": "model",
    "vae": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
}


def find_base(conf: ModelConfig) -> Path:
    """The folder of the base model: the shipped one for "pocket", a folder as it is, a checkpoint file unpacked, else
    fetched from the hub.

    Raises:
        UserError: there is no such folder, file or model, or it can't be fetched.
    """
    if conf.path == "pocket":
        from cdiff.pocket import weights_folder

        return Path(weights_folder("base"))
    path = Path(conf.path).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        from cdiff.single_file import unpacked

        return unpacked(path, conf.config)
    looks_local = conf.path.startswith((".", "~", os.sep)) or conf.path.count("/") != 1 or "\\" in conf.path
    if looks_local or conf.path.endswith((".safetensors", ".ckpt")):
        raise UserError(f"model.path={conf.path}: there is no such folder, and it is not a hub id (owner/name).")
    return _fetch(conf)


def _fetch(conf: ModelConfig) -> Path:
    """Download the parts that are used, and nothing else, into the hub's cache."""
    from huggingface_hub import errors, snapshot_download

    what = f"model.path={conf.path}" + (f" at revision {conf.revision}" if conf.revision else "")
    try:
        commit = pinned(conf.path, conf.revision)
        return Path(snapshot_download(conf.path, revision=commit, allow_patterns=_patterns(conf.variant)))
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
            f"{what}: can't be fetched from the hub ({first_line(error)}); check the network, or set model.path to a "
            "folder that holds the model (model=pocket needs no network)."
        ) from error


def _patterns(variant: str | None) -> list[str]:
    """The files of a pipeline that are read: configurations, vocabularies, and one kind of weights."""
    suffix = f".{variant}.safetensors" if variant else ".safetensors"
    patterns = ["model_index.json", "tokenizer/*", "tokenizer_2/*", "scheduler/*"]
    for part, stem in WEIGHTS.items():
        patterns += [f"{part}/config.json", f"{part}/{stem}{suffix}", f"{part}/{stem}*-of-*", f"{part}/*.index*.json"]
    return patterns


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without its full stop."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def root_line(error: BaseException) -> str:
    """`first_line`, and behind it that of the error it all began with (a full disk, too many open files)."""
    root = error
    while root.__cause__ or root.__context__:
        root = root.__cause__ or root.__context__
    return first_line(error) if root is error else f"{first_line(error)} ({first_line(root)})"
