"""A trained run of the tiny Stable Diffusion 1.5, made once through the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_job import draw_pictures, words


@pytest.fixture(scope="session")
def trained(sd15_folder, tmp_path_factory) -> Path:
    """The folder of a finished run, with validation images."""
    from cdiff.cli import main

    home = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(home)
    try:
        pictures = draw_pictures(home / "pictures")
        assert main([*words(sd15_folder, pictures), "validation.every=2", f"output={home / 'run'}"]) == 0
    finally:
        os.chdir(before)
    return home / "run"


@pytest.fixture(scope="session")
def second(sd15_folder, tmp_path_factory) -> Path:
    """A run of a cat, its token <new2>."""
    from cdiff.cli import main

    home = tmp_path_factory.mktemp("second")
    before = Path.cwd()
    os.chdir(home)
    try:
        job = [*words(sd15_folder, draw_pictures(home / "cats")), "concept.class_word=cat", "concept.token=new2"]
        assert main([*job, "train.then=[]", "seed=7", f"output={home / 'run'}"]) == 0
    finally:
        os.chdir(before)
    return home / "run"
