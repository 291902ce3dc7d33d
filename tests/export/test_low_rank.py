"""Truncated SVD of weight differences."""

from __future__ import annotations

import pytest
import torch

from cdiff.errors import UserError
from cdiff.export.low_rank import decompose, truncate


def matrix(rank: int, rows: int = 12, columns: int = 20, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)


def test_without_a_limit_it_is_exact_at_the_true_rank():
    differences = {"a.weight": matrix(3), "b.weight": matrix(5, rows=7, seed=1)}
    found = truncate(differences)
    assert found.rank == 5 and set(found.layers) == {"a", "b"}
    for name, (down, up) in found.layers.items():
        assert down.shape[0] == up.shape[1] == 5
        torch.testing.assert_close(up @ down, differences[f"{name}.weight"], rtol=1e-5, atol=1e-5)
        assert found.errors[name] < 1e-6


@pytest.mark.parametrize("rank", [1, 2, 4, 40])
def test_a_given_rank_is_the_best_there_is(rank):
    whole = matrix(12)
    found = truncate({"a.weight": whole}, rank)
    down, up = found.layers["a"]
    assert down.shape == (rank, 20) and up.shape == (12, rank)
    values = torch.linalg.svdvals(whole.double())
    best = float((values[rank:].square().sum() / values.square().sum()).sqrt())
    assert found.errors["a"] == pytest.approx(best, abs=1e-6)
    assert float((whole - up @ down).norm() / whole.norm()) == pytest.approx(best, abs=1e-5)


def test_the_tolerance_holds_in_every_layer_and_no_lower_rank_holds_it():
    differences = {"easy.weight": matrix(2), "hard.weight": matrix(12, seed=2)}
    found = truncate(differences, tolerance=0.3)
    assert max(found.errors.values()) <= 0.3
    assert truncate(differences, found.rank - 1).errors["hard"] > 0.3


def test_a_layer_that_nothing_changed():
    found = truncate({"a.weight": torch.zeros(4, 6), "b.weight": matrix(2)})
    down, up = found.layers["a"]
    assert found.errors["a"] == 0.0 and not (up @ down).any()
    assert decompose(torch.zeros(4, 6)).rank_within(0.1) == 1


def test_what_is_no_matrix_is_refused():
    with pytest.raises(UserError, match=r"c\.weight .*no finite matrix"):
        truncate({"c.weight": torch.zeros(4)})
    with pytest.raises(UserError, match="no finite matrix"):
        truncate({"c.weight": torch.full((2, 2), float("nan"))})
