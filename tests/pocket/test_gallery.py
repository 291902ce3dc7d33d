"""The shipped concepts: five pictures each of an individual that no model has seen, kept in the user's cache."""

from __future__ import annotations

import os
import random

import pytest
from PIL import Image

from cdiff import pocket
from cdiff.errors import UserError
from cdiff.pocket import gallery
from cdiff.pocket.world.sample import CONCEPT


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("CDIFF_CACHE", str(folder))
    return folder


@pytest.mark.parametrize("name", sorted(gallery.GALLERY))
def test_five_pictures_of_an_unseen_individual(name):
    identity, backgrounds = gallery.GALLERY[name]
    assert identity.seed >= CONCEPT and len(set(backgrounds)) == gallery.PICTURES == 5
    folder = pocket.render_concept(name)
    files = sorted(folder.iterdir())
    assert [f.name for f in files] == [f"{name}-{n}.png" for n in range(1, 6)]
    images = [Image.open(file) for file in files]
    assert all(i.size == (128, 128) and i.mode == "RGB" for i in images)
    assert len({i.tobytes() for i in images}) == 5
    assert [i.tobytes() for i in images] == [i.tobytes() for i in gallery.draw_concept(name)]


def test_the_cache_is_used_again(monkeypatch):
    folder = pocket.render_concept("dog")
    before = {f: f.stat().st_mtime_ns for f in folder.iterdir()}
    monkeypatch.setattr(gallery, "draw_concept", lambda name: pytest.fail("drawn again"))
    assert pocket.render_concept("dog") == folder
    assert {f: f.stat().st_mtime_ns for f in folder.iterdir()} == before


def test_another_description_gets_another_folder(monkeypatch):
    first = pocket.render_concept("dog")
    identity, backgrounds = gallery.GALLERY["dog"]
    monkeypatch.setitem(gallery.GALLERY, "dog", (identity, backgrounds[::-1]))
    assert pocket.render_concept("dog") != first


def test_nothing_half_done_is_left(cache):
    pocket.render_concept("dog")
    assert [p.name.split("-")[0] for p in (cache / "pocket").iterdir()] == ["dog"]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match="cat"):
        pocket.render_concept("unicorn")


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="CDIFF_CACHE"):
        pocket.render_concept("dog")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_cache_names_the_variable(cache):
    cache.mkdir(mode=0o500)
    with pytest.raises(UserError, match="CDIFF_CACHE"):
        pocket.render_concept("dog")


def test_portraits_are_large_enough_to_learn_from():
    identity, backgrounds = gallery.GALLERY["cat"]
    scenes = [gallery._portrait(random.Random(i), identity, backgrounds[0]) for i in range(20)]
    assert all(0.5 <= s.subjects[0].size <= 0.85 and s.subjects[0].phase == 0 for s in scenes)


def test_missing_weights_say_what_to_do():
    with pytest.raises(UserError, match="nothing-like-this"):
        pocket.weights_folder("nothing-like-this")
