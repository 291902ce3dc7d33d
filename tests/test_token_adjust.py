"""Test-time embedding adjustment: geometry, and its place in sampling."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_job import draw_pictures, words

from cdiff.adapter import Adapter
from cdiff.cli import main
from cdiff.errors import UserError
from cdiff.grids import read_metadata
from cdiff.schema import TokenAdjustConfig
from cdiff.token_adjust import adjust_tokens, adjusted, apply_for_sampling, class_vector, slerp


def vectors(width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(width, generator=generator), torch.randn(width, generator=generator)


def angle(a: torch.Tensor, b: torch.Tensor) -> float:
    return math.acos(torch.cosine_similarity(a.double(), b.double(), dim=0).clamp(-1, 1).item())


def test_alpha_0_is_the_token_itself():
    v, c = vectors()
    assert torch.equal(adjusted(v, c, 0.0), v)


def test_alpha_1_is_the_direction_of_the_class():
    v, c = vectors()
    found = adjusted(v, c, 1.0)
    assert angle(found, c) < 1e-6 and torch.allclose(found.norm(), v.norm())


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.8])
def test_the_angle_is_shared_and_the_plane_is_kept(alpha):
    v, c = vectors()
    found = adjusted(v, c, alpha)
    assert angle(v, found) == pytest.approx(alpha * angle(v, c), abs=1e-6)
    assert angle(found, c) == pytest.approx((1 - alpha) * angle(v, c), abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_beta_is_a_multiple_of_the_norm_of_the_class(alpha):
    v, c = vectors()
    assert torch.allclose(adjusted(v, c, alpha, beta=1.5).norm(), 1.5 * c.norm())
    assert torch.allclose(adjusted(v, c, alpha).norm(), v.norm())


def test_it_is_the_papers_formula():
    v, c = (x.double() for x in vectors())
    alpha, beta, theta = 0.2, 1.5, angle(*vectors())
    size = beta * c.norm()
    expected = math.sin((1 - alpha) * theta) / math.sin(theta) * size * v / v.norm()
    expected = expected + math.sin(alpha * theta) / math.sin(theta) * size * c / c.norm()
    assert torch.allclose(adjusted(v, c, alpha, beta), expected)


@pytest.mark.parametrize("factor", [2.0, -0.5, 0.0])
def test_directions_that_span_no_plane(factor):
    v = vectors()[0].double()
    found = slerp(v, factor * v, 0.5)
    assert found.isfinite().all() and found.norm().item() == pytest.approx(1)
    if factor < 0:
        assert angle(v, found) == pytest.approx(math.pi / 2)
    else:
        assert angle(v, found) < 1e-6


def test_a_class_word_of_several_tokens_is_their_mean(sd15):
    table = sd15.text_encoder.get_input_embeddings().weight
    ids = sd15.tokenizer("teapot", add_special_tokens=False).input_ids
    assert len(ids) == 2
    assert torch.allclose(class_vector(sd15, "teapot"), table[ids].mean(dim=0))


def test_adapters_are_applied_with_their_tokens_adjusted(sd15):
    vector = torch.linspace(-1, 1, 32)
    adapter = Adapter({}, {"<new1>": vector}, {"concepts": [{"token": "<new1>", "class_word": "dog"}]})
    apply_for_sampling(sd15, adapter, TokenAdjustConfig(alpha=0.4, beta=2.0))
    table = sd15.text_encoder.get_input_embeddings().weight
    row = table[sd15.tokenizer.convert_tokens_to_ids("<new1>")]
    assert torch.allclose(row, adjusted(vector, class_vector(sd15, "dog"), 0.4, 2.0))
    assert torch.equal(adapter.tokens["<new1>"], vector)


def test_a_token_without_a_class_word(sd15):
    row = {"<new1>": torch.ones(32)}
    assert adjust_tokens(sd15, row, {}, TokenAdjustConfig()) == row
    with pytest.raises(UserError, match="needs the class word of <new1>"):
        adjust_tokens(sd15, row, {}, TokenAdjustConfig(alpha=0.5))


def test_train_and_sample_adjust_alike(sd15_folder, tmp_path):
    job = [*words(sd15_folder, draw_pictures(tmp_path / "pictures")), "images_per_prompt=1", "prompt='a new1 dog'"]
    adjust = ["sampler.token_adjust.alpha=0.7", "sampler.token_adjust.beta=0.5"]
    assert main([*job, "output=train", *adjust]) == 0
    sample = [*words(sd15_folder), "task=sample", "run=train", "images_per_prompt=1", "prompt='a new1 dog'"]
    assert main([*sample, "output=alike", *adjust]) == 0
    assert main([*sample, "output=plain"]) == 0
    first, alike, plain = (Path(run, "samples/a-new1-dog-0.png").read_bytes() for run in ("train", "alike", "plain"))
    assert first == alike != plain
    assert read_metadata("alike/samples/a-new1-dog-0.png")["token_adjust"] == "0.7, 0.5"
    assert "token_adjust" not in read_metadata("plain/samples/a-new1-dog-0.png")


@pytest.mark.parametrize(("key", "value"), [("alpha", 1.5), ("alpha", -0.1), ("beta", 0)])
def test_ranges(key, value, capsys):
    assert main(["task=sample", "run=base", f"sampler.token_adjust.{key}={value}", "dry_run=true"]) == 2
    assert f"sampler.token_adjust.{key} must be" in capsys.readouterr().err
