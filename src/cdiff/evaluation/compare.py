"""Two runs on the same prompts and seeds: the difference, image by image, with its interval, and who wins how often."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cdiff.errors import UserError
from cdiff.evaluation.rows import Row
from cdiff.evaluation.summary import Estimate, estimate

Key = tuple[str, int, int | None]  # prompt, index, seed


@dataclass(frozen=True)
class Comparison:
    """B against A. Everything is over the pairs alone, so a mean may differ from the run's own."""

    a: dict[str, float]  # metric -> mean over prompts
    b: dict[str, float]
    difference: dict[str, Estimate]  # B minus A
    win_rate: dict[str, Estimate]  # share of pairs in which B is above A; equal counts as half
    pairs: int
    unpaired: tuple[int, int]  # scored images of A and of B without a partner

    def as_json(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs,
            "unpaired_a": self.unpaired[0],
            "unpaired_b": self.unpaired[1],
            "metrics": {
                name: {
                    "a": self.a[name],
                    "b": self.b[name],
                    "difference": self.difference[name].as_json(),
                    "win_rate": self.win_rate[name].as_json(),
                }
                for name in self.difference
            },
        }


def compare(rows_a: Iterable[Row], rows_b: Iterable[Row], metrics: Sequence[str], resamples: int) -> Comparison:
    """Pair the rows of B with those of A by prompt, index and seed.

    Differences are averaged per prompt first; the intervals are bootstrapped over prompts.

    Raises:
        UserError: nothing in common, or images of one prompt that started from other noise.
    """
    of_a = {_key(row): tuple(row.values.get(name, math.nan) for name in metrics) for row in rows_a if not row.fault}
    prompts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    pairs, lonely_b, count_a = 0, 0, len(of_a)
    other_seed = {key[:2] for key in of_a}
    seeds_differ = False
    for row in rows_b:
        if row.fault:
            continue
        values_a = of_a.pop(_key(row), None)
        if values_a is None:
            lonely_b += 1
            seeds_differ = seeds_differ or _key(row)[:2] in other_seed
            continue
        pairs += 1
        for name, value_a in zip(metrics, values_a, strict=True):
            value_b = row.values.get(name, math.nan)
            if not (math.isnan(value_a) or math.isnan(value_b)):
                prompts.setdefault(name, {}).setdefault(row.prompt, []).append((value_a, value_b))
    if not pairs:
        why = "their images were drawn with other seeds: use the same seed=" if seeds_differ else "no prompt in common"
        raise UserError(f"The two runs can't be compared pair by pair: {why}.")
    return _comparison(prompts, resamples, pairs, (count_a - pairs, lonely_b))


def _key(row: Row) -> Key:
    return row.prompt, row.index, row.seed


def _comparison(
    prompts: dict[str, dict[str, list[tuple[float, float]]]], resamples: int, pairs: int, unpaired: tuple[int, int]
) -> Comparison:
    mean_a, mean_b, difference, wins = {}, {}, {}, {}
    for name, groups in prompts.items():
        images = sum(map(len, groups.values()))
        mean_a[name] = _mean([_mean([a for a, _ in group]) for group in groups.values()])
        mean_b[name] = _mean([_mean([b for _, b in group]) for group in groups.values()])
        difference[name] = estimate([_mean([b - a for a, b in g]) for g in groups.values()], resamples, images)
        wins[name] = estimate([_mean([_win(a, b) for a, b in g]) for g in groups.values()], resamples, images)
    return Comparison(mean_a, mean_b, difference, wins, pairs, unpaired)


def _win(a: float, b: float) -> float:
    return 0.5 if a == b else float(b > a)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
