"""The loader: order, bad files, bounded reading ahead; and the cache of reference features."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
from metric_models import PROMPTS, picture

from cdiff.cache import cache_folder
from cdiff.data.images import Picture
from cdiff.errors import UserError
from cdiff.metrics import Item, iterate_images, open_metrics, prepare_references, score_items
from cdiff.schema import MetricsConfig


@pytest.fixture
def scorers(clip_folder, dino_folder):
    return open_metrics(MetricsConfig(clip=str(clip_folder), dino=str(dino_folder), batch_size=4), "photo")


@pytest.fixture
def forwards(scorers) -> list[int]:
    """Grows by the batch of every image forward of both models."""
    counted: list[int] = []
    for scorer in scorers:
        scorer.load()
        vision = getattr(scorer.network, "vision_model", scorer.network)
        vision.register_forward_hook(
            lambda _net, _args, named, _out: counted.append(len(named["pixel_values"])), with_kwargs=True
        )
    return counted


@pytest.fixture
def files(tmp_path):
    made = []
    for number in range(10):
        file = tmp_path / f"{number}.png"
        picture(number, 40 + number, 50).save(file)
        made.append(file)
    made[3].write_bytes(b"nothing")
    made[7].unlink()
    return made


def test_pictures_come_in_order_and_bad_ones_as_their_error(files):
    got = list(iterate_images(files, workers=3))
    assert [type(one) for one in got] == [UserError if n in (3, 7) else Picture for n in range(10)]
    assert [one.path for one in got if isinstance(one, Picture)] == [f for n, f in enumerate(files) if n not in (3, 7)]


def test_a_stream_gives_what_scoring_in_memory_gives(scorers, files):
    reference, other = (prepare_references(scorers, [picture(n, 60, 60)]) for n in (50, 51))
    items = [
        Item(file, PROMPTS[n % 5], (reference, other, None)[n % 3], key=("row", n)) for n, file in enumerate(files)
    ]
    scored = list(score_items(scorers, items, batch_size=4, workers=2))
    assert [one.item.key for one in scored] == [("row", n) for n in range(10)]
    for number, one in enumerate(scored):
        if number in (3, 7):
            assert one.fault and str(files[number]) in one.fault and one.values == {}
            continue
        image = picture(number, 40 + number, 50)
        for scorer in scorers:
            for name, value in scorer.score([image], [one.item.prompt], one.item.reference).items():
                np.testing.assert_allclose(one.values[name], value[0], atol=1e-6)


def test_shuffled_prompts_change_text_metrics_alone(scorers):
    images = [picture(n, 64, 64) for n in range(5)]
    reference = prepare_references(scorers, images[:2])

    def columns(prompts):
        rows = [one.values for one in score_items(scorers, [Item(i, p, reference) for i, p in zip(images, prompts)])]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    right, wrong = columns(PROMPTS), columns(PROMPTS[1:] + PROMPTS[:1])
    assert np.abs(right["clip_t"] - wrong["clip_t"]).max() > 1e-3
    assert all(np.array_equal(right[name], wrong[name]) for name in ("clip_i", "dino_i"))


def test_nothing_is_read_far_ahead_and_stopping_early_ends_the_threads(scorers):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield Item(picture(1, 32, 32), "a dog")

    stream = score_items(scorers, endless(), batch_size=4, workers=2)
    for _ in range(9):
        next(stream)
    assert len(taken) <= 12 + 2 * 4 + 2
    stream.close()
    gc.collect()
    time.sleep(0.05)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cdiff-loader")]


def test_reference_features_are_computed_once(scorers, forwards, clip_folder, dino_folder):
    from cdiff.metrics import references

    pictures = [picture(n, 50, 60) for n in (1, 2, 1)]  # one of them twice
    first = prepare_references(scorers, pictures)
    assert sorted(forwards) == [2, 2] and first.count == 3
    prepare_references(scorers, pictures)
    assert len(forwards) == 2  # from memory
    references._memory.clear()
    again = prepare_references(scorers, pictures)
    assert len(forwards) == 2  # from disk
    for name, features in first.features.items():
        assert np.array_equal(features, again.features[name]) and features.shape[0] == 3
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    prepare_references(scorers, [*pictures, picture(9, 50, 60)])
    assert forwards[2:] == [1, 1]  # the new picture alone
    assert not list(cache_folder().rglob("*.part"))


def test_another_model_or_preprocessing_shares_no_features(dino_folder, tmp_path):
    [photo] = open_metrics(MetricsConfig(names=["dino_i"], dino=str(dino_folder)), "photo")
    [own] = open_metrics(MetricsConfig(names=["dino_i"], dino=str(dino_folder)), "pocket")
    images = [picture(1, 70, 50)]
    a, b = (prepare_references([scorer], images).features["dino"] for scorer in (photo, own))
    assert photo.fingerprint() != own.fingerprint() and np.abs(a - b).max() > 1e-3


def test_a_broken_file_in_the_cache_is_computed_again(scorers, forwards):
    from cdiff.metrics import references

    first = prepare_references(scorers, [picture(1, 50, 60)])
    for file in cache_folder().rglob("*.npy"):
        file.write_bytes(file.read_bytes()[:20])
    references._memory.clear()
    again = prepare_references(scorers, [picture(1, 50, 60)])
    assert len(forwards) == 4
    assert all(np.array_equal(first.features[name], again.features[name]) for name in first.features)


def test_a_cache_that_cannot_be_written_is_done_without(scorers, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "file"))
    assert prepare_references(scorers, [picture(1, 50, 60)]).features["clip"].shape == (1, 24)


def test_no_reference_pictures(scorers):
    with pytest.raises(UserError, match="no reference pictures"):
        prepare_references(scorers, [])
