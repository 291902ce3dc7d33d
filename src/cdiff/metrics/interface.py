"""What a scorer is: images and prompts in, numbers out. Light: names the types and loads no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


@dataclass(frozen=True)
class Reference:
    """The real pictures of one concept, as features: scorer name -> (pictures, D) float32, rows of length 1.

    Made once by `prepare_references` and handed to every call; `count` pictures in the order they were given.
    """

    count: int
    features: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """One image to score by `score_items`.

    `image` is a file (read and preprocessed by the loader threads) or a picture in memory. `prompt` is the text that
    the text metrics compare with: its tokens must be gone already. `reference` may be null: image metrics give NaN.
    `key` is the caller's own (the row it belongs to) and comes back untouched.
    """

    image: Path | Image.Image
    prompt: str
    reference: Reference | None = None
    key: Any = None


@dataclass(frozen=True)
class Scored:
    """The numbers of one item: metric name -> number, NaN where the metric says nothing of it.

    `fault` is null, or the sentence that says why the image could not be read; `values` is empty then.
    """

    item: Item
    values: dict[str, float]
    fault: str | None = None


class Scorer(Protocol):
    """One family: one model, loaded once, and the metrics that it gives in one pass over an image."""

    name: str  # "clip", "dino", "blip", "attributes"
    metrics: tuple[str, ...]  # what `score` returns, in order: ("clip_t", "clip_i")
    needs_references: bool  # some of its metrics are NaN without a Reference
    model: str  # which model the numbers come from, for the report: hub id or folder, and the variant of BLIP

    def load(self) -> None:
        """Read the model now. Raises UserError when it is missing, broken or of another kind."""

    def forget(self) -> None:
        """Drop what was remembered of prompts. The last bits of a text's features depend on the batch it was in, and a
        job of a sweep must find the batches that it has alone."""

    def fingerprint(self) -> str:
        """Changes with whatever changes the numbers: weights, preprocessing, precision, device."""

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[str], reference: Reference | None = None
    ) -> dict[str, np.ndarray]:
        """One float32 number an image for each of `metrics`; images of any size and mode, prompts one an image."""

    def prepare(self, image: Image.Image) -> Any:
        """An RGB image as this model sees it, before normalisation. Called by loader threads."""

    def score_prepared(
        self, prepared: Sequence[Any], prompts: Sequence[str], references: Sequence[Reference | None]
    ) -> dict[str, np.ndarray]:
        """As `score`, for images already through `prepare`, each with a reference of its own."""
