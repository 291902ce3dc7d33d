"""A scorer of exact, known numbers: what an image scores follows from its mean colour and its prompt."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import numpy as np
from PIL import Image


class FakeScorer:
    name = "fake"
    metrics = ("clip_t", "clip_i")
    needs_references = True
    model = "fake/model"
    place = SimpleNamespace(batch_size=4)

    def __init__(self, mark: str = "1", stop_after: int | None = None) -> None:
        self.mark, self.stop_after, self.seen = mark, stop_after, []

    def load(self) -> None: ...

    def forget(self) -> None: ...

    def fingerprint(self) -> str:
        return self.mark

    def prepare(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.convert("RGB"), np.float64).mean(axis=(0, 1))

    def encode(self, prepared) -> np.ndarray:
        found = np.stack(prepared) + 1
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    def score_prepared(self, prepared, prompts, references) -> dict[str, np.ndarray]:
        if self.stop_after is not None and len(self.seen) + len(prompts) > self.stop_after:
            raise KeyboardInterrupt
        self.seen += list(prompts)
        features = self.encode(prepared)
        against = [
            np.nan if r is None else float((r.features[self.name] @ f).mean()) for r, f in zip(references, features)
        ]
        return {
            "clip_t": np.float32([text_score(p, t) for p, t in zip(prepared, prompts)]),
            "clip_i": np.float32(against),
        }


def text_score(mean: np.ndarray, text: str) -> float:
    word = int(hashlib.sha256(text.encode()).hexdigest()[:4], 16) / 0xFFFF
    return float(np.float32(mean.sum() / 765 * 0.5 + word * 0.5))


def coloured(path, colour: tuple[int, int, int], size: int = 24):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)
    return path
