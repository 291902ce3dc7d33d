"""The adapter on disk: what a run trained, written whole or not at all, read exactly or not at all.

    adapter/pytorch_custom_diffusion_weights.safetensors   cross-attention weights, diffusers' Custom Diffusion names
    adapter/<new1>.safetensors                             one a token, the textual-inversion format {token: vector}
    adapter/adapter.json                                   base model, tokens, class words, method, versions

Weights go straight into `attn2.to_k/to_v`: diffusers' own `load_attn_procs` leaves these weights out without a word.
Also read: the `.bin` files of diffusers and of the ClassDiffusion release, some of which hold safetensors bytes.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save_file
from torch import Tensor, nn

from cdiff.errors import UserError

if TYPE_CHECKING:
    from cdiff.models import Base

UNET_FILE = "pytorch_custom_diffusion_weights"
INFO_FILE = "adapter.json"
FORMAT = 1
KEY = re.compile(r"(?P<layer>.+\.attn[12])\.processor\.(?P<tensor>to_\w+_custom_diffusion\.(?:0\.)?(?:weight|bias))")


@dataclass
class Adapter:
    """What an adapter holds, on the CPU. `unet` has diffusers' names; `tokens` maps "<new1>" to its vector (D,)."""

    unet: dict[str, Tensor]
    tokens: dict[str, Tensor]
    info: dict[str, Any] = field(default_factory=dict)  # adapter.json; empty for foreign files
    path: Path | None = None


# ---- names ----


def adapter_name(parameter: str) -> str:
    """`<layer>.attn2.to_k.weight` -> `<layer>.attn2.processor.to_k_custom_diffusion.weight`; to_out.0 likewise."""
    layer, part, rest = re.fullmatch(r"(.+\.attn2)\.(to_q|to_k|to_v|to_out)\.(.+)", parameter).groups()
    return f"{layer}.processor.{part}_custom_diffusion.{rest}"


def parameter_name(name: str) -> str | None:
    """The UNet parameter that a tensor of an adapter stands for; None when the name is not of that form."""
    found = KEY.fullmatch(name)
    return f"{found['layer']}.{found['tensor'].replace('_custom_diffusion', '')}" if found else None


def check_token_name(token: str) -> None:
    """A token names a file: refuse whatever could leave the folder or break a name."""
    if not token or len(token) > 100 or re.search(r"[/\\\s\x00-\x1f:]|\.\.", token) or token.startswith("."):
        raise UserError(
            f"{token!r} can't be a token: 1-100 characters without slash, colon, space, '..' or leading dot."
        )


# ---- writing ----


