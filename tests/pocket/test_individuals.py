"""Individuals as words in the captions of the UNet's training."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from cdiff.pocket.pretrain.individuals import Individuals, Naming, read_text, word_ids
from cdiff.pocket.pretrain.tokenizer import MAX_LENGTH, build_tokenizer
from cdiff.pocket.world.spec import COLORS, KINDS

CPU = torch.device("cpu")
TOKENIZER = build_tokenizer()
NAMING = Naming(TOKENIZER, CPU)


def read(*captions: str) -> torch.Tensor:
    return TOKENIZER(list(captions), padding="max_length", max_length=MAX_LENGTH, return_tensors="pt").input_ids


def labels(kind: str, color: str, second: str | None = None) -> torch.Tensor:
    other = KINDS.index(second) if second else -1
    return torch.tensor([[0, KINDS.index(kind), COLORS.index(color), -1, other, -1, -1]], dtype=torch.int8)


def test_the_word_comes_before_the_first_kind_and_nowhere_else():
    plain = read("a photo of a brown dog next to a cat", "a red car on the beach", "")
    named, mask = NAMING.insert(plain, torch.tensor([True, False, True]))
    dog = word_ids(TOKENIZER, ("dog",)).item()
    place = plain[0].tolist().index(dog)
    assert mask[0].nonzero().flatten().tolist() == [place] and not mask[1:].any()
    assert named[0].tolist() == [*plain[0, :place].tolist(), dog, *plain[0, place:-1].tolist()]
    assert torch.equal(named[1:], plain[1:])  # nothing to name in an empty caption


def test_a_partner_shows_the_same_individual_and_it_alone():
    ids = read("a photo of a dog", "a photo of a brown dog", "", "a dog wearing a red hat")
    own, brown = labels("dog", "brown"), labels("dog", "brown")

    def fits(row: int, mine: torch.Tensor, other: torch.Tensor) -> bool:
        return bool(NAMING.fits(ids[row : row + 1], mine, other))

    assert fits(0, own, brown) and fits(1, own, brown)
    assert not fits(2, own, brown)
    assert not fits(0, own, labels("dog", "brown", "cat")) and not fits(0, own, labels("cat", "brown"))
    grey = labels("dog", "grey")
    assert not fits(0, own, grey)  # the caption leaves the colour open
    assert fits(1, own, grey)  # the caption says it
    assert not fits(3, labels("dog", "red"), grey)  # the hat's colour is not the dog's


def test_partners_are_other_pictures_of_the_same_group():
    index = torch.arange(400) % 16
    partners = NAMING.partners(index)
    assert torch.equal(partners // 4, index // 4) and not (partners == index).any()
    assert {(i, p) for i, p in zip(index.tolist(), partners.tolist()) if i < 4} == {
        (i, p) for i in range(4) for p in range(4) if i != p
    }


@pytest.fixture(scope="module")
def text_encoder() -> CLIPTextModel:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        eos_token_id=TOKENIZER.eos_token_id,
    )  # fmt: skip
    return CLIPTextModel(config).eval().requires_grad_(False)


def test_reading_with_a_known_word_is_the_text_encoder(text_encoder):
    """The word's embedding given by hand: the same states as of the token in its place, by the model's own forward."""
    ids = read("a photo of a happy dog on the beach", "a cat")
    happy = word_ids(TOKENIZER, ("happy",)).item()
    words = text_encoder.get_input_embeddings()(torch.tensor([happy, happy]))
    mask = ids == happy
    hidden = read_text(text_encoder, ids.masked_fill(mask, 5), mask, words)
    expected = text_encoder(ids).last_hidden_state
    assert torch.allclose(hidden, expected, atol=1e-5)
    assert not torch.allclose(read_text(text_encoder, ids, mask, -words)[0], expected[0], atol=1e-3)


def test_words_are_as_long_as_asked_and_learn_through_the_frozen_encoder(text_encoder):
    individuals = Individuals(8, 32, 0.5)
    ids, mask = NAMING.insert(read("a dog", "a cat"), torch.tensor([True, True]))
    words = individuals(torch.randn(2, 8))
    assert torch.allclose(words.norm(dim=-1), torch.full((2,), 0.5), atol=1e-6)
    read_text(text_encoder, ids, mask, words).pow(2).mean().backward()
    assert individuals.project.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in text_encoder.parameters())


def test_weights_of_an_earlier_training_are_taken_up(tmp_path):
    first, second = Individuals(8, 32, 0.5), Individuals(8, 32, 0.5)
    second.open(tmp_path)  # none there
    assert not torch.equal(first.project.weight, second.project.weight)
    first.save(tmp_path)
    second.open(tmp_path)
    assert torch.allclose(first.project.weight, second.project.weight, atol=1e-3)
