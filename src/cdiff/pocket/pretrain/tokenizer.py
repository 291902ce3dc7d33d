"""The pocket tokenizer: CLIP's byte-level BPE over the few hundred words that captions use."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from cdiff.errors import UserError
from cdiff.pocket.world.captions import vocabulary

MAX_LENGTH = 77


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """BPE merges until every word is one piece: each time the commonest pair, the first in the alphabet among equals.

    Our own loop, since the trainer of `tokenizers` breaks ties differently from run to run:
    ids that change from one process to the next would train a model on two vocabularies at once.
    """
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while True:
        pairs = Counter(pair for word in pieces for pair in itertools.pairwise(word))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [_merged(word, best) for word in pieces]


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def check_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Raises UserError if the model whose tokenizer lies in `folder` was trained on another vocabulary."""
    if CLIPTokenizer.from_pretrained(folder).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"{folder} knows another vocabulary than today's captions: run stage clip again from nothing")


def build_tokenizer() -> CLIPTokenizer:
    """A CLIPTokenizer in which every caption word is one token; other words fall apart into pieces.

    All bytes are in the vocabulary, so nothing is unknown.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges(vocabulary())
    pieces = [
        *alphabet,
        *(c + "</w>" for c in alphabet),
        *("".join(m) for m in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)
