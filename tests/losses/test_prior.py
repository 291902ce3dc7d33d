import pytest
import torch

from cdiff.losses import prior_loss


def test_prior_is_the_plain_mean():
    prediction, target = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    assert prior_loss(prediction, target).item() == pytest.approx((prediction - target).square().mean().item())


def test_half_precision_is_computed_in_fp32():
    prediction = torch.full((1, 4, 8, 8), 300.0, dtype=torch.float16)  # its square overflows fp16
    assert prior_loss(prediction, torch.zeros_like(prediction)).item() == 90_000
