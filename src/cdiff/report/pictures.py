"""Pictures inside the page, as small as the page's budget asks: fewer bytes a picture before fewer pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageSequence, UnidentifiedImageError

SIDES = (256, 192, 128, 96, 64)
QUALITY = 80
TRIED = 12  # pictures encoded to guess the size of all
BASE64 = 4 / 3


class Embedder:
    """Files -> data URIs; `side` is chosen once so that all `files` stay within the budget."""

    def __init__(self, files: Sequence[Path], megabytes: float) -> None:
        unique = list(dict.fromkeys(files))
        self.budget = megabytes * 1e6
        self.side = self._side(unique)
        self.spent, self.dropped = 0, 0
        self._kept: dict[tuple[Path, int], str | None] = {}

    def _side(self, files: Sequence[Path]) -> int:
        tried = files[:: max(1, len(files) // TRIED)][:TRIED]
        for side in SIDES:
            sizes = [len(data) for file in tried if (data := encode(file, side))]
            if not sizes or BASE64 * sum(sizes) / len(sizes) * len(files) <= self.budget:
                return side
        return SIDES[-1]

    def __call__(self, file: Path, side: int | None = None) -> str | None:
        """The picture as a data URI; null when it can't be read or the budget is spent (`dropped` counts these)."""
        return self._uri(file, side or self.side, encode)

    def clip(self, file: Path) -> str | None:
        """A clip likewise, moving."""
        return self._uri(file, self.side, encode_clip)

    def _uri(self, file: Path, side: int, encoder: Callable[[Path, int], bytes | None]) -> str | None:
        key = (file, side)
        if key not in self._kept:
            data = encoder(file, side)
            uri = None if data is None else f"data:image/webp;base64,{base64.b64encode(data).decode()}"
            if uri is not None and self.spent + len(uri) > self.budget:
                self.dropped += 1
                uri = None
            self.spent += len(uri or "")
            self._kept[key] = uri
        return self._kept[key]


def encode_clip(file: Path, side: int) -> bytes | None:
    """An animated WebP of a GIF, its longer side at most `side`; null for what is no picture."""
    try:
        with Image.open(file) as clip:
            duration = int(clip.info.get("duration") or 125)
            frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(clip)]
    except (OSError, UnidentifiedImageError):
        return None
    for frame in frames:
        frame.thumbnail((side, side))
    out = io.BytesIO()
    options = {"duration": duration, "loop": 0, "quality": QUALITY, "method": 3}
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], **options)
    return out.getvalue()


def encode(file: Path, side: int) -> bytes | None:
    """WebP of the picture, its longer side at most `side`; null for what is no picture."""
    try:
        with Image.open(file) as image:
            small = image.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return None
    wide = max(small.size) / min(small.size) > 2  # several pictures in a row: `side` is each one's
    scale = (3 * side if wide else side) / max(small.size)
    if scale < 1:
        small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))))
    out = io.BytesIO()
    small.save(out, "WEBP", quality=QUALITY, method=3)
    return out.getvalue()
