"""What lies beside a concept's pictures: captions and masks."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from cdiff.data.images import Picture, read_folder, read_picture
from cdiff.data.listing import METADATA, mask_file, read_metadata
from cdiff.errors import UserError

ASPECT = 0.02  # by how much a mask's proportions may differ from its picture's
log = logging.getLogger("cdiff")


def read_concept(place: Path, max_side: int | None = None, captions: bool = True) -> list[Picture]:
    """The usable pictures of a folder or list, each with its own caption and mask where there is one.

    captions: false leaves them out. Masks are resized to their picture.

    Raises:
        UserError: no picture can be used, or a caption or mask that is there can't be.
    """
    pictures = read_folder(place, max_side)
    texts = captions_of([picture.path for picture in pictures], place) if captions else {}
    found = [replace(p, caption=texts.get(p.path), mask=read_mask(p, max_side)) for p in pictures]
    counts = {"captions": sum(p.caption is not None for p in found), "masks": sum(p.mask is not None for p in found)}
    if any(counts.values()):
        log.info("%s: %d pictures, %d captions, %d masks", place, len(found), counts["captions"], counts["masks"])
    return found


def captions_of(files: Sequence[Path], place: Path) -> dict[Path, str]:
    """The caption of each file that has one: NAME.txt beside it, else its line in metadata.jsonl.

    place: the folder, or the list, which is asked too when it is a .jsonl itself.

    Raises:
        UserError: a file of captions that can't be read.
    """
    found = {}
    tables = {place} if place.suffix.lower() == ".jsonl" else set()
    for folder in {path.parent for path in files}:
        tables |= {folder / METADATA} if (folder / METADATA).is_file() else set()
    for table in tables:
        named = {table.parent / name: clean(text) for name, text in read_metadata(table) if text and clean(text)}
        if lost := [path for path in named if path not in files]:
            log.warning("%s: %d of its captions are of no picture used (%s)", table, len(lost), lost[0].name)
        found |= named
    for path in files:
        file = path.with_suffix(".txt")
        if file.is_file() and file != place:
            text = clean(_read(file))
            if text:
                found[path] = text
    return {path: found[path] for path in files if path in found}


def read_mask(picture: Picture, max_side: int | None = None) -> Image.Image | None:
    """The mask of a picture, L and of its image's size; None without one.

    Raises:
        UserError: a mask that can't be read, has other proportions than its picture, or shows nothing.
    """
    file = mask_file(picture.path)
    if file is None:
        return None
    mask = read_picture(file, max_side).image.convert("L")
    own, wanted = mask.width / mask.height, picture.image.width / picture.image.height
    if abs(own / wanted - 1) > ASPECT:
        sizes = f"{mask.width} x {mask.height} for {picture.image.width} x {picture.image.height}"
        raise UserError(f"The mask {file} has other proportions than its picture ({sizes}): draw it on the picture.")
    if mask.getextrema()[1] == 0:
        raise UserError(f"The mask {file} is all black: white marks what is learned.")
    return mask.resize(picture.image.size, Image.Resampling.BILINEAR)


def own_caption(text: str, token: str, class_word: str) -> str:
    """A user's caption with the concept in it: at "{}", at the token, before the class word, else in front of all.

    "a dog on grass" -> "a <new1> dog on grass"; "lying on grass" -> "a <new1> dog, lying on grass".
    """
    subject = f"{token} {class_word}"
    if "{}" in text:
        return text.replace("{}", subject)
    if token in text:
        return text
    place = _word_place(text, class_word)
    if place is None:
        return f"a {subject}, {text}"
    return f"{text[:place]}{token} {text[place:]}"


def _word_place(text: str, word: str) -> int | None:
    found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
    return found.start() if found else None


def clean(text: str) -> str:
    """One line, single spaces."""
    return " ".join(text.split())


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The caption {file} can't be read as UTF-8 text.") from error
