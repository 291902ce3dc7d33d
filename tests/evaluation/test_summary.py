"""Means and intervals against a direct computation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cdiff.evaluation import summary as module
from cdiff.evaluation.rows import Row
from cdiff.evaluation.summary import across, bootstrap, estimate, summarise


def row(concept: str, prompt: str, clip_t: float, clip_i: float = math.nan, fault: str = "") -> Row:
    return Row(concept, prompt, prompt, 0, 1, "f.png", "d", fault, {"clip_t": clip_t, "clip_i": clip_i})


def direct(values: np.ndarray, resamples: int) -> tuple[float, float]:
    draws = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    return tuple(np.percentile(values[draws].mean(axis=1), [2.5, 97.5]))


@pytest.mark.parametrize("block", [10, 1000, 10**7])
def test_the_bootstrap_is_numpys(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    values = np.random.default_rng(3).normal(size=25)
    assert bootstrap(values, 500) == pytest.approx(direct(values, 500), abs=1e-12)


def test_the_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(300):
        low, high = bootstrap(rng.normal(size=40), 400)
        inside += low <= 0 <= high
    assert 0.88 < inside / 300 < 0.98


def test_prompts_count_alike_whatever_their_images():
    rows = [row("dog", "a", 0.1, 0.5), row("dog", "a", 0.3), row("dog", "a", 0.2), row("dog", "b", 0.8)]
    found = summarise(rows, ("clip_t", "clip_i"), 200)
    overall = found.overall()
    assert overall["clip_t"].mean == pytest.approx(0.5) and overall["clip_t"].count == 2
    assert overall["clip_t"].images == 4 and overall["clip_i"].images == 1
    assert (overall["clip_i"].mean, overall["clip_i"].low) == (0.5, None)
    assert [p["values"]["clip_i"] for p in found.of_prompts()] == [0.5, None]
    assert (overall["clip_t"].low, overall["clip_t"].high) == pytest.approx(direct(np.array([0.2, 0.8]), 200))


def test_concepts_and_faults():
    rows = [row("dog", "a", 0.1), row("cat", "a", 0.3), row("dog", "b", 0.2), row("dog", "b", 9.0, fault="unreadable")]
    found = summarise(rows, ("clip_t", "clip_i"), 200)
    concepts = found.of_concepts()
    assert concepts["dog"]["clip_t"].mean == pytest.approx(0.15) and concepts["cat"]["clip_t"].count == 1
    assert "clip_i" not in found.overall() and (found.scored, found.bad) == (3, 1)


def test_over_concepts_runs_of_one_concept_are_averaged_first():
    runs = {"dog": [{"clip_t": estimate([0.1], 100, 5)}, {"clip_t": estimate([0.3], 100, 5)}],
            "cat": [{"clip_t": estimate([0.6], 100, 5)}], "car": [{"clip_t": estimate([0.4], 100, 5)}]}  # fmt: skip
    found = across(runs, ["clip_t", "dino_i"], 300)
    assert list(found) == ["clip_t"] and found["clip_t"].count == 3 and found["clip_t"].images == 20
    assert found["clip_t"].mean == pytest.approx(0.4)
    assert (found["clip_t"].low, found["clip_t"].high) == pytest.approx(direct(np.array([0.2, 0.6, 0.4]), 300))