def save_adapter(
    folder: Path | str,
    unet_weights: Mapping[str, Tensor],
    token_rows: Mapping[str, Tensor],
    info: Mapping[str, Any],
) -> Path:
    """Write an adapter folder: all of it or nothing. An adapter already there is replaced at the end.

    unet_weights: diffusers' names (Trainables.unet_state); may be empty. token_rows: {"<new1>": (D,)}. info: JSON
    values for adapter.json (base model, method, concepts with their class words); tokens and versions are added.
    Tensors keep their dtype.

    Raises:
        UserError: the place can't be written, or a token can't name a file.
    """
    folder = Path(folder)
    for token in token_rows:
        check_token_name(token)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent))
    except OSError as error:
        raise UserError(f"the adapter can't be written to {folder}: {error.strerror or error}.") from error
    try:
        _write_files(partial, unet_weights, token_rows, info)
        _put_in_place(partial, folder)
    except OSError as error:
        raise UserError(f"the adapter can't be written to {folder}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_files(folder: Path, unet: Mapping[str, Tensor], tokens: Mapping[str, Tensor], info: Mapping) -> None:
    os.chmod(folder, 0o777 & ~_umask())  # mkdtemp makes it private
    if unet:
        save_file(_plain(unet), folder / f"{UNET_FILE}.safetensors")
    for token, vector in tokens.items():
        save_file(_plain({token: vector.reshape(-1)}), folder / f"{token}.safetensors")
    content = {
        "format": FORMAT,
        **info,
        "tokens": list(tokens),
        "unet_tensors": len(unet),
        "versions": {**_versions(), **info.get("versions", {})},
    }
    (folder / INFO_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        _fsync(path)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _put_in_place(partial: Path, folder: Path) -> None:
    """Rename the finished folder to its name; a rename can't replace a full folder, so an old one steps aside."""
    old = partial.with_suffix(".old")
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(partial, folder)
    except BaseException:
        if old.exists():
            os.rename(old, folder)
        raise
    _fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for package in ("cdiff", "torch", "diffusers", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


# ---- reading ----


def load_adapter(path: Path | str) -> Adapter:
    """Read an adapter folder (ours, diffusers' or the release's), or one file of UNet weights or of a token.

    Raises:
        UserError: names the file or tensor that is missing, damaged, unsafe or unknown.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return _sort_tensors(read_tensors(path), path)
    if not path.is_dir():
        raise UserError(f"there is no adapter at {path}.")
    if not (path / INFO_FILE).is_file() and (path / "adapter" / INFO_FILE).is_file():
        path = path / "adapter"  # a run folder was named
    info = _read_info(path)
    adapter = Adapter({}, {}, info, path)
    weights = _either(path, UNET_FILE)
    if weights:
        found = _sort_tensors(read_tensors(weights), weights)
        _refuse(weights, found.tokens, "is no Custom Diffusion weight")
        adapter.unet = found.unet
    for file in _token_files(path, info):
        found = _sort_tensors(read_tensors(file), file)
        _refuse(file, found.unet, "is no token")
        adapter.tokens.update(found.tokens)
    _check_whole(adapter)
    return adapter


def _read_info(folder: Path) -> dict[str, Any]:
    file = folder / INFO_FILE
    if not file.is_file():
        return {}
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not readable JSON: {error}.") from error
    if not isinstance(info, dict):
        raise UserError(f"{file} must hold one JSON object.")
    if info.get("format", FORMAT) != FORMAT:
        raise UserError(f"{file} has format {info['format']}, and this cdiff reads format {FORMAT}: update cdiff.")
    return info


def _either(folder: Path, stem: str) -> Path | None:
    return next((p for p in (folder / f"{stem}.safetensors", folder / f"{stem}.bin") if p.is_file()), None)


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
        raise UserError(f"{adapter.path} holds no adapter: neither {UNET_FILE}.safetensors (or .bin) nor a token file.")
    expected = adapter.info.get("unet_tensors", len(adapter.unet))
    if expected != len(adapter.unet):
        raise UserError(f"{adapter.path} holds {len(adapter.unet)} UNet tensors; its {INFO_FILE} says {expected}.")
    for token in adapter.info.get("tokens", []):
        if token not in adapter.tokens:
            raise UserError(f"{adapter.path}: the file of {token} holds another token.")


def read_tensors(path: Path) -> dict[str, Any]:
    """The mapping a weight file holds. The format is told by content: the release names safetensors bytes `.bin`.

    Pickles are opened with `weights_only=True`: tensors and plain containers, no code.
    """
    try:
        head = path.read_bytes()[:9] if path.stat().st_size < 9 else _head(path)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from error
    if not head:
        raise UserError(f"{path} is empty.")
    try:
        if head[8:9] == b"{":  # eight bytes of header length, then JSON
            return safetensors_load(path.read_bytes())
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is damaged, or holds more than tensors; it was not opened.") from error
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
        raise UserError(f"{path} is damaged, or is no file of weights: {str(error).splitlines()[0]}") from error
    if not isinstance(tensors, dict):
        raise UserError(f"{path} holds a {type(tensors).__name__}, not named tensors.")
    return tensors


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(9)


def _sort_tensors(content: Mapping[str, Any], path: Path) -> Adapter:
    """Tell UNet weights from token vectors; anything else is an error."""
    adapter = Adapter({}, {}, {}, path)
    for name, value in content.items():
        if isinstance(value, Mapping) and not value:
            continue  # diffusers notes layers without weights (every attn1) as an empty dict
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name} is a {type(value).__name__}, not a tensor.")
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise UserError(f"{path}: {name} holds values that are not finite numbers.")
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


def _refuse(path: Path, tensors: Mapping[str, Tensor], why: str) -> None:
    for name in tensors:
        raise UserError(f"{path}: the tensor {name} {why}.")


# ---- applying ----


def apply_adapter(base: Base, adapter: Adapter) -> None:
    """Put an adapter into a base: K/V into the UNet, token vectors into the text encoder, in the base's dtype.

    Every check comes before the first change, so a base that an error leaves behind is as it was.

    Raises:
        UserError: names the layer that is missing, the tensor that does not fit, or the token that is taken.
    """
    weights = match_unet(base.unet, adapter)
    check_tokens(base.tokenizer, base.text_encoder, adapter.tokens, replace=False)
    with torch.no_grad():
        for parameter, value in weights:
            parameter.copy_(value)
    install_tokens(base.tokenizer, base.text_encoder, adapter.tokens)


def match_unet(unet: nn.Module, adapter: Adapter) -> list[tuple[nn.Parameter, Tensor]]:
    """Pair each of the adapter's tensors with its parameter. Each kind of weight must cover every attn2 layer."""
    where = adapter.path or "the adapter"
    parameters = dict(unet.named_parameters())
    pairs, kinds, seen = [], set(), set()
    for name, value in adapter.unet.items():
        target = parameter_name(name)
        parameter = parameters.get(target)
        if parameter is None:
            raise UserError(f"{where}: {name} has no place in this base model (no layer {target}).")
        if parameter.shape != value.shape:
            raise UserError(
                f"{where}: {name} has shape {tuple(value.shape)}, this base model's layer {tuple(parameter.shape)}; "
                "the adapter was trained on another base."
            )
        if ".attn1." in name:
            if not torch.equal(parameter.detach().cpu().float(), value.float().to(parameter.dtype).float()):
                raise UserError(f"{where}: {name} changes self-attention, which Custom Diffusion leaves as it is.")
            continue
        pairs.append((parameter, value))
        kinds.add(target.split(".attn2.")[1])
        seen.add(target)
    for target in parameters:
        layer, _, kind = target.partition(".attn2.")
        if kind in kinds | _partners(kinds) and target not in seen:
            raise UserError(f"{where} lacks {adapter_name(target)}: it does not cover the layer {layer}.attn2.")
    return pairs


def _partners(kinds: set[str]) -> set[str]:
    """Keys and values belong together; queries and outputs too."""
    found = {"to_k.weight", "to_v.weight"} if kinds else set()
    if kinds & {"to_q.weight", "to_out.0.weight", "to_out.0.bias"}:
        found |= {"to_q.weight", "to_out.0.weight", "to_out.0.bias"}
    return found


def check_tokens(tokenizer, text_encoder: nn.Module, vectors: Mapping[str, Tensor], replace: bool) -> None:
    width = text_encoder.get_input_embeddings().weight.shape[1]
    known = tokenizer.get_vocab()
    for token, vector in vectors.items():
        if tuple(vector.shape) != (width,):
            raise UserError(f"the vector of {token} has {vector.numel()} numbers, this base model's words {width}.")
        if not replace and token in known:
            raise UserError(f"the base model's vocabulary already has {token}: is this adapter applied already?")


def install_tokens(tokenizer, text_encoder: nn.Module, vectors: Mapping[str, Tensor], replace: bool = False) -> None:
    """Write token vectors {token: (D,)} into the text encoder's own table, adding the tokens the tokenizer lacks.

    The table grows when an id lies past its end; every other row stays bit-identical. `replace` allows tokens that
    the tokenizer has already.
    """
    check_tokens(tokenizer, text_encoder, vectors, replace)
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in vectors if token not in known])
    if len(tokenizer) > text_encoder.get_input_embeddings().weight.shape[0]:
        trained = text_encoder.get_input_embeddings().weight.requires_grad
        text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        text_encoder.get_input_embeddings().weight.requires_grad_(trained)
    table = text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        for token, vector in vectors.items():
            table[tokenizer.convert_tokens_to_ids(token)] = vector.to(table.device, table.dtype)
