"""Rows -> means per prompt, per concept and overall, with bootstrap intervals.

A prompt's value is the mean over its images; a concept's, and the overall one, is the mean over prompts, each counted
alike. The interval says how far the mean would move with other prompts of the same kind: prompts are drawn with
replacement, and the middle 95 % of the means is kept (Efron's percentile bootstrap). Across runs the same is done over
concepts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cdiff.evaluation.rows import Row

CONFIDENCE = 0.95
BLOCK = 4_000_000  # random numbers held at once


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval. `count`: how many values (prompts, or concepts) it is the mean of; `images` behind it.

    low and high are null where there are fewer than two values: one value shows no spread.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    images: int

    def as_json(self, over: str = "prompts") -> dict[str, float | int | None]:
        return {"mean": self.mean, "low": self.low, "high": self.high, over: self.count, "images": self.images}


@dataclass
class Tally:
    """Sums over the images of one prompt of one concept."""

    rows: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        self.rows += 1
        for name, value in values.items():
            if not math.isnan(value):
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def mean(self, name: str) -> float | None:
        return self.sums[name] / self.counts[name] if self.counts.get(name) else None


@dataclass
class Summary:
    """The result of one run, or of one folder of images."""

    metrics: tuple[str, ...]
    tallies: dict[tuple[str, str], Tally]  # (concept, prompt) -> sums, in the order of the rows
    resamples: int
    scored: int
    bad: int
    bad_files: list[str]

    def overall(self) -> dict[str, Estimate]:
        """Of the metrics that say anything, over all prompts."""
        return self._estimates(self.tallies.values())

    def of_concepts(self) -> dict[str, dict[str, Estimate]]:
        names = dict.fromkeys(concept for concept, _ in self.tallies)
        return {
            name: self._estimates(tally for (concept, _), tally in self.tallies.items() if concept == name)
            for name in names
        }

    def of_prompts(self) -> list[dict[str, Any]]:
        """One entry a prompt: concept, prompt, images, values."""
        return [
            {
                "concept": concept,
                "prompt": prompt,
                "images": tally.rows,
                "values": {name: tally.mean(name) for name in self.metrics},
            }
            for (concept, prompt), tally in self.tallies.items()
        ]

    def _estimates(self, tallies: Iterable[Tally]) -> dict[str, Estimate]:
        chosen, found = list(tallies), {}
        for name in self.metrics:
            has = [tally for tally in chosen if tally.counts.get(name)]
            if has:
                images = sum(tally.counts[name] for tally in has)
                found[name] = estimate([tally.mean(name) for tally in has], self.resamples, images)
        return found


def summarise(rows: Iterable[Row], metrics: Sequence[str], resamples: int) -> Summary:
    """Read the rows once; memory grows with the number of prompts, not of images."""
    tallies: dict[tuple[str, str], Tally] = {}
    scored, bad, bad_files = 0, 0, []
    for row in rows:
        if row.fault:
            bad += 1
            if len(bad_files) < 20:
                bad_files.append(row.file)
            continue
        scored += 1
        tallies.setdefault((row.concept, row.prompt), Tally()).add(row.values)
    return Summary(tuple(metrics), tallies, resamples, scored, bad, bad_files)


def estimate(values: Sequence[float], resamples: int, images: int = 0) -> Estimate:
    """Mean and bootstrap interval of values (n,)."""
    array = np.asarray(values, dtype=np.float64)
    low, high = bootstrap(array, resamples) if len(array) > 1 else (None, None)
    return Estimate(float(array.mean()), low, high, len(array), images)


def bootstrap(values: np.ndarray, resamples: int, seed: int = 0) -> tuple[float, float]:
    """The percentile interval of the mean of `values` (n,), from `resamples` draws of n with replacement.

    The same values give the same interval: the draws are those of
    `numpy.random.default_rng(seed).integers(0, n, (resamples, n))`.
    """
    rng, count = np.random.default_rng(seed), len(values)
    rows = max(1, BLOCK // count)
    means = [
        values[rng.integers(0, count, (min(rows, resamples - start), count))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def across(results: Mapping[str, Sequence[Mapping[str, Estimate]]], metrics: Sequence[str], resamples: int) -> dict:
    """Concept -> overall estimates of its runs; gives metric -> Estimate over concepts, runs of one averaged first."""
    found = {}
    for name in metrics:
        means, images = [], 0
        for runs in results.values():
            has = [run[name] for run in runs if name in run]
            if has:
                means.append(sum(one.mean for one in has) / len(has))
                images += sum(one.images for one in has)
        if means:
            found[name] = estimate(means, resamples, images)
    return found
