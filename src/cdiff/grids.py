"""Images on disk: one PNG a picture with its prompt and seed inside, `prompts.json`, and a grid to look at.

Only Pillow here: a report or a metric reads what sampling wrote without loading a model.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from cdiff import __version__
from cdiff.errors import UserError

if TYPE_CHECKING:
    from cdiff.sampling import Request

SLUG_LENGTH = 60  # characters of a prompt kept in a file name; file systems allow 255 bytes
PROMPTS_FILE = "prompts.json"
GRID_FILE = "grid.png"
CELL_PIXELS = (256, 768)  # a cell of the grid is at least and at most this wide, whatever the images are
GRID_PIXELS = 12_000  # the longer side of a grid never exceeds this
LABEL_LINES = 4
WRITERS = 8  # threads that write pictures


def printable(text: str) -> str:
    """Text that every encoder takes: lone surrogates (bytes of a foreign locale) and NUL become a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")


def slug(text: str) -> str:
    """The letters and digits of a prompt joined by dashes, in plain ASCII: safe on every file system.

    >>> slug("A photo of a <new1> dog, très/chic")
    'a-photo-of-a-new1-dog-tres-chic'
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:SLUG_LENGTH].strip("-") or "prompt"


def file_names(requests: Sequence[Request]) -> list[str]:
    """`<prompt slug>-<index>.png` for each request; prompts that share a slug add 8 hex digits of their hash."""
    owners: dict[str, set[str]] = {}
    for request in requests:
        owners.setdefault(slug(request.prompt), set()).add(request.prompt)
    names = []
    for request in requests:
        stem = slug(request.prompt)
        if len(owners[stem]) > 1:
            stem += "-" + hashlib.sha256(request.prompt.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        names.append(f"{stem}-{request.index}.png")
    return names


def write_samples(
    folder: str | Path,
    images: Sequence[Image.Image],
    requests: Sequence[Request],
    settings: Mapping[str, object] | None = None,
) -> list[Path]:
    """Write one PNG a request and, last, `prompts.json`: file name -> {prompt, seed, index}.

    Args:
        settings: further facts for the PNGs' text chunks (sampler, steps, guidance_scale, model ...).

    Raises:
        UserError: when the folder can't be written.
    """
    folder = Path(folder)
    names = file_names(requests)
    index: dict[str, dict[str, object]] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        index |= save_all(folder, names, images, requests, settings)
        write_index(folder, index)
    except OSError as error:
        raise UserError(
            f"The images can't be written into {folder} ({error.strerror or error}); name another folder: output=DIR."
        ) from error
    return [folder / name for name in names]


def save_all(
    folder: Path,
    names: Sequence[str],
    images: Sequence[Image.Image],
    requests: Sequence[Request],
    settings: Mapping[str, object] | None = None,
) -> dict[str, dict[str, object]]:
    """`save_sample` for each, several at a time: a PNG is packed outside Python's lock.
    Returns the entries of prompts.json. The first file that can't be written raises its OSError."""
    with ThreadPoolExecutor(min(WRITERS, os.cpu_count() or 1)) as pool:
        each = zip(names, images, requests, strict=True)
        saved = [(n, pool.submit(save_sample, folder / n, image, request, settings)) for n, image, request in each]
        try:
            return {name: one.result() for name, one in saved}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def save_sample(
    path: Path, image: Image.Image, request: Request, settings: Mapping[str, object] | None = None
) -> dict[str, object]:
    """One PNG with its facts in text chunks; returns its entry of prompts.json."""
    entry: dict[str, object] = {"prompt": printable(request.prompt), "seed": request.seed, "index": request.index}
    text = PngInfo()
    for key, value in (entry | {"software": f"cdiff {__version__}"} | dict(settings or {})).items():
        text.add_text(key, printable(str(value)))
    image.save(path, pnginfo=text)
    return entry


def write_index(folder: Path, index: Mapping[str, Mapping[str, object]]) -> None:
    """prompts.json of a folder, whole or as it was."""
    partial = folder / (PROMPTS_FILE + ".part")
    partial.write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, folder / PROMPTS_FILE)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The text chunks of a PNG that `write_samples` wrote."""
    with Image.open(path) as image:
        image.load()
        return dict(image.text)


def write_grid(path: str | Path, images: Sequence[Image.Image], requests: Sequence[Request]) -> Path:
    """One row a prompt in the order of the requests, one column an index; see `grid`."""
    rows: dict[str, list[Image.Image]] = {}
    for image, request in zip(images, requests, strict=True):
        rows.setdefault(request.prompt, []).append(image)
    columns = max(len(row) for row in rows.values())
    cells = [cell for row in rows.values() for cell in row + [None] * (columns - len(row))]
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        grid(cells, columns, list(rows)).save(path)
    except OSError as error:
        raise UserError(f"The grid {path} can't be written ({error.strerror or error}).") from error
    return path


def grid(images: Sequence[Image.Image | None], columns: int, labels: Sequence[str]) -> Image.Image:
    """Images in rows of `columns`, each row under its label.

    Small images are enlarged and large ones reduced (`CELL_PIXELS`), so that a grid is pleasant to look at.

    Args:
        images: row by row; None leaves a cell empty.
        labels: one a row, wrapped to the row's width and cut after a few lines.
    """
    rows = -(-len(images) // columns)
    assert rows and len(labels) == rows, f"{len(labels)} labels for {rows} rows"
    width, height = next(image.size for image in images if image is not None)
    scale = min(max(1.0, CELL_PIXELS[0] / width), CELL_PIXELS[1] / width, GRID_PIXELS / (columns * width))
    scale = min(scale, GRID_PIXELS / (rows * height * 1.25))
    cell = (max(1, round(width * scale)), max(1, round(height * scale)))
    gap = max(4, cell[0] // 32)
    size = max(16, cell[0] // 15)
    font = ImageFont.load_default(size=size)
    line = round(size * 1.3)
    texts = [wrap(label, font, columns * (cell[0] + gap) - gap) for label in labels]
    sheet_height = gap + sum(len(text) * line + gap // 2 + cell[1] + 2 * gap for text in texts) - gap
    sheet = Image.new("RGB", (gap + columns * (cell[0] + gap), sheet_height), "white")
    draw = ImageDraw.Draw(sheet)
    top = gap
    for row, text in enumerate(texts):
        for words in text:
            draw.text((gap, top), words, fill=(40, 40, 40), font=font)
            top += line
        top += gap // 2
        for column, image in enumerate(images[row * columns : (row + 1) * columns]):
            if image is not None:
                resized = image.convert("RGB").resize(cell, Image.Resampling.LANCZOS)
                sheet.paste(resized, (gap + column * (cell[0] + gap), top))
        top += cell[1] + 2 * gap
    return sheet


def wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """At most `LABEL_LINES` lines of `width` pixels; words longer than a line are broken, what is left over is cut."""
    lines = [""]
    # Pillow's font has no accented letters: their base letters are readable, boxes are not.
    plain = "".join(c for c in unicodedata.normalize("NFKD", printable(text)) if not unicodedata.combining(c))
    for word in plain.split():
        while word:
            joined = f"{lines[-1]} {word}" if lines[-1] else word
            if font.getlength(joined) <= width:
                lines[-1], word = joined, ""
            elif lines[-1]:
                lines.append("")
            else:
                fit = max(1, next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= width))
                lines[-1], word = word[:fit], word[fit:]
        if len(lines) > LABEL_LINES:
            last = lines[LABEL_LINES - 1]
            while last and font.getlength(last + " ...") > width:
                last = last[:-1]
            return [*lines[: LABEL_LINES - 1], last + " ..."]
    return lines
