"""What a clip leaves on the disk."""

from __future__ import annotations

import builtins
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from cdiff.errors import UserError
from cdiff.evaluation.folders import read_image_folder
from cdiff.sampling import Request
from cdiff.schema import VideoConfig
from cdiff.video.writing import ClipWriter, find_ffmpeg, spaced, write_gif, write_mp4

REQUESTS = [Request("a <new1> dog", 0, 7), Request("a <new1> dog", 1, 8), Request("très/chic", 0, 9)]
FACTS = {"sampler": "ddim", "model": "tiny"}


def frames_of(seed: int, count: int = 5, size=(48, 32)) -> list[Image.Image]:
    """A square that moves over one colour."""
    out = []
    for number in range(count):
        frame = Image.new("RGB", size, (30 * seed % 256, 90, 200))
        frame.paste((250, 20, 20), (4 * number, 8, 4 * number + 12, 20))
        out.append(frame)
    return out


def writer(folder: Path, ffmpeg=None, **conf) -> ClipWriter:
    return ClipWriter(folder / "clips", folder / "frames", REQUESTS, VideoConfig(**conf), FACTS, ffmpeg)


def played(path: Path) -> list[np.ndarray]:
    with Image.open(path) as clip:
        return [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(clip)]


def test_gifs_metadata_and_the_sheet(tmp_path):
    made = writer(tmp_path, fps=10)
    for number, request in enumerate(REQUESTS, 1):
        made.add(request, frames_of(number))
    names = ["a-new1-dog-0.gif", "a-new1-dog-1.gif", "tres-chic-0.gif"]
    index = json.loads((tmp_path / "clips" / "prompts.json").read_text(encoding="utf-8"))
    assert list(index) == names
    assert index[names[1]] == {"prompt": "a <new1> dog", "seed": 8, "index": 1, "frames": 5, "fps": 10, **FACTS}
    shown = played(tmp_path / "clips" / names[0])
    assert len(shown) == 5 and all(np.abs(a - np.asarray(b)).max() <= 2 for a, b in zip(shown, frames_of(1)))
    with Image.open(tmp_path / "clips" / names[2]) as clip:
        assert clip.info["duration"] == 100 and clip.info["loop"] == 0
        assert json.loads(clip.info["comment"]) | {"software": ""} == index[names[2]] | {"software": ""}
    sheet = made.sheet()
    with Image.open(sheet) as image:
        assert image.width >= 5 * 256 and sheet.name == "sheet.png"
    assert {file.name for file in (tmp_path / "clips").iterdir()} == {*names, "prompts.json", "sheet.png"}
    assert not (tmp_path / "frames").exists()


def test_frames_on_request_can_be_scored_as_images(tmp_path):
    made = writer(tmp_path, keep_frames=True)
    for number, request in enumerate(REQUESTS[:2], 1):
        made.add(request, frames_of(number, 3))
    jobs = read_image_folder(tmp_path / "frames")
    assert [job.file for job in jobs] == [f"a-new1-dog-{clip}-{n:03d}.png" for clip in (0, 1) for n in range(3)]
    assert [job.index for job in jobs] == list(range(6)) and {job.text for job in jobs} == {"a dog"}
    with Image.open(jobs[4].path) as image:
        assert np.array_equal(np.asarray(image), np.asarray(frames_of(2, 3)[1])) and image.text["frame"] == "1"


def test_an_mp4_plays_the_same_frames(tmp_path):
    ffmpeg = find_ffmpeg()
    if ffmpeg is None:
        pytest.skip("imageio-ffmpeg is an extra")
    made = writer(tmp_path, ffmpeg, fps=8)
    made.add(REQUESTS[0], frames_of(1))
    index = json.loads((tmp_path / "clips" / "prompts.json").read_text())
    file = tmp_path / "clips" / index["a-new1-dog-0.gif"]["mp4"]
    reader = ffmpeg.read_frames(str(file))
    about = next(reader)
    shown = [np.frombuffer(data, np.uint8).reshape(32, 48, 3).astype(int) for data in reader]
    assert about["fps"] == 8 and about["size"] == (48, 32) and about["codec"] == "h264"
    assert len(shown) == 5 and all(np.abs(a - np.asarray(b)).mean() < 12 for a, b in zip(shown, frames_of(1)))
    assert not list((tmp_path / "clips").glob(".*"))


def test_without_ffmpeg(monkeypatch):
    real = builtins.__import__

    def lacking(name, *rest, **named):
        if name == "imageio_ffmpeg":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", lacking)
    assert find_ffmpeg() is None


class BrokenFfmpeg:
    """Fails as imageio_ffmpeg does when its process dies: an OSError without a number, ffmpeg's text in it."""

    calls = 0

    def write_frames(self, *_args, **_named):
        self.calls += 1
        yield
        raise OSError("FFMPEG STDERR OUTPUT:\n\nUnknown encoder 'libx264'\n")


def test_an_ffmpeg_that_fails_is_told_once(tmp_path, caplog):
    broken = BrokenFfmpeg()
    made = writer(tmp_path, broken)
    with caplog.at_level(logging.WARNING):
        for request in REQUESTS[:2]:
            made.add(request, frames_of(1))
    told = [record.message for record in caplog.records]
    assert told == ["the GIF is written, but no MP4: ffmpeg failed (Unknown encoder 'libx264')"]
    assert broken.calls == 1
    assert {f.name for f in (tmp_path / "clips").iterdir()} == {"a-new1-dog-0.gif", "a-new1-dog-1.gif", "prompts.json"}


def test_a_file_that_can_not_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    target = tmp_path / "a.gif"
    write_gif(target, frames_of(1), 8, "")
    before = target.read_bytes()

    def fails(self, path, **_named):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OSError, match="No space"):
        write_gif(target, frames_of(2), 8, "")
    assert target.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ["a.gif"]
    with pytest.raises(UserError, match="No space left on device"):
        writer(tmp_path).add(REQUESTS[0], frames_of(1))


def test_an_mp4_is_whole_or_not_there(tmp_path):
    with pytest.raises(OSError, match="Unknown encoder"):
        write_mp4(tmp_path / "a.mp4", frames_of(1), 8, "", BrokenFfmpeg())
    assert not list(tmp_path.iterdir())


def test_the_sheet_shows_first_and_last():
    assert spaced(list(range(16)), 8) == [0, 2, 4, 6, 9, 11, 13, 15]
    assert spaced(list(range(3)), 8) == [0, 1, 2]
