"""The parts of the training loss: pure functions of tensors.

L = L_recon + w_prior * L_prior + w_spl * L_spl   (ClassDiffusion, arXiv 2405.17532)
"""

from cdiff.losses.diffusion import diffusion_target, reconstruction_loss
from cdiff.losses.prior import prior_loss
from cdiff.losses.semantic_preservation import phrases, semantic_preservation_loss

__all__ = ["diffusion_target", "phrases", "prior_loss", "reconstruction_loss", "semantic_preservation_loss"]
