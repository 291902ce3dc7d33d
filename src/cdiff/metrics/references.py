"""Features of the real pictures: computed once, kept by content."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cdiff.cache import cache_folder
from cdiff.data.images import Picture
from cdiff.errors import UserError
from cdiff.metrics.interface import Reference, Scorer

log = logging.getLogger("cdiff")

KEPT = 100_000  # features in memory: 300 MB at the most
_memory: dict[tuple[str, str], np.ndarray] = {}


def prepare_references(scorers: Sequence[Scorer], pictures: Sequence[Picture | Image.Image]) -> Reference:
    """The features that the scorers compare generated images with.

    A picture seen before by the same model is not computed again: features are kept in memory and in the user's
    cache, under the content of the picture and of the model's files.

    Raises:
        UserError: no picture at all while a scorer needs them.
    """
    comparing = [scorer for scorer in scorers if scorer.needs_references]
    if comparing and not pictures:
        metrics = ", ".join(metric for scorer in comparing for metric in scorer.metrics)
        raise UserError(f"There are no reference pictures, and {metrics} compare with them: name their folder.")
    images = [picture.image if isinstance(picture, Picture) else picture for picture in pictures]
    keys = [content_key(image) for image in images] if comparing else []
    return Reference(len(images), {scorer.name: _features(scorer, images, keys) for scorer in comparing})


def content_key(image: Image.Image) -> str:
    """Equal for equal pixels, whatever the file."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).hexdigest()


def _features(scorer: Scorer, images: list[Image.Image], keys: list[str]) -> np.ndarray:
    """(pictures, D); what no cache has is computed in batches and kept."""
    model = scorer.fingerprint()
    folder = cache_folder() / "features" / f"{scorer.name}-{model[:24]}"
    if len(_memory) > KEPT:
        _memory.clear()
    for key in keys:
        if (model, key) not in _memory and (kept := _read(folder / f"{key}.npy")) is not None:
            _memory[model, key] = kept
    missing = [key for key in dict.fromkeys(keys) if (model, key) not in _memory]
    size = scorer.place.batch_size
    for start in range(0, len(missing), size):
        batch = missing[start : start + size]
        found = scorer.encode([scorer.prepare(images[keys.index(key)]) for key in batch])
        for key, feature in zip(batch, found):
            _memory[model, key] = feature
            _write(folder / f"{key}.npy", feature)
    return np.stack([_memory[model, key] for key in keys])


def _read(file: Path) -> np.ndarray | None:
    """A kept feature; null where there is none or its file is broken."""
    try:
        feature = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return feature if feature.ndim == 1 and np.isfinite(feature).all() else None


def _write(file: Path, feature: np.ndarray) -> None:
    """Whole or not at all: another process may read it. A cache that can't be written is done without."""
    part = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as stream:
            part = Path(stream.name)
            np.save(stream, feature)
        os.replace(part, file)
    except OSError as error:
        log.info("features are not kept in %s (%s)", file.parent, error.strerror)
        if part is not None:
            part.unlink(missing_ok=True)
