"""Each kernel against torch in double precision: in Triton's interpreter, which computes what the GPU would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton", reason="the kernels are Triton's")

from fused_models import relative

from cdiff.fused import few_keys, group_norm, kernels

# rows of a tile that are not there, and are not stored: after a norm of a constant they are far below zero
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)  # for each test, so that one alone sees the numbers it sees among the others


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("images", "rows", "channels", "groups"),
    [(2, 25, 96, 32), (2, 289, 130, 2), (1, 64 * 64 + 1, 8, 4), (2, 64, 80, 2), (40, 33, 128, 2)],
)
def test_group_norm(images, rows, channels, groups, shifted, silu):
    """Channels that fill no tile, rows that fill no chunk, more rows than one tile a chunk, groups that are one tile,
    and so many images that tiles are short."""
    x = (3 + torch.randn(images, rows, channels)).requires_grad_()
    shift = torch.randn(images, 2 * channels)[:, channels:] if shifted else None  # a part of longer rows
    weight, bias, grad = torch.randn(channels), torch.randn(channels), torch.randn(images, rows, channels)
    found = kernels.group_norm(x, shift, weight, bias, groups, 1e-5, silu)[1]
    found.backward(grad)
    exact = x.detach().double().requires_grad_()
    moved = exact if shift is None else exact + shift.double()[:, None]
    wanted = F.group_norm(moved.transpose(1, 2), groups, weight.double(), bias.double(), 1e-5).transpose(1, 2)
    wanted = F.silu(wanted) if silu else wanted
    wanted.backward(grad.double())
    assert relative(found.detach(), wanted.detach()) < 2e-6
    assert relative(x.grad, exact.grad) < 4e-6


def test_group_norm_rounds_once():
    """To one of the two neighbours: a GPU takes the nearer one, Triton's interpreter cuts the bits off."""
    x = torch.randn(1, 36, 64).bfloat16()
    weight, bias = torch.randn(64).bfloat16(), torch.randn(64).bfloat16()
    found = kernels.group_norm(x, None, weight, bias, 8, 1e-5, True)[1]
    exact = F.silu(F.group_norm(x.double().transpose(1, 2), 8, weight.double(), bias.double(), 1e-5)).transpose(1, 2)
    apart = torch.exp2(exact.abs().log2().floor() - 7)  # numbers of 8 bits there
    assert found.dtype == torch.bfloat16 and ((found - exact).abs() < 1.01 * apart).all()


def test_geglu_and_sum():
    both = torch.randn(3, 7, 2 * 40, requires_grad=True)
    grad = torch.randn(3, 7, 40)
    found = kernels.geglu(both)
    found.backward(grad)
    exact = both.detach().double().requires_grad_()
    value, gate = exact.chunk(2, dim=-1)
    (value * F.gelu(gate)).backward(grad.double())
    assert relative(found.detach(), (value * F.gelu(gate)).detach()) < 1e-6
    assert relative(both.grad, exact.grad) < 1e-6
    x, y, bias = torch.randn(2, 9, 40, requires_grad=True), torch.randn(2, 9, 40, requires_grad=True), torch.randn(40)
    total = kernels.add_biased(x, y, bias)
    total.backward(torch.full_like(total, 2.0))
    assert torch.equal(total.detach(), (x + y + bias).detach()) and (x.grad == 2).all() and (y.grad == 2).all()


def test_the_ways_of_group_norm_are_all_reached():
    """Of the sizes that the test above takes."""
    small = [group_norm._small_tile(torch.empty(size), 2) for size in ((2, 64, 80), (2, 65, 80), (2, 64, 20))]
    assert [tile is not None for tile in small] == [True, False, False]
    assert group_norm._small_tile(torch.empty(200, 64, 80), 2) is None  # too many programs
    (_, chunks, _), tiles, (_, rows) = group_norm._grid(torch.empty(40, 33, 128))
    assert (chunks, tiles, rows) == (2, 1, 32)
    (_, chunks, _), tiles, (_, rows) = group_norm._grid(torch.empty(1, 64 * 64 + 1, 8))
    assert (chunks, tiles, rows) == (33, 2, 64)


