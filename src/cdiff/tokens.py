"""New tokens: added to the tokenizer, trained as rows of their own, encoded beside a frozen vocabulary.

The embedding table of the base is never touched while training. A prompt's embeddings are gathered from the frozen
table and from the new rows, and handed to the text encoder in the table's place, so the gradient reaches the new
rows and nothing else, at a cost that does not grow with the vocabulary.
"""

from __future__ import annotations

import hashlib
import logging
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cdiff.adapter import install_tokens, split_tokens
from cdiff.concepts import RARE_TOKENS
from cdiff.errors import UserError

if TYPE_CHECKING:
    from cdiff.models import Base

log = logging.getLogger("cdiff")

FEATURES = ("eos", "release")
SHOWN = 600  # characters of a prompt that a warning repeats


class HasToken(Protocol):
    """What adding a token needs to know of a concept (cdiff.concepts.Concept fits)."""

    token: str
    class_word: str
    initializer: str


@dataclass(frozen=True)
class Encoded:
    """Prompts after the text encoder: what the UNet reads, and what the semantic preservation loss reads.

    Of SDXL `hidden` is both encoders' last layer but one, joined, and `pooled` the second one's projected feature.
    """

    hidden: Tensor  # (B, L, D), past the final layer norm but for SDXL
    ids: Tensor  # (B, L) of the first tokenizer; the others differ from it in padding alone
    states: tuple[Tensor, ...]  # (B, L, D_i) of each text encoder, past its final layer norm
    pooled: Tensor | None = None  # (B, P), SDXL


def add_tokens(base: Base, concepts: Iterable[HasToken], seed: int = 0) -> nn.Parameter:
    """Add each concept's token to the tokenizer; return its embeddings, (tokens, D) fp32, on the base's device. With
    two text encoders (SDXL) a row is both encoders' rows, one after the other.

    A row starts from what `initializer` says: "class_word", any word, or several, whose mean it is ("dog, cat"; a word
    of several tokens is the mean of these); or "random", by `seed`, with the mean and deviation of the table's words.
    The table of the text encoder stays as it is: row i of the result belongs to id `len(tokenizer) - tokens + i`.

    Raises:
        UserError: the vocabulary already has the token, two concepts share one, or the initializer has no embedding.
    """
    concepts = list(concepts)
    if not concepts:
        raise UserError("there is no concept to add a token for: choose one with concept=NAME.")
    for concept in concepts:
        for tokenizer, _ in base.encoders:
            check_new_token(tokenizer, concept.token)
    tokens = [concept.token for concept in concepts]
    if len(set(map(str.lower, tokens))) < len(tokens):
        raise UserError(f"two concepts share a token ({', '.join(tokens)}): give each its own concept.token.")
    rows = torch.stack([_initial_row(base, concept, seed) for concept in concepts])
    for tokenizer, _ in base.encoders:
        tokenizer.add_tokens(tokens)
    return nn.Parameter(rows)


def check_new_token(tokenizer, token: str) -> None:
    """Refuse a token that the vocabulary already knows, as a word or as an added token (case does not matter)."""
    added = {str(word).lower() for word in tokenizer.get_added_vocab()}
    ids = tokenizer(token, add_special_tokens=False).input_ids
    one_word = len(ids) == 1 and ids[0] != tokenizer.unk_token_id
    if token.lower() in added or token in tokenizer.get_vocab() or one_word:
        raise UserError(f"the base model's vocabulary already has {token}; choose another with concept.token=NAME.")


def _initial_row(base: Base, concept: HasToken, seed: int) -> Tensor:
    """The embedding a new token starts from in every text encoder, joined, (D,) fp32."""
    parts = []
    for place, (tokenizer, text_encoder) in enumerate(base.encoders):
        table = text_encoder.get_input_embeddings().weight.detach()
        key = f"{seed}/{concept.token}" + (f"/{place}" if place else "")
        random = concept.initializer == "random"
        parts.append(_random_row(table, key) if random else _row_of_words(tokenizer, table, concept))
    return torch.cat(parts)


def _row_of_words(tokenizer, table: Tensor, concept: HasToken) -> Tensor:
    """The mean of the initializer's words in a table (V, D)."""
    text = concept.class_word if concept.initializer == "class_word" else concept.initializer
    words = text.replace(",", " ").split()
    ids = [_pieces(tokenizer, word) for word in words]
    for word, pieces in zip(words, ids, strict=True):
        if not pieces or tokenizer.unk_token_id in pieces:
            raise UserError(
                f"the initializer '{word}' of {concept.token} is not in the base model's vocabulary; "
                "choose a known word with concept.initializer=WORD."
            )
    if not words:
        raise UserError(f"the initializer of {concept.token} is empty; name a word with concept.initializer=WORD.")
    if len(words) > 1 or len(ids[0]) > 1:
        log.info("%s starts from the mean of the %d tokens of '%s'", concept.token, sum(map(len, ids)), text)
    means = [table[torch.tensor(pieces, device=table.device)].float().mean(dim=0) for pieces in ids]
    return torch.stack(means).mean(dim=0)


