"""Layers of a UNet or VAE whose many small passes over memory are one kernel (Triton), on a GPU."""
