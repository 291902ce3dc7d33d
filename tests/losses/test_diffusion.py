import pytest
import torch
from diffusers import DDPMScheduler

from cdiff.losses import diffusion_target, reconstruction_loss


def test_reconstruction_counts_each_samples_valid_cells():
    prediction, target = torch.zeros(2, 4, 4, 4), torch.zeros(2, 4, 4, 4)
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, :, :2, :2] = 1  # 4 cells, each channel wrong by 1: 4 channels x 1
    mask[1] = 1  # 16 cells, each channel wrong by 2: 4 channels x 4
    prediction[0], prediction[1] = 1.0, 2.0
    prediction[0, :, 2:, 2:] = 1e6  # outside the mask
    assert reconstruction_loss(prediction, target, mask).item() == pytest.approx((4 + 16) / 2)


def test_reconstruction_with_a_full_mask_is_the_plain_error_summed_over_channels():
    prediction, target = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    loss = reconstruction_loss(prediction, target, torch.ones(2, 1, 8, 8))
    assert loss.item() == pytest.approx(4 * (prediction - target).square().mean().item(), rel=1e-5)


def test_reconstruction_of_half_precision_is_fp32_and_an_empty_mask_is_no_nan():
    prediction = torch.full((1, 4, 8, 8), 200.0, dtype=torch.float16)  # 200^2 x 4 overflows fp16
    assert reconstruction_loss(prediction, torch.zeros_like(prediction), torch.ones(1, 1, 8, 8)).item() == 160_000
    assert reconstruction_loss(prediction, torch.zeros_like(prediction), torch.zeros(1, 1, 8, 8)).item() == 0


def test_target_is_noise_or_v():
    latents, noise, timesteps = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    epsilon = DDPMScheduler(prediction_type="epsilon")
    velocity = DDPMScheduler(prediction_type="v_prediction")
    assert diffusion_target(epsilon, latents, noise, timesteps) is noise
    kept = velocity.alphas_cumprod[timesteps].view(2, 1, 1, 1)
    expected = kept.sqrt() * noise - (1 - kept).sqrt() * latents
    torch.testing.assert_close(diffusion_target(velocity, latents, noise, timesteps), expected)
    with pytest.raises(ValueError, match="sample"):
        diffusion_target(DDPMScheduler(prediction_type="sample"), latents, noise, timesteps)
