"""How much arithmetic a run at Stable Diffusion 1.5's size is, and so how long a GPU takes at the least.

Counted on the architecture at 512 pixels, in TFLOP an image: UNet forward 0.805 (859.5 M parameters); forward and
backward with cross-attention K and V alone trained 1.67; VAE encode 1.12, decode 2.51. Scoring is left out: its models
are hundreds of times smaller than a sampled image's hundred UNet passes. This is arithmetic, not a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

from cdiff.schema import Config

FORWARD = 0.805
TRAINED = {"crossattn_kv": 1.67, "crossattn": 1.67, "none": 1.67, "lora": 1.67, "all": 3 * FORWARD}
ENCODE, DECODE = 1.12, 2.51
PEAK = 790.0  # TFLOP/s: matrix products in bf16 as measured on an H100
SHARE = 0.3  # of the peak, that small batches reach; a guess to plan by
PIXELS = 512 * 512


@dataclass(frozen=True)
class Cost:
    """TFLOP of training and of drawing."""

    training: float = 0.0
    drawing: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.training + other.training, self.drawing + other.drawing)

    @property
    def total(self) -> float:
        return self.training + self.drawing

    def in_words(self) -> str:
        """ "1.2 GPU hours at the least, about 4 to plan with (...)"."""
        least = self.total / PEAK / 3600
        drawing = self.drawing / max(self.total, 1e-9)
        return (
            f"{_hours(least)} GPU hours at the least, about {_hours(least / SHARE)} to plan with: "
            f"{self.total / 1000:,.0f} PFLOP by count ({drawing:.0%} of it drawing) at an H100's {PEAK:.0f} TFLOP/s "
            f"and at {SHARE:.0%} of it; not measured"
        )


def cost(cfg: Config, prompts: int | None = None) -> Cost | None:
    """Of a training run with what comes after it; null for a base of another size.

    prompts: of the evaluation for each concept; null: as many as the protocol has.
    """
    if cfg.task != "train" or cfg.model.world != "photo":
        return None
    scale = cfg.model.resolution**2 / PIXELS
    samples = cfg.train.steps * cfg.train.batch_size * cfg.train.gradient_accumulation_steps
    views = min(cfg.augment.views or samples, samples)
    with_prior = samples * (2 if cfg.prior.name != "none" else 1)
    training = with_prior * TRAINED[cfg.method.train_unet] + views * ENCODE
    images = cfg.prior.count if cfg.prior.name == "generated" else 0
    if "sample" in cfg.train.then:
        images += cfg.images_per_prompt * max(len(cfg.prompts), 1 if cfg.prompt else 4)
    if "evaluate" in cfg.train.then:
        protocol = cfg.protocol
        each = len(protocol.prompts) + max(len(protocol.live), len(protocol.object)) if prompts is None else prompts
        images += protocol.images_per_prompt * (
            each * len(cfg.concepts) + len(protocol.joint) * (len(cfg.concepts) > 1)
        )
    passes = cfg.sampler.steps * (2 if cfg.sampler.guidance_scale > 1 else 1)
    return Cost(training * scale, images * (passes * FORWARD + DECODE) * scale)


def _hours(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 0.1 else f"{hours:.2g}"
