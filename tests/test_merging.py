"""The closed form against independent solutions, on random matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cdiff.merging import Source, compact, general_captions, merge, relative_residual, solution_map

OUT, WIDTH = 12, 20


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_lagrange(w0: np.ndarray, c: np.ndarray, t: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Stationarity of min |(W - W0) G| s.t. W C = T, as one system: (GG') W' + C L = (GG') W0', C' W' = T'."""
    gram, m = g @ g.T, c.shape[1]
    system = np.block([[gram, c], [c.T, np.zeros((m, m))]])
    return np.linalg.solve(system, np.concatenate([gram @ w0.T, t.T]))[: len(gram)].T


def solved(w0: torch.Tensor, c: torch.Tensor, t: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return w0 + (t - w0 @ c) @ solution_map(c, g)[0]


@pytest.mark.parametrize("constraints", [1, 7, 19])
def test_it_is_the_solution_of_the_lagrange_system(constraints):
    w0, c, t, g = (
        matrix(OUT, WIDTH),
        matrix(WIDTH, constraints, seed=1),
        matrix(OUT, constraints, seed=2),
        matrix(WIDTH, 90),
    )
    ours = solved(w0, c, t, g)
    theirs = by_lagrange(*(x.numpy() for x in (w0, c, t, g)))
    assert np.abs(ours.numpy() - theirs).max() < 1e-9
    assert relative_residual(ours, c, t) < 1e-12


def test_nothing_that_meets_the_constraints_is_nearer_to_the_base():
    w0, c, t, g = matrix(OUT, WIDTH), matrix(WIDTH, 6, seed=1), matrix(OUT, 6, seed=2), matrix(WIDTH, 50)
    ours = solved(w0, c, t, g)
    free = torch.linalg.svd(c)[0][:, 6:]
    for seed in range(20):
        other = ours + 0.01 * matrix(OUT, WIDTH - 6, seed=seed) @ free.T
        assert relative_residual(other, c, t) < 1e-9
        assert ((other - w0) @ g).norm() > ((ours - w0) @ g).norm()


def test_redundant_constraints_change_nothing():
    w0, c, t, g = matrix(OUT, WIDTH), matrix(WIDTH, 5, seed=1), matrix(OUT, 5, seed=2), matrix(WIDTH, 60)
    mix = matrix(5, 9, seed=3)
    plain, doubled = solved(w0, c, t, g), solved(w0, torch.cat([c, c @ mix], 1), torch.cat([t, t @ mix], 1), g)
    assert solution_map(torch.cat([c, c @ mix], 1), g)[1] == 5
    assert (plain - doubled).abs().max() < 1e-9


def test_fewer_captions_than_dimensions_leave_the_rest_alone():
    """Where neither captions nor constraints speak, the weight stays as it is."""
    w0, c, t, g = matrix(OUT, WIDTH), matrix(WIDTH, 3, seed=1), matrix(OUT, 3, seed=2), matrix(WIDTH, 4, seed=3)
    ours = solved(w0, c, t, g)
    assert relative_residual(ours, c, t) < 1e-12
    unheard = torch.linalg.svd(torch.cat([c, g], 1))[0][:, 7:]
    assert ((ours - w0) @ unheard).abs().max() < 1e-9
    assert ((ours - w0) @ g).abs().max() < 1e-9  # 3 + 4 directions of 20: both can be met in full


def test_as_many_constraints_as_dimensions():
    c, t = matrix(WIDTH, WIDTH, seed=1), matrix(OUT, WIDTH, seed=2)
    ours = solved(matrix(OUT, WIDTH), c, t, matrix(WIDTH, 30))
    assert np.abs(ours.numpy() - np.linalg.solve(c.numpy().T, t.numpy().T).T).max() < 1e-8


def test_compact_keeps_the_norm():
    g, x = matrix(WIDTH, 300), matrix(OUT, WIDTH, seed=4)
    assert compact(g).shape == (WIDTH, WIDTH)
    assert torch.allclose((x @ g).norm(), (x @ compact(g)).norm())


def test_merged_runs_keep_their_own_keys_and_values():
    base = {"k": matrix(OUT, WIDTH), "v": matrix(OUT + 3, WIDTH, seed=1)}
    runs = [
        Source(matrix(WIDTH, 5, seed=10 + i), {n: w + 0.1 * matrix(*w.shape, seed=20 + i) for n, w in base.items()})
        for i in range(3)
    ]
    general = matrix(WIDTH, 200, seed=5)
    result = merge({n: w.float() for n, w in base.items()}, runs, general)
    assert (result.rank, result.columns) == (15, 15)
    for name in base:
        for run in runs:
            assert relative_residual(result.weights[name], run.features, run.weights[name] @ run.features) < 1e-6
        assert 0 < result.residuals[name] < 1e-4  # as saved, in fp32


def test_one_run_alone_on_all_its_features_is_that_run():
    w0 = matrix(OUT, WIDTH)
    run = Source(matrix(WIDTH, WIDTH, seed=1), {"k": matrix(OUT, WIDTH, seed=2)})
    assert (merge({"k": w0}, [run], matrix(WIDTH, 50)).weights["k"] - run.weights["k"]).abs().max() < 1e-8


def test_runs_that_contradict_each_other_are_told_by_the_residual():
    c = matrix(WIDTH, 4, seed=1)
    runs = [Source(c, {"k": matrix(OUT, WIDTH, seed=seed)}) for seed in (2, 3)]
    result = merge({"k": matrix(OUT, WIDTH)}, runs, matrix(WIDTH, 50))
    assert result.rank == 4 and result.residuals["k"] > 0.1
    mean = (runs[0].weights["k"] + runs[1].weights["k"]) / 2 @ c
    assert relative_residual(result.weights["k"], c, mean) < 1e-9


def test_the_captions_are_many_and_different():
    captions = general_captions()
    assert len(set(captions)) == len(captions) > 300
    assert not any("<" in caption or "{" in caption for caption in captions)
