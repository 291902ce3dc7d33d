"""Drift: against the same numbers computed another way, on the tiny Stable Diffusion 1.5."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import TinyConcept

from cdiff.drift import ADJECTIVES, DriftProbe
from cdiff.tokens import PromptEncoder, add_tokens


class Recorder:
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict]] = []

    def log(self, values, step) -> None:
        self.logged.append((step, values))


def probe(base, *concepts):
    rows = add_tokens(base, concepts)
    recorder = Recorder()
    return DriftProbe(base, rows, concepts, PromptEncoder(base, rows), recorder), rows, recorder


def hidden(base, prompt: str) -> torch.Tensor:
    """The end-of-text feature by transformers' own call; the prompt holds no new token."""
    ids = base.tokenizer(prompt, return_tensors="pt", padding="max_length", max_length=77).input_ids
    end = ids[0].tolist().index(base.tokenizer.eos_token_id)
    with torch.no_grad():
        return base.text_encoder(input_ids=ids).last_hidden_state[0, end]


def test_a_token_that_is_the_word_cat_is_as_far_as_cat(sd15):
    """ "<new1> dog" with the embedding of "cat" is "cat dog": its distance from "dog" is known without the probe."""
    measured, rows, recorder = probe(sd15, TinyConcept())
    table = sd15.text_encoder.get_input_embeddings().weight
    [cat] = sd15.tokenizer("cat", add_special_tokens=False).input_ids
    [dog] = sd15.tokenizer("dog", add_special_tokens=False).input_ids
    with torch.no_grad():
        rows[0] = table[cat]
    measured(7)
    [(step, values)] = recorder.logged
    cosine = torch.cosine_similarity(hidden(sd15, "cat dog"), hidden(sd15, "dog"), dim=0)
    assert step == 7 and values["drift/text_distance"] == pytest.approx(1 - float(cosine), abs=1e-5)
    assert values["drift/token_norm"] == pytest.approx(float(table[cat].norm()), rel=1e-5)
    assert values["drift/class_norm"] == pytest.approx(float(table[dog].norm()), rel=1e-5)
    expected = float(torch.cosine_similarity(table[cat], table[dog], dim=0))
    assert values["drift/class_cosine"] == pytest.approx(expected, abs=1e-5)


def test_at_the_start_the_token_is_its_class_word(sd15):
    measured, _, recorder = probe(sd15, TinyConcept())
    measured(0)
    assert recorder.logged[0][1]["drift/class_cosine"] == pytest.approx(1, abs=1e-5)


def test_several_concepts_are_told_apart(sd15):
    measured, rows, recorder = probe(sd15, TinyConcept(), TinyConcept("<new2>", "cat", name="cat"))
    with torch.no_grad():
        rows[1] *= 2
    measured(0)
    values = recorder.logged[0][1]
    assert values["drift/token_norm/cat"] == pytest.approx(2 * values["drift/class_norm/cat"], rel=1e-5)
    assert values["drift/token_norm/dog"] == pytest.approx(values["drift/class_norm/dog"], rel=1e-5)


def test_what_a_projection_needs_is_saved(sd15, tmp_path):
    measured, rows, _ = probe(sd15, TinyConcept())
    measured(0)
    with torch.no_grad():
        rows *= torch.linspace(-1, 1, 32)  # a shift by a constant would end at the first layer norm
    measured(5)
    with np.load(measured.save(tmp_path)) as kept:
        assert kept["steps"].tolist() == [0, 5] and kept["concepts"].tolist() == ["dog"]
        assert len(kept["words"]) == len(ADJECTIVES) + 1 >= 70 and kept["words"][0] == ""
        assert kept["class_features"].shape == (1, len(kept["words"]), 32)
        red = kept["words"].tolist().index("red")
        assert np.allclose(kept["class_features"][0, red], hidden(sd15, "red dog").numpy(), atol=5e-3)
        assert not np.allclose(kept["features"][0], kept["features"][1], atol=1e-2)


def test_the_probe_leaves_rows_and_gradients_alone(sd15):
    measured, rows, _ = probe(sd15, TinyConcept())
    before = rows.detach().clone()
    measured(0)
    assert rows.grad is None and torch.equal(rows, before)
