"""The denoising loss over the valid cells of the latents."""

from __future__ import annotations

from torch import Tensor


def diffusion_target(scheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the UNet is asked for, (B, C, h, w): the noise (Ho et al. 2020), or v (Salimans & Ho 2022, appendix D)."""
    if scheduler.config.prediction_type == "epsilon":
        return noise
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    raise ValueError(f"prediction_type {scheduler.config.prediction_type} has no target")


def reconstruction_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error of the valid cells: summed over channels, averaged over each sample's cells, then over the batch.

    prediction, target (B, C, h, w); mask (B, 1, h, w), 1 where a cell shows the picture and 0 where augmentation
    left black. Each sample is divided by its own number of valid cells, so a small picture on black weighs as much
    as a full one. The release of Custom Diffusion (arXiv 2212.04488), and of ClassDiffusion after it, divides by cells
    and not by channels, so with a full mask this is C times the plain mean; kept, as it sets what a weight of SPL
    or of the prior means. Computed in fp32.
    """
    error = (prediction.float() - target.float()).square().sum(dim=1, keepdim=True)
    mask = mask.to(error.dtype)
    cells = mask.sum(dim=(1, 2, 3)).clamp(min=1.0)  # a sample with no valid cell adds 0, not NaN
    return ((error * mask).sum(dim=(1, 2, 3)) / cells).mean()
