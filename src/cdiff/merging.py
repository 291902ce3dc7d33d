"""Several fine-tuned cross-attentions in one, in closed form (Custom Diffusion, arXiv 2212.04488, section 3.2).

For each K and V of each cross-attention layer, with the base's weight W0 (O, D) and text features as columns:

    minimise |(W - W0) G|_F   subject to   W C = T

G (D, M): general captions, whose keys and values should stay; C (D, m): the concepts' own prompts; T (O, m): what
each concept's own weights make of them. docs/merge.md derives the solution used here, W = W0 + (T - W0 C) K, by an
orthonormal basis of the constraints and a least-squares solution in what they leave free; nothing is inverted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RANK = 1e-5  # singular values below this share of the largest are rounding: features come in fp32

SUBJECTS = (
    "dog", "cat", "bear", "rabbit", "bird", "pig", "animal", "car", "barn", "teapot", "backpack", "boot", "cup",
    "clock", "vase", "candle", "bowl", "sneaker", "house", "tower", "tree", "hat", "toy", "table",
)  # fmt: skip
PATTERNS = (
    "a photo of a {}",
    "a picture of the {}",
    "a {}",
    "a small {} on the beach",
    "a {} in the snow",
    "a red {} in the jungle",
    "a {} on a wooden floor",
    "a blue {} in the city",
    "a {} with a mountain in the background",
    "a {} in the desert at night",
    "two green {}s on the grass",
    "a {} wearing a red hat",
    "a painting of a white {} in front of a house",
)
NEIGHBOURS = "a {} next to a {}"
CONCEPT_PROMPTS = ("a photo of a {}", "a {}", "a {} on the beach", "a picture of the {} in the city")


def general_captions() -> list[str]:
    """The built-in list: many classes in many places, in plain words that a base of either world knows."""
    alone = [pattern.format(subject) for subject in SUBJECTS for pattern in PATTERNS]
    others = SUBJECTS[len(SUBJECTS) // 2 :] + SUBJECTS[: len(SUBJECTS) // 2]
    return alone + [NEIGHBOURS.format(*pair) for pair in zip(SUBJECTS, others, strict=True)]


@dataclass(frozen=True)
class Source:
    """One run: features (D, m) of its concepts' prompts, and its weights (O, D) by the parameters' names."""

    features: Tensor
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class Merged:
    """`weights` (O, D) in float64; `residuals`: |W C - T| / |T| of each as it is saved, in fp32."""

    weights: dict[str, Tensor]
    residuals: dict[str, float]
    rank: int  # of the constraints
    columns: int  # of the constraints, redundant ones included


def merge(base: Mapping[str, Tensor], sources: Sequence[Source], general: Tensor) -> Merged:
    """Merge the sources into `base` {parameter: (O, D)}; `general` (D, M). All of it in float64."""
    target = torch.cat([source.features for source in sources], dim=1).double()
    spread, rank = solution_map(target, general.double())
    weights, residuals = {}, {}
    for name, tensor in base.items():
        before = tensor.double()
        wanted = torch.cat([s.weights[name].double() @ s.features.double() for s in sources], dim=1)
        after = before + (wanted - before @ target) @ spread
        weights[name] = after
        residuals[name] = relative_residual(after.float(), target, wanted)
    return Merged(weights, residuals, rank, target.shape[1])


def solution_map(target: Tensor, general: Tensor, tolerance: float = RANK) -> tuple[Tensor, int]:
    """K (m, D) and the rank of `target` (D, m): W0 + (T - W0 C) K solves the problem for every W0 (O, D) and T (O, m).

    It depends on the texts alone, so one K serves all layers. With C = U S V' of rank r, N a basis of what is
    orthogonal to U, and P the least-squares solution of P N'G = U'G:  K = V S^-1 (U' - P N').
    Redundant constraints are met together; those that contradict each other, in the sense of least squares.
    """
    left, values, right = torch.linalg.svd(target, full_matrices=True)
    rank = int((values > tolerance * values.max().clamp(min=torch.finfo(values.dtype).tiny)).sum())
    u, n = left[:, :rank], left[:, rank:]
    g = compact(general)
    p = least_squares(n.T @ g, u.T @ g, tolerance)
    return (right[:rank].T / values[:rank]) @ (u.T - p @ n.T), rank


def compact(general: Tensor) -> Tensor:
    """(D, M) -> (D, min(D, M)) with the same |X G|_F for every X: the triangle of a QR decomposition of G'."""
    return torch.linalg.qr(general.T, mode="r").R.T if general.shape[1] > general.shape[0] else general


def least_squares(a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    """The smallest X (r, k) of those that minimise |X a - b|_F; a (k, M), b (r, M). By SVD: `a` may lack rank."""
    left, values, right = torch.linalg.svd(a, full_matrices=False)
    if not len(values):
        return b.new_zeros(len(b), len(a))
    keep = values > tolerance * values.max().clamp(min=torch.finfo(values.dtype).tiny)
    return ((b @ right[keep].T) / values[keep]) @ left[:, keep].T


def relative_residual(weight: Tensor, target: Tensor, wanted: Tensor) -> float:
    """|W C - T|_F / |T|_F, in float64; 0 for no constraint."""
    size = wanted.norm().item()
    return (weight.double() @ target - wanted).norm().item() / size if size else 0.0
