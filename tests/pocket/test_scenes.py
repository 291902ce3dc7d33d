"""Backgrounds: deterministic, varied, distinct, and free once drawn."""

from __future__ import annotations

import time

import numpy as np
import pytest

from cdiff.pocket.world import scenes
from cdiff.pocket.world.spec import SCENES


@pytest.mark.parametrize("name", SCENES)
def test_draws_deterministically_and_varies(name):
    first = scenes.background(name, 3)
    assert first.size == (128, 128) and first.mode == "RGB"
    assert scenes.background(name, 3 + scenes.VARIANTS) is first
    bytes_before = first.tobytes()
    scenes._background.cache_clear()
    assert scenes.background(name, 3).tobytes() == bytes_before
    assert len({scenes.background(name, k).tobytes() for k in range(6)}) == 6


@pytest.mark.parametrize("name", SCENES)
def test_looks_the_same_at_other_resolutions(name):
    small = np.asarray(scenes.background(name, 5, 64)).astype(float)
    large = np.asarray(scenes.background(name, 5, 128).reduce(2)).astype(float)
    assert np.abs(small - large).mean() < 6.0


@pytest.mark.parametrize("name", SCENES)
def test_ground_is_a_range_in_the_lower_part(name):
    for seed in range(scenes.VARIANTS):
        far, near = scenes.ground(name, seed)
        assert 0.35 < far < near - 0.08 and near < 1.0


def test_warm_background_costs_nothing():
    scenes.background("jungle", 1)
    start = time.process_time()
    for _ in range(2000):
        scenes.background("jungle", 1)
    assert (time.process_time() - start) / 2000 < 0.0001
