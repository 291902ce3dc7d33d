"""Figures of papers, to read beside a result. They stand in a column of their own and are never mixed with it.

They were measured on photos, with Stable Diffusion and the real metric models; "second-hand" ones come from another
paper's table than the method's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LABEL = "published (not measured here)"


@dataclass(frozen=True)
class Published:
    """One line of a paper's table."""

    method: str
    table: str  # which data, and from where
    values: dict[str, float]
    concepts: int = 1

    def as_json(self) -> dict[str, object]:
        return {"method": self.method, "table": self.table, "values": self.values}


_SINGLE = "single concept, DreamBooth data, second-hand"
_TWO = "two concepts, ClassDiffusion (arXiv 2405.17532)"
_BENCH = "DreamBench"

FIGURES = (
    Published("ClassDiffusion", _SINGLE, {"clip_t": 0.300, "clip_i": 0.828, "dino_i": 0.673, "blip2_t": 0.460}),
    Published("Custom Diffusion", _SINGLE, {"clip_i": 0.837, "dino_i": 0.693}),
    Published("DreamBooth", _SINGLE, {"clip_i": 0.855, "dino_i": 0.700}),
    Published("SVDiff", _SINGLE, {"clip_t": 0.293, "clip_i": 0.834}),
    Published("ClassDiffusion", _TWO, {"clip_t": 0.320, "blip2_t": 0.477}, concepts=2),
    Published("Custom Diffusion", _TWO, {"clip_t": 0.282}, concepts=2),
    Published("real images", _BENCH, {"dino_i": 0.774, "clip_i": 0.885}),
    Published("Textual Inversion", _BENCH, {"dino_i": 0.569, "clip_i": 0.780, "clip_t": 0.255}),
    Published("DreamBooth (SD)", _BENCH, {"dino_i": 0.668, "clip_i": 0.803, "clip_t": 0.305}),
    Published("Custom Diffusion", _BENCH, {"dino_i": 0.643, "clip_i": 0.790, "clip_t": 0.305}),
    Published("BLIP-Diffusion, fine-tuned", _BENCH, {"dino_i": 0.670, "clip_i": 0.805, "clip_t": 0.302}),
    Published("ELITE", _BENCH, {"dino_i": 0.621, "clip_i": 0.771, "clip_t": 0.293}),
    Published("IP-Adapter", _BENCH, {"dino_i": 0.667, "clip_i": 0.813, "clip_t": 0.289}),
)


def published(protocol: str, concepts: int) -> list[Published]:
    """The lines that are nearest to what was done: DreamBench's for its protocol, else ClassDiffusion's own table."""
    if concepts > 1:
        return [line for line in FIGURES if line.concepts == concepts]
    table = _BENCH if protocol == "dreambench" else _SINGLE
    return [line for line in FIGURES if line.table == table]


def cell(lines: Sequence[Published], metric: str) -> str:
    """ "ClassDiffusion .300" and the others for one metric, a line each."""
    said = [f"{line.method} {line.values[metric]:.3f}".replace(" 0.", " .") for line in lines if metric in line.values]
    return "\n".join(said)