def test_what_passes_a_group_norm_by_has_its_gradient_added():
    """The input goes on beside the norm: both gradients come back as one."""
    for size in ((2, 25, 96, 32), (2, 64, 80, 2)):
        *shape, groups = size
        x, weight = torch.randn(shape, requires_grad=True), torch.randn(shape[-1])
        ways = torch.randn(2, *shape)
        kept, normed = kernels.group_norm(x, None, weight, weight, groups, 1e-5, True)
        assert torch.equal(kept, x)
        found = torch.autograd.grad((kept * ways[0] + normed * ways[1]).sum(), x)[0]
        wanted = F.silu(F.group_norm(x.transpose(1, 2), groups, weight, weight, 1e-5).transpose(1, 2))
        wanted = torch.autograd.grad((x * ways[0] + wanted * ways[1]).sum(), x)[0]
        assert relative(found, wanted) < 4e-6
        kept, _ = kernels.group_norm(x, None, weight, weight, groups, 1e-5, True)
        assert torch.equal(torch.autograd.grad(kept.sum(), x)[0], torch.ones_like(x))


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(5, 40), (3, 320), (2, 2100)])
def test_add_layer_norm(rows, width, added):
    """Rows that fill no tile, widths that are no power of 2, one row a program."""
    x = (2 + torch.randn(3, rows, width)).requires_grad_()
    y = torch.randn(3, rows, width, requires_grad=True) if added else None
    weight, bias, ways = torch.randn(width), torch.randn(width), torch.randn(2, 3, rows, width)
    total, normed = kernels.add_layer_norm(x, y, weight, bias, 1e-5)
    (total * ways[0] + normed * ways[1]).sum().backward()
    exact = [own.detach().double().requires_grad_() for own in (x, y) if own is not None]
    wanted = sum(exact)
    of_norm = F.layer_norm(wanted, (width,), weight.double(), bias.double(), 1e-5)
    (wanted * ways[0] + of_norm * ways[1]).sum().backward()
    assert relative(total.detach(), wanted.detach()) < 1e-7 and relative(normed.detach(), of_norm.detach()) < 2e-6
    for own, other in zip([x, y], exact, strict=False):
        assert relative(own.grad, other.grad) < 4e-6
    # the norm alone is used: nothing comes on top
    x.grad = None
    kernels.add_layer_norm(x, y, weight, bias, 1e-5)[1].backward(ways[1])
    wanted = exact[0].detach().requires_grad_()
    moved = wanted + exact[1].detach() if added else wanted
    F.layer_norm(moved, (width,), weight.double(), bias.double(), 1e-5).backward(ways[1].double())
    assert relative(x.grad, wanted.grad) < 4e-6


def test_quick_gelu():
    x, grad = (3 * torch.randn(7, 300)).requires_grad_(), torch.randn(7, 300)
    found = kernels.quick_gelu(x)
    found.backward(grad)
    exact = x.detach().double().requires_grad_()
    wanted = exact * torch.sigmoid(1.702 * exact)
    wanted.backward(grad.double())
    assert relative(found.detach(), wanted.detach()) < 1e-6 and relative(x.grad, exact.grad) < 1e-6


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    parts = [own.unflatten(-1, (heads, -1)).transpose(1, 2) for own in (q, k, v)]
    return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("images", "queries", "keys", "heads", "width"),
    [(2, 70, 7, 2, 16), (1, 300, 77, 3, 40), (2, 64, 128, 2, 80), (1, 3, 2, 1, 8)],
)
def test_attention_to_few_keys(images, queries, keys, heads, width, monkeypatch):
    """Queries that fill no tile and several chunks, keys that are a part of longer rows, heads that fill no tile."""
    monkeypatch.setattr(few_keys, "ENOUGH", 8)
    inner = heads * width
    q = torch.randn(images, queries, inner, requires_grad=True)
    both = torch.randn(images, keys, 3 * inner, requires_grad=True)
    grad = torch.randn(images, queries, inner)
    found = kernels.attend(q, both[..., :inner], both[..., inner : 2 * inner], heads)
    found.backward(grad)
    exact = [own.detach().double().requires_grad_() for own in (q, both)]
    wanted = attended(exact[0], exact[1][..., :inner], exact[1][..., inner : 2 * inner], heads)
    wanted.backward(grad.double())
    assert relative(found.detach(), wanted.detach()) < 2e-6
    assert relative(q.grad, exact[0].grad) < 4e-6 and relative(both.grad, exact[1].grad) < 4e-6


def test_many_queries_are_shared_out():
    q, k = torch.empty(2, 4096, 320), torch.empty(2, 77, 320)
    (heads, chunks), sizes, (rows, *_) = few_keys._sizes(q, k, k, 8, few_keys.ROWS)
    assert heads == 16 and chunks * sizes[-1] * rows == 4096 and heads * chunks == few_keys.ENOUGH


def test_tiles_that_a_gpu_has_no_memory_for_are_not_taken(monkeypatch):
    """A laptop's GPU has 99 KB a program, an A100 163, an H200 227; Turing 64."""
    k = torch.empty(2, 77, 320, dtype=torch.bfloat16)
    found = {}
    for name, there in (("Turing", 65536), ("4090", 101376), ("A100", 166912), ("H200", 232448)):
        monkeypatch.setattr(few_keys, "_shared_memory", lambda device, there=there: there)
        found[name] = [few_keys._rows_back(k, heads) for heads in (8, 4, 2, 20)]  # of 40, 80, 160, 16 channels
    assert found == {
        "Turing": [None, None, None, None],
        "4090": [64, None, None, 64],
        "A100": [128, 64, None, 128],
        "H200": [128, 128, None, 128],
    }
    assert few_keys.few_enough(k, k, 8) and not few_keys.few_enough(k, torch.empty(2, 129, 320), 8)
    assert few_keys.few_enough(k.float(), k.float(), 8)
    monkeypatch.setattr(few_keys, "INTERPRETED", False)
    assert few_keys.few_enough(k, k, 8) and not few_keys.few_enough(k.float(), k.float(), 8)


def test_the_compiler_takes_every_kernel(tmp_path):
    """For GPUs that this machine need not have; and what the backward pass of attention takes is what its table says:
    with more it would fail on a GPU in the midst of a training."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).parent / "compile_kernels.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        env=env | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert max(found["all"]) <= 49152  # what every GPU has
    for (rows, deep), most in few_keys.SHARED.items():
        assert max(found["backward"][f"{rows}, {deep}"]) <= most
        assert found["forward"][f"{rows}, {deep}"] <= most  # forward is taken where the way back fits
