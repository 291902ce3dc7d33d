"""Two runs, pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cdiff.errors import UserError
from cdiff.evaluation.compare import compare
from cdiff.evaluation.rows import Row


def row(prompt: str, index: int, clip_t: float, seed: int | None = 5, fault: str = "") -> Row:
    return Row("dog", prompt, prompt, index, seed, "f.png", "d", fault, {"clip_t": clip_t, "clip_i": math.nan})


def test_differences_are_paired_by_prompt_and_index():
    a = [row("p", 0, 0.1), row("p", 1, 0.5), row("q", 0, 0.3), row("only a", 0, 0.9)]
    b = [row("q", 0, 0.3), row("p", 1, 0.4), row("p", 0, 0.4), row("only b", 0, 0.9), row("q", 1, 0.9)]
    found = compare(a, b, ("clip_t", "clip_i"), 400)
    assert found.pairs == 3 and found.unpaired == (1, 2) and list(found.difference) == ["clip_t"]
    per_prompt = np.array([(0.3 - 0.1) / 2, 0.0])
    assert found.difference["clip_t"].mean == pytest.approx(per_prompt.mean())
    order = [0.0, 0.1]  # the prompts in the order of B's rows
    draws = np.random.default_rng(0).integers(0, 2, (400, 2))
    low, high = np.percentile(np.array(order)[draws].mean(axis=1), [2.5, 97.5])
    assert (found.difference["clip_t"].low, found.difference["clip_t"].high) == pytest.approx((low, high))
    assert found.win_rate["clip_t"].mean == pytest.approx((0.5 + 0.5) / 2)  # p: one of two; q: equal, a half
    assert found.a["clip_t"] == pytest.approx(0.3) and found.b["clip_t"] == pytest.approx(0.35)


def test_swapping_turns_the_sign():
    rng = np.random.default_rng(2)
    a = [row(f"p{i % 5}", i, float(rng.random())) for i in range(30)]
    b = [row(f"p{i % 5}", i, float(rng.random())) for i in range(30)]
    there, back = compare(a, b, ("clip_t",), 300), compare(b, a, ("clip_t",), 300)
    assert there.difference["clip_t"].mean == pytest.approx(-back.difference["clip_t"].mean)
    assert there.win_rate["clip_t"].mean == pytest.approx(1 - back.win_rate["clip_t"].mean)
    assert there.difference["clip_t"].low == pytest.approx(-back.difference["clip_t"].high, abs=0.02)


def test_pairing_is_narrower_than_the_two_intervals():
    rng = np.random.default_rng(4)
    base = rng.normal(size=40)
    a = [row(f"p{i}", 0, float(base[i])) for i in range(40)]
    b = [row(f"p{i}", 0, float(base[i] + 0.1)) for i in range(40)]
    found = compare(a, b, ("clip_t",), 300)
    assert found.difference["clip_t"].low == pytest.approx(0.1) and found.win_rate["clip_t"].mean == 1.0


@pytest.mark.parametrize(
    ("b", "sentence"),
    [([row("p", 0, 0.1, seed=6)], "other seeds"), ([row("q", 0, 0.1)], "no prompt in common"), ([], "no prompt"),
     ([row("p", 0, 0.1, fault="unreadable")], "no prompt")],
)  # fmt: skip
def test_nothing_to_pair(b, sentence):
    with pytest.raises(UserError, match=sentence):
        compare([row("p", 0, 0.1)], b, ("clip_t",), 300)
