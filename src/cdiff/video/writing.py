"""Clips on disk: a GIF each, an MP4 beside it, the frames on request, prompts.json and a contact sheet.

Every file is written beside its name and renamed, so that what is there is whole; a task that is stopped leaves the
clips it has finished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from PIL import Image

from cdiff import __version__, console
from cdiff.errors import UserError
from cdiff.grids import file_names, grid, printable, save_sample, write_index
from cdiff.schema import VideoConfig

if TYPE_CHECKING:
    from cdiff.sampling import Request

SHEET_FILE = "sheet.png"
SHEET_FRAMES = 8  # of a clip, evenly spaced
SHEET_PIXELS = 256  # of a frame's longer side
NO_FFMPEG = "the GIF is written, but no MP4: imageio-ffmpeg is missing (pip install 'cdiff[video]')"


def find_ffmpeg() -> ModuleType | None:
    """imageio_ffmpeg with an ffmpeg that it finds; None where there is none."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return None
    return imageio_ffmpeg


class ClipWriter:
    """Writes clips into FOLDER as they are drawn, frames into FRAMES where `conf.keep_frames` asks for them."""

    def __init__(
        self,
        folder: Path,
        frames: Path,
        requests: Sequence[Request],
        conf: VideoConfig,
        facts: Mapping[str, object],
        ffmpeg: ModuleType | None,
    ) -> None:
        """`facts`: of how the clips were drawn, for the metadata; `ffmpeg`: what `find_ffmpeg` found."""
        self.folder, self.frames, self.conf, self.facts, self.ffmpeg = folder, frames, conf, facts, ffmpeg
        self.names = {request: Path(name).stem for request, name in zip(requests, file_names(requests), strict=True)}
        self.index: dict[str, dict[str, object]] = {}
        self.frame_index: dict[str, dict[str, object]] = {}
        self.rows: list[tuple[str, list[Image.Image]]] = []  # of the sheet

    def add(self, request: Request, frames: Sequence[Image.Image]) -> Path:
        """One clip; returns its GIF.

        Raises:
            UserError: when the folder can't be written.
        """
        stem = self.names[request]
        entry: dict[str, object] = {"prompt": printable(request.prompt), "seed": request.seed, "index": request.index}
        entry |= {"frames": len(frames), "fps": self.conf.fps}
        comment = json.dumps(entry | {"software": f"cdiff {__version__}"} | dict(self.facts), default=str)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            gif = self.folder / f"{stem}.gif"
            write_gif(gif, frames, self.conf.fps, comment)
            if self.ffmpeg is not None and self._write_mp4(gif.with_suffix(".mp4"), frames, comment):
                entry["mp4"] = f"{stem}.mp4"
            if self.conf.keep_frames:
                self._write_frames(stem, request, frames)
            self.index[gif.name] = entry | dict(self.facts)
            write_index(self.folder, self.index)
        except OSError as error:
            raise UserError(
                f"The clips can't be written into {self.folder} ({error.strerror or error}); name another folder: "
                "output=DIR."
            ) from error
        self.rows.append((f"{request.prompt} (seed {request.seed})", [_small(f) for f in spaced(frames, SHEET_FRAMES)]))
        return gif

    def sheet(self) -> Path:
        """The contact sheet of all clips added: a row a clip."""
        path = self.folder / SHEET_FILE
        columns = max(len(frames) for _, frames in self.rows)
        cells = [cell for _, row in self.rows for cell in row + [None] * (columns - len(row))]
        partial = path.with_name(f".{path.name}.part")
        try:
            grid(cells, columns, [label for label, _ in self.rows]).save(partial, format="PNG")
            os.replace(partial, path)
        except OSError as error:
            raise UserError(f"The contact sheet {path} can't be written ({error.strerror or error}).") from error
        return path

    def _write_mp4(self, path: Path, frames: Sequence[Image.Image], comment: str) -> bool:
        """Whether it was written; where ffmpeg fails, it is said once and not tried again."""
        try:
            write_mp4(path, frames, self.conf.fps, comment, self.ffmpeg)
        except OSError as error:
            if error.errno is not None:
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            console.warn(f"the GIF is written, but no MP4: ffmpeg failed ({lines[-1] if lines else 'no reason given'})")
            self.ffmpeg = None
            return False
        return True

    def _write_frames(self, stem: str, request: Request, frames: Sequence[Image.Image]) -> None:
        """As samples are written, so that task=evaluate images=FRAMES scores them; `index` counts on over the clips of
        a prompt."""
        self.frames.mkdir(parents=True, exist_ok=True)
        for number, frame in enumerate(frames):
            name = f"{stem}-{number:03d}.png"
            entry = save_sample(self.frames / name, frame, request, dict(self.facts) | {"frame": number})
            self.frame_index[name] = entry | {"index": request.index * len(frames) + number}
        write_index(self.frames, self.frame_index)


def spaced(frames: Sequence[Image.Image], count: int) -> list[Image.Image]:
    """At most `count` frames from the first to the last, evenly spaced."""
    if len(frames) <= count:
        return list(frames)
    return [frames[round(place * (len(frames) - 1) / (count - 1))] for place in range(count)]


def write_gif(path: Path, frames: Sequence[Image.Image], fps: int, comment: str) -> None:
    """An endless GIF. A GIF's clock has hundredths of a second."""
    partial = path.with_name(f".{path.name}.part")
    first, *rest = frames
    options = {"duration": round(1000 / fps), "loop": 0, "comment": comment.encode("ascii", "replace")}
    try:
        first.save(partial, format="GIF", save_all=True, append_images=rest, **options)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_mp4(path: Path, frames: Sequence[Image.Image], fps: int, comment: str, ffmpeg: ModuleType) -> None:
    """H.264, which every browser plays.

    Raises:
        OSError: without errno where ffmpeg itself fails; its text is ffmpeg's.
    """
    partial = path.with_name(f".{path.stem}.part.mp4")
    more = ["-metadata", f"comment={comment}", "-movflags", "+faststart"]
    try:
        encoder = ffmpeg.write_frames(
            str(partial), frames[0].size, fps=fps, quality=8, macro_block_size=2, output_params=more
        )
        encoder.send(None)
        for frame in frames:
            encoder.send(frame.convert("RGB").tobytes())
        encoder.close()
        if not partial.is_file():
            raise OSError("ffmpeg wrote no file")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _small(frame: Image.Image) -> Image.Image:
    small = frame.copy()
    small.thumbnail((SHEET_PIXELS, SHEET_PIXELS))
    return small
