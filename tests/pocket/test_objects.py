"""Objects: deterministic, recognisable, mostly of the colour they are named after."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from PIL import Image

from cdiff.pocket.world.canvas import Canvas
from cdiff.pocket.world.objects import draw_object
from cdiff.pocket.world.palette import FAMILIES, distance, main_color
from cdiff.pocket.world.spec import COLORS, OBJECT_KINDS, Identity, Subject


def shot(
    kind: str, color: str, seed: int, pose: int = 0, phase: float = 0.0, flip: bool = False, backdrop=(255, 0, 255)
) -> Image.Image:
    subject = Subject(Identity(kind, color, seed), 0.5, 0.86, 0.6, flip, pose, phase)
    canvas = Canvas(Image.new("RGB", (128, 128), backdrop))
    draw_object(canvas.frame(subject.x, subject.y, subject.size, subject.flip), subject)
    return canvas.finish()


def coverage(kind: str, color: str, seed: int) -> float:
    """The share of the object's pixels that are a lighter or darker shade of its main colour."""
    a, b = (np.asarray(shot(kind, color, seed, backdrop=c)).astype(float) for c in ((255, 0, 255), (0, 255, 0)))
    pixels = a[np.abs(a - b).sum(2) < 12]
    main = np.array(main_color(color, random.Random(f"{kind}/{seed}")), dtype=float)
    shades = [main * k for k in np.linspace(0.5, 1.0, 8)] + [main + (255 - main) * k for k in np.linspace(0.0, 0.45, 6)]
    return float((np.min([np.abs(pixels - s).max(1) for s in shades], axis=0) < 26).mean())


@pytest.mark.parametrize("kind", OBJECT_KINDS)
def test_draws_every_color_the_same_each_time(kind):
    for seed, color in enumerate(COLORS):
        first = shot(kind, color, seed, pose=seed, phase=0.3)
        assert first.tobytes() == shot(kind, color, seed, pose=seed, phase=0.3).tobytes()
        assert (
            len(set(first.getdata() if not hasattr(first, "get_flattened_data") else first.get_flattened_data())) > 30
        )


@pytest.mark.parametrize("kind", OBJECT_KINDS)
def test_identities_differ_and_poses_do_not_change_them_much(kind):
    def gap(a, b):
        return np.abs(np.asarray(a).astype(float) - np.asarray(b)).mean()

    others = [gap(shot(kind, "red", k), shot(kind, "red", k + 1)) for k in range(12)]
    poses = [gap(shot(kind, "red", k), shot(kind, "red", k, pose=k + 1)) for k in range(12)]
    assert min(others) > 1.0
    assert np.mean(others) > np.mean(poses)


@pytest.mark.parametrize("kind", OBJECT_KINDS)
def test_main_color_covers_most(kind):
    shares = [coverage(kind, COLORS[k % 11], k) for k in range(33)]
    # A car has glass and tyres, a clock has its face.
    assert np.mean(shares) > {"car": 0.42, "clock": 0.5}.get(kind, 0.6)
    assert min(shares) > 0.25


def test_a_cycle_ends_where_it_began():
    for kind in OBJECT_KINDS:
        a, b = (np.asarray(shot(kind, "blue", 3, phase=p)).astype(int) for p in (0.0, 1.0))
        assert np.abs(a - b).max() <= 90 and np.abs(a - b).mean() < 0.2


def test_families_lie_apart():
    rng = random.Random(0)
    shades = {name: [main_color(name, rng) for _ in range(40)] for name in FAMILIES}
    for a in FAMILIES:
        for b in FAMILIES:
            if a < b:
                assert min(distance(p, q) for p in shades[a] for q in shades[b]) > 40, (a, b)


def test_fast_once_sketched():
    subjects = [Subject(Identity(k, "red", s), 0.5, 0.86, 0.6) for k in OBJECT_KINDS for s in range(4)]
    canvas = Canvas(Image.new("RGB", (128, 128), (200, 200, 200)))
    best = 1.0
    for _ in range(4):
        start = time.process_time()
        for subject in subjects:
            draw_object(canvas.frame(0.5, 0.86, 0.6), subject)
        best = min(best, (time.process_time() - start) / len(subjects))
    assert best < 0.003  # about 0.0005 on a quiet core
