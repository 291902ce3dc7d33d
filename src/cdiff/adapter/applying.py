"""Putting an adapter into a base: straight into its own weights, after every check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cdiff.adapter.formats import Adapter, adapter_name, lora_update, parameter_name
from cdiff.errors import UserError

if TYPE_CHECKING:
    from cdiff.models import Base

Pairs = list[tuple[nn.Parameter, Tensor]]  # a parameter of the base, and the value that it takes


def apply_adapter(base: Base, adapter: Adapter) -> None:
    """Put an adapter into a base: weights into UNet and text encoder, token vectors into its table, in their dtypes.

    Every check comes before the first change, so a base that an error leaves behind is as it was.

    Raises:
        UserError: names the layer that is missing, the tensor that does not fit, or the token that is taken.
    """
    pairs = match_unet(base.unet, adapter) + match_text_encoder(base.text_encoder, adapter)
    parts = split_tokens(base, adapter.tokens)
    for (tokenizer, text_encoder), vectors in zip(base.encoders, parts, strict=True):
        check_tokens(tokenizer, text_encoder, vectors, replace=False)
    with torch.no_grad():
        for parameter, value in pairs:
            parameter.copy_(value)
    for (tokenizer, text_encoder), vectors in zip(base.encoders, parts, strict=True):
        install_tokens(tokenizer, text_encoder, vectors)


def split_tokens(base: Base, vectors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Token vectors (D,) as the rows of each text encoder of the base: {token: (D_i,)} for each.

    Raises:
        UserError: a vector that is not as wide as the base's text encoders together.
    """
    widths = base.token_widths
    for token, vector in vectors.items():
        if tuple(vector.shape) != (sum(widths),):
            words = " + ".join(map(str, widths))
            raise UserError(f"the vector of {token} has {vector.numel()} numbers, this base model's words {words}.")
    rows = {token: vector.split(widths) for token, vector in vectors.items()}
    return [{token: parts[place] for token, parts in rows.items()} for place in range(len(widths))]


def match_unet(unet: nn.Module, adapter: Adapter) -> Pairs:
    """Pair each parameter that the adapter changes with its new value."""
    return MATCHERS[adapter.kind](unet, adapter) if adapter.unet else []


def match_text_encoder(text_encoder: nn.Module, adapter: Adapter) -> Pairs:
    """Pair every parameter of the text encoder but its word table, where the adapter holds a text encoder."""
    if not adapter.text_encoder:
        return []
    table = text_encoder.get_input_embeddings().weight
    expected = {name: p for name, p in text_encoder.named_parameters() if p is not table}
    content = {name.removeprefix("text_model."): value for name, value in adapter.text_encoder.items()}
    return _match_all(expected, content, adapter, "text encoder")


def _match_custom_diffusion(unet: nn.Module, adapter: Adapter) -> Pairs:
    """Each kind of weight must cover every attn2 layer."""
    parameters = dict(unet.named_parameters())
    pairs, kinds, seen = [], set(), set()
    for name, value in adapter.unet.items():
        target = parameter_name(name)
        parameter = _fitting(parameters, target, name, value, adapter)
        if ".attn1." in name:
            if not torch.equal(parameter.detach().cpu().float(), value.float().to(parameter.dtype).float()):
                raise UserError(
                    f"{_where(adapter)}: {name} changes self-attention, which Custom Diffusion leaves as it is."
                )
            continue
        pairs.append((parameter, value))
        kinds.add(target.split(".attn2.")[1])
        seen.add(target)
    for target in parameters:
        layer, _, kind = target.partition(".attn2.")
        if kind in kinds | _partners(kinds) and target not in seen:
            raise UserError(
                f"{_where(adapter)} lacks {adapter_name(target)}: it does not cover the layer {layer}.attn2."
            )
    return pairs


def _partners(kinds: set[str]) -> set[str]:
    """Keys and values belong together; queries and outputs too."""
    found = {"to_k.weight", "to_v.weight"} if kinds else set()
    if kinds & {"to_q.weight", "to_out.0.weight", "to_out.0.bias"}:
        found |= {"to_q.weight", "to_out.0.weight", "to_out.0.bias"}
    return found


def _match_lora(unet: nn.Module, adapter: Adapter) -> Pairs:
    """W + up @ down, summed in fp32. A LoRA may cover any layers: which ones is its trainer's choice."""
    parameters = dict(unet.named_parameters())
    pairs = []
    for target, update in lora_update(adapter.unet).items():
        parameter = _fitting(parameters, target, f"the LoRA of {target}", update, adapter)
        pairs.append((parameter, parameter.detach().float() + update.to(parameter.device)))
    return pairs


def _match_full(unet: nn.Module, adapter: Adapter) -> Pairs:
    return _match_all(dict(unet.named_parameters()), adapter.unet, adapter, "UNet")


def _match_all(parameters: dict[str, nn.Parameter], content: dict[str, Tensor], adapter: Adapter, part: str) -> Pairs:
    """Every parameter of a part, none more and none less."""
    pairs = [(_fitting(parameters, name, name, value, adapter), value) for name, value in content.items()]
    for name in parameters:
        if name not in content:
            raise UserError(f"{_where(adapter)} lacks {name} of the {part}.")
    return pairs


MATCHERS: dict[str, Callable[[nn.Module, Adapter], Pairs]] = {
    "custom_diffusion": _match_custom_diffusion,
    "lora": _match_lora,
    "full": _match_full,
}


def _where(adapter: Adapter) -> str:
    return str(adapter.path or "the adapter")


def _fitting(
    parameters: dict[str, nn.Parameter], target: str | None, name: str, value: Tensor, adapter: Adapter
) -> nn.Parameter:
    """The parameter called `target`, of the value's shape."""
    parameter = parameters.get(target)
    if parameter is None:
        raise UserError(f"{_where(adapter)}: {name} has no place in this base model (no layer {target}).")
    if parameter.shape != value.shape:
        raise UserError(
            f"{_where(adapter)}: {name} has shape {tuple(value.shape)}, this base model's layer "
            f"{tuple(parameter.shape)}; the adapter was trained on another base."
        )
    return parameter


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
