"""The pocket tokenizer: stable ids, one token for every word of the captions."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from transformers import CLIPTokenizer

from cdiff.pocket.pretrain.tokenizer import MAX_LENGTH, build_tokenizer
from cdiff.pocket.world.captions import vocabulary

SIZE, GOLDEN = 1096, "fafb4d29ab5e5a9e"
SCRIPT = """
import json
from cdiff.pocket.pretrain.tokenizer import build_tokenizer
tokenizer = build_tokenizer()
print(json.dumps([tokenizer.get_vocab(), tokenizer("a zebra running on the beach, zoomed in").input_ids]))
"""


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


def test_every_vocabulary_word_is_one_token(tokenizer):
    ids = tokenizer(vocabulary(), add_special_tokens=False).input_ids
    assert [w for w, row in zip(vocabulary(), ids) if len(row) != 1] == []
    assert len({row[0] for row in ids}) == len(ids)


def test_the_vocabulary_has_the_words_of_movement():
    verbs = "walking running hopping jumping flying driving rolling drifting floating moving sitting standing still"
    assert set(verbs.split()) <= set(vocabulary())


def test_ids_are_the_same_in_fresh_processes(tokenizer):
    def fresh(seed: str) -> list:
        environment = {"PYTHONHASHSEED": seed, "PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        return json.loads(done.stdout)

    here = [tokenizer.get_vocab(), tokenizer("a zebra running on the beach, zoomed in").input_ids]
    assert fresh("1") == here
    assert fresh("2") == here


def test_ids_are_those_the_shipped_models_know(tokenizer):
    """Golden: a change here makes every shipped model wrong, so it comes with new weights."""
    listed = "\n".join(f"{i} {w}" for w, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    assert len(tokenizer) == SIZE
    assert hashlib.sha256(listed.encode()).hexdigest()[:16] == GOLDEN


@pytest.mark.parametrize("word", ["zebra", "ktn", "été", "東京", "qqq1"])
def test_unknown_words_fall_apart_but_are_not_unknown(tokenizer, word):
    ids = tokenizer(word, add_special_tokens=False).input_ids
    assert len(ids) > 1 and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == word


def test_long_texts_are_cut_and_short_ones_padded(tokenizer):
    batch = tokenizer(["dog " * 200, "dog"], padding="max_length", truncation=True)
    assert [len(row) for row in batch.input_ids] == [MAX_LENGTH, MAX_LENGTH]
    assert batch.input_ids[0][-1] == tokenizer.eos_token_id and sum(batch.attention_mask[1]) == 3


def test_survives_saving_and_takes_new_tokens(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    text = "a photo of a <new1> dog wearing a red hat, zoomed in"
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.model_max_length == MAX_LENGTH
    assert again("a photo of a dog").input_ids == tokenizer("a photo of a dog").input_ids
    assert again.add_tokens(["<new1>"]) == 1
    assert again.convert_tokens_to_ids("<new1>") in again(text).input_ids
