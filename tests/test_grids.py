"""Images, their metadata and grids on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from cdiff import __version__
from cdiff.errors import UserError
from cdiff.grids import GRID_PIXELS, file_names, grid, read_metadata, slug, write_grid, write_samples
from cdiff.sampling import Request

STRANGE = [
    "../../etc/passwd",
    "x" * 500,
    "a\\b:c*?",
    "犬の写真 🐶",
    "",
    ".",
    "CON",
    "grid",
    "a\0b",
    "\udc80 bytes",
    "a\nb\tc",
]


def picture(level: int = 0, size: int = 16) -> Image.Image:
    return Image.new("RGB", (size, size), (level, 100, 255 - level))


def test_metadata_is_read_back(tmp_path):
    prompt = "a <new1> dog, très joli 🐶"
    [file] = write_samples(tmp_path, [picture()], [Request(prompt, 3, 77)], {"sampler": "ddim", "steps": 25})
    found = read_metadata(file)
    assert found["prompt"] == prompt and found["seed"] == "77" and found["index"] == "3"
    assert found["sampler"] == "ddim" and found["steps"] == "25" and found["software"] == f"cdiff {__version__}"
    index = json.loads((tmp_path / "prompts.json").read_text(encoding="utf-8"))
    assert index == {file.name: {"prompt": prompt, "seed": 77, "index": 3}}


def test_strange_prompts_make_safe_and_different_names(tmp_path):
    prompts = [*STRANGE, "犬の写真 🐱", "a photo of a <new1> dog", "a photo of a (new1) dog"]
    requests = [Request(prompt, index, index) for prompt in prompts for index in range(2)]
    images = [picture(i) for i in range(len(requests))]
    files = write_samples(tmp_path / "s", images, requests)
    assert len({file.name.lower() for file in files}) == len(requests)
    assert {file.parent for file in files} == {tmp_path / "s"} and all(file.is_file() for file in files)
    assert all(len(file.name) < 100 and file.name.isascii() for file in files)
    for image, file in zip(images, files):
        assert Image.open(file).tobytes() == image.tobytes()
    write_grid(tmp_path / "s" / "grid.png", images, requests)
    assert len(json.loads((tmp_path / "s" / "prompts.json").read_text(encoding="utf-8"))) == len(requests)


def test_slug_and_names():
    assert slug("A photo of a <new1> dog, très/chic") == "a-photo-of-a-new1-dog-tres-chic"
    assert file_names([Request("a dog", 0, 0), Request("a cat", 1, 0)]) == ["a-dog-0.png", "a-cat-1.png"]


@pytest.mark.parametrize("size", [16, 128, 1024])
def test_grid_has_a_row_a_prompt_under_its_words(tmp_path, size):
    requests = [Request(prompt, index, 0) for prompt in ("a dog", "a cat " * 80) for index in range(3)]
    path = write_grid(tmp_path / "grid.png", [picture(size=size) for _ in requests], requests)
    sheet = Image.open(path)
    assert sheet.width >= 3 * 256 and max(sheet.size) <= GRID_PIXELS * 1.1
    words = np.asarray(sheet.convert("L").crop((0, 0, sheet.width, sheet.width // 25)))
    assert (words < 100).sum() > 50


def test_grid_with_rows_of_different_length():
    sheet = grid([picture(), None], 2, ["one"])
    assert sheet.getpixel((sheet.width - 20, sheet.height - 20)) == (255, 255, 255)


def test_a_grid_of_many_rows_stays_within_bounds():
    assert max(grid([picture(size=512)] * 60, 1, ["a dog"] * 60).size) <= GRID_PIXELS


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "s").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        write_samples(tmp_path / "s", [picture()], [Request("a", 0, 0)])
