"""What the scorers share: a model that loads at its first use, batches, text features that are computed once."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cdiff.errors import UserError
from cdiff.metrics.interface import Reference
from cdiff.metrics.loading import find_model, fingerprint, load_tokenizer
from cdiff.metrics.preprocess import Preprocess

log = logging.getLogger("cdiff")

KEPT_PROMPTS = 20_000  # text features held in memory; a protocol has hundreds of prompts
SHOWN = 120  # characters of a prompt in a warning


@dataclass(frozen=True)
class Place:
    """Where a scorer's model comes from and runs: `metrics.SETTING=source`, on `device`, in `dtype`."""

    setting: str
    source: str
    device: torch.device
    dtype: torch.dtype
    batch_size: int = 32


class Family(ABC):
    """Base of the scorers. A subclass sets `name` and gives `_read`, `prepare` and `score_prepared`."""

    name = ""
    comparing: tuple[str, ...] = ()  # those of its metrics that need references

    def __init__(self, metrics: tuple[str, ...], place: Place) -> None:
        self.metrics, self.place = metrics, place
        self.needs_references = any(metric in self.comparing for metric in metrics)
        self.folder: Path | None = None

    @property
    def model(self) -> str:
        return f"cdiff pocket {self.place.setting}" if self.place.source == "pocket" else self.place.source

    def load(self) -> None:
        if self.folder is None:
            folder = find_model(self.place.setting, self.place.source)
            self._read(folder)
            self.folder = folder  # last: a model that failed to load is not loaded

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[str], reference: Reference | None = None
    ) -> dict[str, np.ndarray]:
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images and {len(prompts)} prompts")
        self.load()
        size = self.place.batch_size
        parts = [
            self.score_prepared(
                [self.prepare(image) for image in images[start : start + size]],
                prompts[start : start + size],
                [reference] * len(images[start : start + size]),
            )
            for start in range(0, len(images), size)
        ]
        empty = np.empty(0, np.float32)
        return {metric: np.concatenate([part[metric] for part in parts] or [empty]) for metric in self.metrics}

    def fingerprint(self) -> str:
        """Changes with whatever changes the numbers: weights, precision, device."""
        self.load()
        how = f"1 {self.place.dtype} {self.place.device.type} {fingerprint(self.folder)}"
        return hashlib.sha256(how.encode()).hexdigest()

    def forget(self) -> None:
        text = getattr(self, "text", None)  # a scorer without a text tower has none, nor one that is not loaded yet
        if text is not None:
            text.known.clear()

    @abstractmethod
    def prepare(self, image: Image.Image) -> Any:
        """What one image is to the model; may run beside the scoring of others."""

    @abstractmethod
    def score_prepared(
        self, prepared: Sequence[Any], prompts: Sequence[str], references: Sequence[Reference | None]
    ) -> dict[str, np.ndarray]:
        """A batch: each metric's values, (B,)."""

    @abstractmethod
    def _read(self, folder: Path) -> None:
        """Load the model. Raises UserError for a folder of another kind."""


class ImageFamily(Family):
    """A scorer whose model turns pixels into features of length 1."""

    preprocess: Preprocess

    def prepare(self, image: Image.Image) -> np.ndarray:
        return self.preprocess.prepare(image)

    @torch.inference_mode()
    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """(B, D) float32, rows of length 1; BLIP-2's are (B, queries, D)."""
        if not prepared:
            raise ValueError("no image to encode")
        pixels = self.preprocess.normalize(list(prepared), self.place.device, self.place.dtype)
        return unit(self._image_features(pixels))

    def fingerprint(self) -> str:
        """Changes with whatever changes the features of an image: weights, preprocessing, precision, device."""
        self.load()
        how = f"1 {self.preprocess} {self.place.dtype} {self.place.device.type} {fingerprint(self.folder)}"
        return hashlib.sha256(how.encode()).hexdigest()

    @abstractmethod
    def _image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised pixels -> (B, D), of any length."""

    def similarity(self, features: np.ndarray, references: Sequence[Reference | None]) -> np.ndarray:
        """Mean cosine of each image (B, D) with every reference picture of its own; NaN without. (B,)"""
        out = np.full(len(features), np.nan, np.float32)
        for row, (feature, reference) in enumerate(zip(features, references)):
            if reference is not None and self.name in reference.features:
                out[row] = (reference.features[self.name].astype(np.float64) @ feature.astype(np.float64)).mean()
        return out


class TextEncoder:
    """Prompts -> features of length 1, each prompt through the model once."""

    def __init__(self, folder: Path, encode: Any, longest: int, rows: int, device: torch.device) -> None:
        """encode(input_ids, attention_mask) -> (B, D); `longest` tokens a prompt, `rows` words in the model's table."""
        self.folder, self.encode, self.longest, self.rows, self.device = folder, encode, longest, rows, device
        self.tokenizer = load_tokenizer(folder)
        self.known: dict[str, np.ndarray] = {}

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """(B, D) float32, a row a prompt.

        Raises:
            UserError: a tokenizer with more words than the model.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        if len(self.known) + len(new) > KEPT_PROMPTS:
            self.known, new = {}, list(dict.fromkeys(prompts))
        if new:
            words = self.tokenizer(new, verbose=False).input_ids
            for prompt, ids in zip(new, words):
                if len(ids) > self.longest:
                    self._warn(prompt, len(ids))
            inputs = self.tokenizer(
                new, padding=True, truncation=True, max_length=self.longest, return_tensors="pt", verbose=False
            )
            if int(inputs.input_ids.max()) >= self.rows:
                raise UserError(f"{self.folder}: the tokenizer knows more words than the model's {self.rows}.")
            features = unit(self.encode(inputs.input_ids.to(self.device), inputs.attention_mask.to(self.device)))
            self.known |= dict(zip(new, features))
        return np.stack([self.known[prompt] for prompt in prompts])

    def _warn(self, prompt: str, count: int) -> None:
        shown = prompt if len(prompt) <= SHOWN else f"{prompt[:SHOWN]}..."
        log.warning(
            "a prompt of %d tokens is cut to the %d tokens that its model takes: '%s'", count, self.longest, shown
        )


def unit(features: torch.Tensor) -> np.ndarray:
    """float32 on the CPU, along the last axis of length 1."""
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Row by row, of features of length 1: (B, D), (B, D) -> (B,)."""
    return (first.astype(np.float64) * second).sum(-1).astype(np.float32)
