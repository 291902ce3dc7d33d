"""task=concept: a folder of pictures becomes a concept that a command line can name.

    python -m cdiff task=concept images=~/photos/rex name=rex class_word=dog
    python -m cdiff --config-dir concepts task=train concept=rex

Checks every picture, with its caption and mask, draws a contact sheet of what training will see, and writes
DIR/concept/NAME.yaml (DIR is `output`, by default concepts/).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from cdiff import catalog, console
from cdiff.concepts import HUB_PREFIX, Concept, resolve_concepts
from cdiff.data.augment import square_box
from cdiff.data.beside import own_caption, read_concept
from cdiff.data.images import Picture
from cdiff.errors import UserError
from cdiff.grids import grid
from cdiff.runs import atomic_write
from cdiff.schema import ConceptConfig, Config

SHEET_COLUMNS = 4
CELL = 256  # pixels of a picture on the contact sheet
FEW, MANY = 3, 20
DIMMED = 0.25  # brightness of what a mask leaves out, on the contact sheet


def run(cfg: Config) -> dict[str, Any]:
    """Check the pictures and write the concept. Returns the file, the sheet and what was noticed."""
    root = Path(cfg.output or "concepts")
    file, sheet = root / "concept" / f"{cfg.name}.yaml", root / "concept" / f"{cfg.name}.png"
    if cfg.name in catalog.groups()["concept"]:
        raise UserError(f"name={cfg.name}: cdiff has a concept of this name; choose another, such as my_{cfg.name}.")
    if file.exists():
        raise UserError(f"{file} exists already: choose another name=, or remove it.")
    concept = resolve(cfg)
    skipped = Skipped()
    with skipped:
        pictures = read_concept(concept.folder)
    warnings = [*skipped.sentences, *look(pictures, cfg.model.resolution)]
    write(file, sheet, concept, str(cfg.images), pictures)
    for sentence in warnings:
        console.warn(sentence)
    command = f"python -m cdiff --config-dir {root} task=train concept={cfg.name}"
    console.summary("Done", panel(pictures, file, sheet, command))
    return {"file": str(file), "sheet": str(sheet), "pictures": len(pictures), "warnings": warnings}


def resolve(cfg: Config) -> Concept:
    """The concept as a training would resolve it."""
    images = str(cfg.images)
    if not images.startswith(HUB_PREFIX):
        images = str(Path(images).expanduser().absolute())
    conf = ConceptConfig(class_word=cfg.class_word, images=images)
    return resolve_concepts(Config(model=cfg.model, method=cfg.method, concepts={str(cfg.name): conf}))[0]


class Skipped(logging.Handler):
    """Collects what the reader says of pictures that it leaves out."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.sentences: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.sentences.append(record.getMessage())

    def __enter__(self) -> None:
        logger = logging.getLogger("cdiff")
        self.before, logger.propagate = logger.propagate, False  # said once, with the other warnings
        self.others, logger.handlers = logger.handlers, [self]

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("cdiff")
        logger.propagate, logger.handlers = self.before, self.others


def look(pictures: Sequence[Picture], resolution: int) -> list[str]:
    """What the owner of the pictures should know, a sentence each."""
    found = []
    if len(pictures) < FEW:
        found.append(f"{len(pictures)} picture(s) are few: {FEW} to 10 from several sides teach a thing better.")
    if len(pictures) > MANY:
        found.append(f"{len(pictures)} pictures are many: choose the 5 to 10 best, of one and the same thing.")
    small = [p.path.name for p in pictures if min(p.image.size) < resolution]
    if small:
        found.append(f"{_named(small)}: fewer than {resolution} pixels a side, the model's own; they will be enlarged.")
    seen: dict[str, str] = {}
    for picture in pictures:
        key = hashlib.sha256(picture.image.tobytes()).hexdigest()
        if key in seen:
            found.append(f"{picture.path.name} is the same picture as {seen[key]}: remove one.")
        seen.setdefault(key, picture.path.name)
    for what in ("caption", "mask"):
        lacking = [p.path.name for p in pictures if getattr(p, what) is None]
        if 0 < len(lacking) < len(pictures):
            found.append(f"{_named(lacking)}: no {what}, while other pictures have one.")
    return found


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def write(file: Path, sheet: Path, concept: Concept, images: str, pictures: Sequence[Picture]) -> None:
    """The sheet, then the YAML: a file that is there is a whole concept."""
    kept = images if images.startswith(HUB_PREFIX) else str(concept.folder)
    settings = yaml.safe_dump({"class_word": concept.class_word, "images": kept}, allow_unicode=True, sort_keys=False)
    text = (
        f"# @package concepts.{concept.name}\n"
        f"# {concept.name}, a {concept.class_word}: {len(pictures)} pictures.\n"
        f"#   python -m cdiff --config-dir {file.parent.parent} task=train concept={concept.name}\n{settings}"
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(concept, pictures).save(sheet)
        atomic_write(file, text)
    except OSError as error:
        raise UserError(f"The concept can't be written to {file.parent} ({error.strerror or error}).") from error


def contact_sheet(concept: Concept, pictures: Sequence[Picture]) -> Image.Image:
    """The middle square of every picture, what a mask leaves out dimmed; each row under its names and captions."""
    cells = [_cell(picture) for picture in pictures]
    columns = min(SHEET_COLUMNS, len(cells))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    labels = ["; ".join(_label(picture, concept) for picture in row) for row in rows]
    return grid(cells, columns, labels)


def _cell(picture: Picture) -> Image.Image:
    image = picture.image
    if picture.mask is not None:
        image = Image.composite(image, image.point(lambda level: level * DIMMED), picture.mask)
    return image.crop(square_box(image.size, 0.5)).resize((CELL, CELL), Image.Resampling.LANCZOS)


def _label(picture: Picture, concept: Concept) -> str:
    width, height = picture.image.size
    text = f"{picture.path.name} {width}x{height}"
    if picture.caption is None:
        return text
    return f"{text} '{own_caption(picture.caption, concept.token, concept.class_word)}'"


def panel(pictures: Sequence[Picture], file: Path, sheet: Path, command: str) -> dict[str, object]:
    """What was found and what to type next."""
    captions, masks = (sum(getattr(p, what) is not None for p in pictures) for what in ("caption", "mask"))
    return {
        "pictures": f"{len(pictures)}, {captions} with a caption, {masks} with a mask",
        "concept": file,
        "contact sheet": sheet,
        "next": command,
    }