def _pieces(tokenizer, word: str) -> list[int]:
    """A word's ids. Custom Diffusion looks its rare tokens up in the vocabulary, where `ktn` goes on without an end;
    read as a word it would be cut up."""
    entry = tokenizer.get_vocab().get(word) if word in RARE_TOKENS else None
    return [entry] if entry is not None else tokenizer(word, add_special_tokens=False).input_ids


def _random_row(table: Tensor, key: str) -> Tensor:
    """A draw from the normal distribution with each dimension's mean and deviation over the table (V, D). The noise is
    the CPU's, so that a key means the same row on every device."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1)
    noise = torch.randn(table.shape[1], generator=generator).to(table.device)
    return table.float().mean(dim=0) + table.float().std(dim=0) * noise


def write_rows(base: Base, rows: Tensor, tokens: Sequence[str]) -> None:
    """Put trained rows (tokens, D) into the base's own embedding table, so that stock pipelines know the tokens.

    The table grows as needed (its old rows stay bit-identical) and the rows take the base's dtype.
    """
    vectors = {token: row.detach() for token, row in zip(tokens, rows, strict=True)}
    for (tokenizer, text_encoder), own in zip(base.encoders, split_tokens(base, vectors), strict=True):
        install_tokens(tokenizer, text_encoder, own, replace=True)


class PromptEncoder:
    """Encodes prompts with the frozen vocabulary and, while training, the new tokens' rows beside it.

    `encode` keeps the gradient to the rows, `encode_sample` takes none, `constant` remembers what can't change.
    After `write_rows` or `apply_adapter` the table holds the tokens: make an encoder without rows.
    """

    def __init__(self, base: Base, rows: Tensor | None = None) -> None:
        self.device = base.device
        self.rows = rows
        self.widths = base.token_widths
        self.towers = [TextTower(*pair, 0 if rows is None else rows.shape[0]) for pair in base.encoders]
        first = self.towers[0]
        self.tokenizer, self.text_encoder, self.table = first.tokenizer, first.text_encoder, first.table
        self.first_new_id, self.length = first.first_new_id, first.length
        self.bos_id = base.tokenizer.bos_token_id
        self.eos_id = first.eos_id
        self._constants: dict[str, Encoded] = {}

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (B, L) on the device, padded to the model's length; what does not fit is cut, with a warning."""
        return self.towers[0].tokenize(prompts, self.device)

    def encode(self, *lists: Sequence[str]) -> list[Encoded]:
        """Encode several lists of prompts in one pass of the text encoder; the gradient reaches the new rows."""
        return self.encode_ids(self.ids(*lists), [len(prompts) for prompts in lists])

    def ids(self, *lists: Sequence[str]) -> tuple[Tensor, ...]:
        """The ids (B, L) of all prompts of all lists, one tensor for each text encoder, on the device."""
        prompts = [prompt for prompts in lists for prompt in prompts]
        return tuple(tower.tokenize(prompts, self.device) for tower in self.towers)

    def encode_ids(self, ids: Sequence[Tensor], sizes: Sequence[int]) -> list[Encoded]:
        """As `encode`, of what `ids` gave for lists of these sizes: tensors alone, so that a graph can hold it."""
        found = self._forward(ids)
        sizes = list(sizes)
        states = list(zip(*(state.split(sizes) for state in found.states), strict=True))
        pooled = [None] * len(sizes) if found.pooled is None else found.pooled.split(sizes)
        parts = zip(found.hidden.split(sizes), found.ids.split(sizes), states, pooled, strict=True)
        return [Encoded(*part) for part in parts]

    @torch.no_grad()
    def encode_sample(self, prompts: Sequence[str]) -> Encoded:
        """Encode prompts for sampling: no gradient, the rows as they are now."""
        return self.encode(prompts)[0]

    @torch.no_grad()
    def constant(self, prompts: Sequence[str]) -> Encoded:
        """Encode prompts without new tokens, once each: the class phrases of SPL, the empty prompt of guidance.

        While the text encoder itself trains nothing is constant, and nothing is remembered.
        """
        if any(p.requires_grad for tower in self.towers for p in tower.text_encoder.parameters()):
            self._constants.clear()
        for prompt in dict.fromkeys(prompts):
            if prompt in self._constants:
                continue
            if self.rows is not None and bool((self.tokenize([prompt]) >= self.first_new_id).any()):
                raise ValueError(f"'{prompt}' holds a token that trains: it is not a constant")
            self._constants[prompt] = self._forward(self.ids([prompt]))
        found = [self._constants[prompt] for prompt in prompts]
        return Encoded(
            hidden=torch.cat([each.hidden for each in found]),
            ids=torch.cat([each.ids for each in found]),
            states=tuple(torch.cat(own) for own in zip(*(each.states for each in found), strict=True)),
            pooled=None if found[0].pooled is None else torch.cat([each.pooled for each in found]),
        )

    def feature(self, encoded: Encoded, kind: str = "eos") -> Tensor:
        """One feature vector a prompt in the first text encoder, (B, D). See `feature_positions` for `kind`."""
        return self.features(encoded, kind)[0]

    def features(self, encoded: Encoded, kind: str = "eos") -> list[Tensor]:
        """The feature of each text encoder, (B, D_i)."""
        return read_features(encoded.states, feature_positions(encoded.ids, self.eos_id, kind))

    def _forward(self, ids: Sequence[Tensor]) -> Encoded:
        """Ids (B, L) of each text encoder through all of them."""
        rows = [None] * len(self.towers) if self.rows is None else self.rows.split(self.widths, dim=1)
        several = len(self.towers) > 1
        outputs = [tower.forward(i, own, several) for tower, i, own in zip(self.towers, ids, rows, strict=True)]
        states = tuple(output.last_hidden_state for output in outputs)
        if not several:
            return Encoded(states[0], ids[0], states)
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        last = self.towers[-1]
        ends = read_features(states[-1:], eos_positions(ids[-1], last.eos_id))[0]
        return Encoded(hidden, ids[0], states, last.text_encoder.text_projection(ends))


