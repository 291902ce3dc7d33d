"""What a VAE has decoded, as pictures; on a GPU fetched without waiting for it until they are asked for."""

from __future__ import annotations

import torch
from PIL import Image

from cdiff.errors import UserError


class Decoded:
    """Pictures on their way: (B, 3, H, W) in [-1, 1], as the VAE of the model `path` decoded them."""

    def __init__(self, pixels: torch.Tensor, path: str) -> None:
        pixels = pixels.float()
        levels = ((pixels * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)  # in the very steps of diffusers
        levels = levels.permute(0, 2, 3, 1).contiguous()
        self.path = path
        self.levels, self.finite = (x.to("cpu", non_blocking=True) for x in (levels, pixels.isfinite().all()))
        self.arrived = torch.cuda.Event() if pixels.is_cuda else None
        if self.arrived is not None:
            self.arrived.record(torch.cuda.current_stream(pixels.device))

    def images(self) -> list[Image.Image]:
        """RGB, once they have arrived.

        Raises:
            UserError: when the pixels aren't finite.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        if not self.finite:
            raise UserError(
                f"The model {self.path} drew images that aren't finite numbers; draw again with precision=fp32, "
                "or train with a lower optimizer.learning_rate if that doesn't help."
            )
        return [Image.fromarray(image) for image in self.levels.numpy()]
