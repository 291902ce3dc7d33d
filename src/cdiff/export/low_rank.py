"""Weight differences as products of two thin matrices: truncated SVD (Eckart and Young 1936), in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cdiff.errors import UserError

NOISE = 1e-6  # singular values below this part of the largest are the rounding of fp32 weights


@dataclass(frozen=True)
class Spectrum:
    """A layer's difference W - W0 (out, in), decomposed: `left` (out, n), `values` (n,), `right` (n, in), float64."""

    left: Tensor
    values: Tensor
    right: Tensor

    def error(self, rank: int) -> float:
        """What truncation at `rank` leaves out, |W - W_r| / |W - W0|, Frobenius; 0 where there is no difference."""
        total = self.values.square().sum()
        return float((self.values[rank:].square().sum() / total).sqrt()) if total > 0 else 0.0

    def rank_within(self, tolerance: float) -> int:
        """The smallest rank, at least 1, whose `error` is at most `tolerance`."""
        return next(rank for rank in range(1, len(self.values) + 1) if self.error(rank) <= tolerance)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """down (rank, in) and up (out, rank) in fp32, the singular values shared out evenly between them; rows and
        columns past what the layer has are zero."""
        kept = min(rank, len(self.values))
        root = self.values[:kept].sqrt()
        down = torch.zeros(rank, self.right.shape[1], dtype=torch.float64)
        up = torch.zeros(self.left.shape[0], rank, dtype=torch.float64)
        down[:kept], up[:, :kept] = root[:, None] * self.right[:kept], self.left[:, :kept] * root
        return down.float(), up.float()


@dataclass(frozen=True)
class LowRank:
    """All layers at one rank. `layers`: name without `.weight` -> (down (r, in), up (out, r))."""

    layers: dict[str, tuple[Tensor, Tensor]]
    errors: dict[str, float]  # relative, of each layer, measured on the fp32 factors
    rank: int


def decompose(difference: Tensor) -> Spectrum:
    """The SVD of (out, in), cut where only rounding is left."""
    left, values, right = torch.linalg.svd(difference.double().cpu(), full_matrices=False)
    kept = max(1, int((values > NOISE * values[0]).sum()))
    return Spectrum(left[:, :kept], values[:kept], right[:kept])


def truncate(differences: Mapping[str, Tensor], rank: int | None = None, tolerance: float | None = None) -> LowRank:
    """Every layer's difference (out, in) as two factors of one rank.

    rank: as given; else the smallest at which no layer's relative error is above `tolerance`; with neither, exact but
    for rounding. One rank for all layers: readers that find several take one layer's for the others' scale.

    Raises:
        UserError: a difference that is no matrix, or holds values that are not finite.
    """
    for name, value in differences.items():
        if value.ndim != 2 or not value.isfinite().all():
            raise UserError(f"{name} {tuple(value.shape)} can't become a LoRA: it is no finite matrix.")
    spectra = {name.removesuffix(".weight"): decompose(value) for name, value in differences.items()}
    if rank is None:
        rank = max(
            len(spectrum.values) if tolerance is None else spectrum.rank_within(tolerance)
            for spectrum in spectra.values()
        )
    layers = {name: spectrum.factors(rank) for name, spectrum in spectra.items()}
    errors = {name: _error(differences[f"{name}.weight"].double().cpu(), *factors) for name, factors in layers.items()}
    return LowRank(layers, errors, rank)


def _error(difference: Tensor, down: Tensor, up: Tensor) -> float:
    total = difference.norm()
    return float((difference - up.double() @ down.double()).norm() / total) if total > 0 else 0.0
