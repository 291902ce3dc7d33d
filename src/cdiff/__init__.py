"""cdiff: personalise text-to-image diffusion models without losing what they compose."""

__version__ = "0.1.0"