class TextTower:
    """One text encoder with its tokenizer."""

    def __init__(self, tokenizer, text_encoder: nn.Module, new: int) -> None:
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.table = text_encoder.get_input_embeddings().weight
        self.table_name = next(n for n, p in text_encoder.named_parameters() if p is self.table)
        self.first_new_id = len(tokenizer) - new
        if self.first_new_id > self.table.shape[0]:
            raise ValueError("the tokenizer has tokens that neither the table nor `rows` holds an embedding of")
        self.length = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
        self.eos_id = tokenizer.eos_token_id
        self._tokenized: dict[str, list[int]] = {}

    def tokenize(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """Ids (B, L)."""
        return to_device(torch.tensor([self._ids(prompt) for prompt in prompts]), device)

    def _ids(self, prompt: str) -> list[int]:
        known = self._tokenized.get(prompt)
        if known is not None:
            return known
        ids = self.tokenizer(prompt, verbose=False).input_ids
        if self.eos_id not in ids[1:]:
            raise ValueError(f"the tokenizer puts no end-of-text token (id {self.eos_id}) after '{prompt}'")
        if len(ids) > self.length:
            lost = self.tokenizer.decode(ids[self.length - 1 : -1]).strip()
            shown, lost = (textwrap.shorten(text, SHOWN, placeholder=" ...") for text in (prompt, lost))
            log.warning("the prompt '%s' is too long for the text encoder: '%s' is cut off", shown, lost)
            ids = [*ids[: self.length - 1], self.eos_id]
        self._tokenized[prompt] = ids + [self.tokenizer.pad_token_id] * (self.length - len(ids))
        return self._tokenized[prompt]

    def forward(self, ids: Tensor, rows: Tensor | None, all_layers: bool):
        """ids (B, L) -> the encoder's output, with `all_layers` the hidden states of all layers in it.

        The gathered embeddings stand in for the table and every position looks up its own row: the encoder takes no
        embeddings directly, and a concatenated table would be copied, and differentiated, whole at every step.
        """
        positions = torch.arange(ids.numel(), device=ids.device).view_as(ids)
        embeddings = self._embed(ids, rows).flatten(0, 1)
        named = {"input_ids": positions, "output_hidden_states": all_layers}
        return functional_call(self.text_encoder, {self.table_name: embeddings}, (), named)

    def _embed(self, ids: Tensor, rows: Tensor | None) -> Tensor:
        """Token embeddings (B, L, D) in the table's dtype: frozen rows from the table, new ones from `rows`."""
        frozen = nn.functional.embedding(ids.clamp(max=self.table.shape[0] - 1), self.table)
        if rows is None:
            return frozen
        index = (ids - self.first_new_id).clamp(min=0)
        new = nn.functional.embedding(index, rows.to(self.table.dtype))
        return torch.where((ids >= self.first_new_id).unsqueeze(-1), new, frozen)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device; from pinned memory, since a copy from any other waits for the GPU to be done."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def read_features(states: Sequence[Tensor], positions: Tensor) -> list[Tensor]:
    """The rows of hidden states (B, L, D_i) at positions (B,)."""
    own = torch.arange(len(positions), device=positions.device)
    return [state[own, positions] for state in states]


def eos_positions(ids: Tensor, eos_id: int) -> Tensor:
    """The first end-of-text token of each row of ids (B, L), past the start. Stable Diffusion 1.5 pads with it too."""
    return (ids[:, 1:] == eos_id).int().argmax(dim=1) + 1


def feature_positions(ids: Tensor, eos_id: int, kind: str = "eos") -> Tensor:
    """Where a prompt's feature is read, (B,).

    `eos` is the paper's: the end-of-text token. `release` is the released code's: the largest token id, which is
    what transformers' pooling does for a config with eos_token_id 2. A new token's id is above the end-of-text id, so
    there the feature is read at the new token itself, before the class word.
    """
    if kind == "eos":
        return eos_positions(ids, eos_id)
    if kind == "release":
        return ids.argmax(dim=1)
    raise UserError(f"loss.spl_feature={kind} is not known: use {' or '.join(FEATURES)}.")
