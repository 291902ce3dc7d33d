"""Which picture files a folder or a list names, without opening any."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cdiff.errors import UserError

SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif",
    ".heic", ".heif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".psd", ".ico",
})  # fmt: skip
LISTS = (".txt", ".jsonl")
METADATA = "metadata.jsonl"  # one {"file_name": ..., "text": ...} a line, as hub datasets of images have it
MASK_ENDINGS = (".mask", "_mask", "-masklabel")  # dog1.mask.png is the mask of dog1.jpg
MASK_FOLDER = "masks"


def picture_files(place: Path) -> list[Path]:
    """The files of a folder in natural order of their names, masks left out; or those a list names, in its order.

    Raises:
        UserError: there is no such place, or no picture file in it.
    """
    if place.is_file() and place.suffix.lower() in LISTS:
        return listed_files(place)
    if not place.is_dir():
        fault = "is a file, not a folder of pictures or a list (.txt)" if place.exists() else "does not exist"
        raise UserError(f"The folder of pictures {place} {fault}.")
    try:
        entries = [path for path in place.iterdir() if not path.name.startswith(".")]
    except PermissionError as error:
        raise UserError(f"The folder of pictures {place} can't be read: permission denied.") from error
    files = [path for path in entries if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    if files:
        return sorted(without_masks(files), key=natural_order)
    if not entries:
        raise UserError(f"The folder of pictures {place} is empty: put a few photos of the subject there.")
    subfolders = sorted(path.name for path in entries if path.is_dir())
    hint = f"; it has subfolders ({', '.join(subfolders[:5])}): name one of them" if subfolders else ""
    raise UserError(f"The folder {place} holds no pictures (.jpg, .png, .webp ...){hint}.")


def listed_files(file: Path) -> list[Path]:
    """The pictures that a text file names, one path a line, or a metadata.jsonl; paths are relative to the list.

    Raises:
        UserError: the list can't be read, is empty, or names a file that is not there.
    """
    names = [name for name, _ in read_metadata(file)] if file.suffix.lower() == ".jsonl" else read_lines(file)
    if not names:
        raise UserError(f"The list {file} names no picture: write the path of one a line.")
    paths = [file.parent / Path(name).expanduser() for name in names]
    for path in paths:
        if not path.is_file():
            raise UserError(f"The list {file} names {path}, which is not there.")
    return list(dict.fromkeys(paths))


def read_lines(file: Path) -> list[str]:
    """Lines of a UTF-8 text file; empty ones and those that begin with # are passed over."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list {file} can't be read as UTF-8 text.") from error
    return [line for line in lines if line and not line.startswith("#")]


def read_metadata(file: Path) -> list[tuple[str, str | None]]:
    """(file name, caption or None) of each line of a metadata.jsonl.

    Raises:
        UserError: names the line that is no such record.
    """
    found = []
    for number, line in enumerate(read_lines(file), 1):
        try:
            record = json.loads(line)
            name, text = record["file_name"], record.get("text")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f'Line {number} of {file} must be {{"file_name": ..., "text": ...}}.') from error
        if not isinstance(name, str) or not (text is None or isinstance(text, str)):
            raise UserError(f"Line {number} of {file}: file_name and text must be text.")
        found.append((name, text))
    return found


def without_masks(files: list[Path]) -> list[Path]:
    """The files that are no other file's mask."""
    stems = {path.stem for path in files}
    return [path for path in files if not any(base in stems for base in _mask_bases(path.stem))]


def mask_file(picture: Path) -> Path | None:
    """The mask of a picture: NAME.mask.png, NAME_mask.png or NAME-masklabel.png beside it, or masks/NAME.png."""
    names = [f"{picture.stem}{ending}" for ending in MASK_ENDINGS]
    for folder, stems in ((picture.parent, names), (picture.parent / MASK_FOLDER, [picture.stem])):
        for stem in stems:
            for suffix in (".png", ".webp", ".jpg", ".jpeg", ".bmp", ".tif"):
                if (folder / f"{stem}{suffix}").is_file():
                    return folder / f"{stem}{suffix}"
    return None


def natural_order(path: Path) -> tuple[list[str | int], str]:
    """A key for sorting: 2.png before 10.png."""
    parts = re.split(r"(\d+)", path.name.casefold())  # text and numbers alternate, so like meets like
    return [int(part) if part.isdecimal() else part for part in parts], path.name


def _mask_bases(stem: str) -> list[str]:
    return [stem.removesuffix(ending) for ending in MASK_ENDINGS if stem.endswith(ending) and stem != ending]
