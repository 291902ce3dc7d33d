"""Reading an adapter: ours, diffusers' or the release's; what is not understood is an error, never left out."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as safetensors_load
from torch import Tensor

from cdiff.adapter.formats import (
    FILES,
    FORMAT,
    INFO_FILE,
    LORA_FILE,
    LORA_KEY,
    TEXT_FILE,
    TOKEN_PARTS,
    WHOLE_UNET_FILE,
    Adapter,
    check_token_name,
    lora_tensors,
    parameter_name,
)
from cdiff.errors import UserError
from cdiff.storage import inside, read_json

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_adapter(path: Path | str) -> Adapter:
    """Read an adapter folder (ours, diffusers' or the release's), or one file of UNet weights or of a token.

    Raises:
        UserError: names the file or tensor that is missing, damaged, unsafe or unknown.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return _read_file(path)
    if not path.is_dir():
        raise UserError(f"there is no adapter at {path}.")
    if not (path / INFO_FILE).is_file() and (path / "adapter" / INFO_FILE).is_file():
        path = path / "adapter"  # a run folder was named
    info = _read_info(path)
    adapter = Adapter({}, {}, info, path)
    weights = _unet_file(path)
    if weights:
        found = _read_file(weights)
        _refuse(weights, found.tokens, "is no Custom Diffusion weight")
        adapter.unet, adapter.kind = found.unet, found.kind
    text = _either(path, TEXT_FILE)
    if text:
        adapter.text_encoder = _read_file(text).text_encoder
    for file in _token_files(path, info):
        found = _read_file(file)
        _refuse(file, found.unet, "is no token")
        adapter.tokens.update(found.tokens)
    _check_whole(adapter)
    return adapter


def _read_info(folder: Path) -> dict[str, Any]:
    file = folder / INFO_FILE
    if not file.is_file():
        return {}
    info = read_json(file)
    if not isinstance(info, dict):
        raise UserError(f"{file} must hold one JSON object.")
    if info.get("format", FORMAT) != FORMAT:
        raise UserError(f"{file} has format {info['format']}, and this cdiff reads format {FORMAT}: update cdiff.")
    _check_info(info, file)
    return info


def _check_info(info: dict[str, Any], file: Path) -> None:
    """What is read of adapter.json elsewhere has the types that it is read with."""
    tokens, concepts = info.get("tokens", []), info.get("concepts", [])
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise UserError(f"{file}: tokens must be a list of texts.")
    if not isinstance(concepts, list) or not all(
        isinstance(concept, dict) and all(isinstance(concept.get(key), str) for key in ("token", "class_word"))
        for concept in concepts
    ):
        raise UserError(f"{file}: concepts must be a list that gives each one's token and class_word.")
    for key in ("base_model", "revision", "method"):
        if not isinstance(info.get(key), str | None):
            raise UserError(f"{file}: {key} must be a text.")


def _either(folder: Path, stem: str) -> Path | None:
    """STEM.safetensors, or STEM.bin where there is no such file."""
    file = next((p for p in (folder / f"{stem}.safetensors", folder / f"{stem}.bin") if p.is_file()), None)
    if file is not None and not inside(file, folder):
        raise UserError(f"{file} is a link to {file.resolve()}, outside of the adapter's folder: it was not opened.")
    return file


def _unet_file(folder: Path) -> Path | None:
    """The one file of UNet weights."""
    files = [file for stem in FILES.values() if (file := _either(folder, stem))]
    if len(files) > 1:
        raise UserError(f"{folder} holds two adapters, {files[0].name} and {files[1].name}: name the file you want.")
    return files[0] if files else None


def _token_files(folder: Path, info: Mapping[str, Any]) -> list[Path]:
    """The files of the tokens that adapter.json lists; without a list, every `<...>` file of the folder."""
    if "tokens" not in info:
        stems = sorted({p.stem for p in folder.glob("<*>.*") if p.suffix in (".safetensors", ".bin")})
        return [_either(folder, stem) for stem in stems]
    files = []
    for token in info["tokens"]:
        check_token_name(str(token))
        file = _either(folder, str(token))
        if file is None:
            raise UserError(f"{folder} lacks {token}.safetensors, which its {INFO_FILE} lists.")
        files.append(file)
    return files


def _check_whole(adapter: Adapter) -> None:
    if not adapter.unet and not adapter.tokens:
        names = ", ".join(f"{stem}.safetensors" for stem in FILES.values())
        raise UserError(f"{adapter.path} holds no adapter: neither {names} nor a token file.")
    for part, tensors in (("unet", adapter.unet), ("text_encoder", adapter.text_encoder)):
        expected = adapter.info.get(f"{part}_tensors", len(tensors))
        if expected != len(tensors):
            name = {"unet": "UNet", "text_encoder": "text encoder"}[part]
            raise UserError(f"{adapter.path} holds {len(tensors)} {name} tensors; its {INFO_FILE} says {expected}.")
    for token in adapter.info.get("tokens", []):
        if token not in adapter.tokens:
            raise UserError(f"{adapter.path}: the file of {token} holds another token.")


def read_tensors(path: Path) -> dict[str, Any]:
    """The mapping a weight file holds. The format is told by content: the release names safetensors bytes `.bin`.

    Pickles are opened with `weights_only=True`: tensors and plain containers, no code.
    """
    head = _head(path, 9)
    if not head:
        raise UserError(f"{path} is empty.")
    try:
        if head[8:9] == b"{":  # eight bytes of header length, then JSON
            return safetensors_load(path.read_bytes())
        _check_archive(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is damaged, or holds more than tensors; it was not opened.") from error
    except Exception as error:  # a pickle's opcodes raise whatever they like
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"{path} is damaged, or is no file of weights: {reason}.") from error
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise UserError(f"{path} holds a {type(tensors).__name__}, not named tensors.")
    return tensors


def _check_archive(path: Path) -> None:
    """torch stores tensors as they are: a zip that grows when it is opened, or leaves its folder, is not torch's."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    for entry in entries:
        if entry.filename.startswith(("/", "\\")) or ".." in entry.filename.replace("\\", "/").split("/"):
            raise UserError(f"{path} holds {entry.filename!r}, which points outside of it: it was not opened.")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise UserError(f"{path} is a compressed archive, and no file of weights: it was not opened.")


def _head(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from error


def _read_file(path: Path) -> Adapter:
    """One file's tensors, told apart: UNet weights of some kind, the text encoder's, or tokens.

    Whole models are told by the file's name (their tensors may be called anything), the rest by the tensors' names.
    """
    content = _finite_tensors(read_tensors(path), path)
    if path.stem == WHOLE_UNET_FILE:
        return Adapter(content, {}, {}, path, kind="full")
    if path.stem == TEXT_FILE:
        return Adapter({}, {}, {}, path, text_encoder=content)
    if path.stem == LORA_FILE or any(LORA_KEY.fullmatch(name) for name in content):
        return Adapter(lora_tensors(content, path, _lora_alphas(path)), {}, {}, path, kind="lora")
    return _sort_tensors(content, path)


def _finite_tensors(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    tensors = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and not value:
            continue  # diffusers notes layers without weights (every attn1) as an empty dict
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name} is a {type(value).__name__}, not a tensor.")
        if value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{path}: {name} claims more numbers than the file holds.")
        if value.dtype not in DTYPES or not bool(torch.isfinite(value).all()):
            raise UserError(f"{path}: {name} holds values that are not finite numbers (it is {value.dtype}).")
        tensors[name] = value
    return tensors


def _sort_tensors(content: Mapping[str, Tensor], path: Path) -> Adapter:
    """Tell Custom Diffusion weights from token vectors; anything else is an error."""
    adapter = Adapter({}, {}, {}, path)
    if set(content) == set(TOKEN_PARTS) and all(value.ndim == 1 or len(value) == 1 for value in content.values()):
        check_token_name(path.stem)
        adapter.tokens[path.stem] = torch.cat([content[name].reshape(-1) for name in TOKEN_PARTS])
        return adapter
    for name, value in content.items():
        if parameter_name(name):
            adapter.unet[name] = value
        elif value.ndim == 1 or (value.ndim == 2 and value.shape[0] == 1):
            check_token_name(name)
            adapter.tokens[name] = value.reshape(-1)
        else:
            shape = tuple(value.shape)
            raise UserError(f"{path}: the tensor {name} {shape} is neither a Custom Diffusion weight nor a token.")
    if adapter.unet:  # in such a file, a lone vector is a stray weight
        _refuse(path, adapter.tokens, "is no Custom Diffusion weight")
    return adapter


def _lora_alphas(path: Path) -> dict[str, float]:
    """Alpha by layer, "" for all, where diffusers noted it in the metadata of a safetensors file."""
    head = _head(path, 8)
    size = int.from_bytes(head, "little")
    if size > path.stat().st_size:
        return {}  # a pickle
    try:
        noted = json.loads(_head(path, 8 + size)[8:]).get("__metadata__", {}).get("lora_adapter_metadata", "{}")
        metadata = json.loads(noted)
        found = {str(layer): float(alpha) for layer, alpha in (metadata.get("unet.alpha_pattern") or {}).items()}
        if metadata.get("unet.lora_alpha") is not None:
            found[""] = float(metadata["unet.lora_alpha"])
    except (ValueError, AttributeError, TypeError, RecursionError):
        return {}
    return found


def _refuse(path: Path, tensors: Mapping[str, Tensor], why: str) -> None:
    for name in tensors:
        raise UserError(f"{path}: the tensor {name} {why}.")
