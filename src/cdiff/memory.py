"""How much of a GPU's memory a training takes, by count, and what is said when it is not enough.

Counted on the architectures at their own resolution in bf16: weights by their number; activations and input gradients
by every allocation of a step (experiments/speed/activations.py), less what fused kernels spare (measured). What
libraries take for themselves (CUDA's context, half a GiB or so) comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from cdiff.schema import Config

GIB = 2**30
TRAINED_BYTES = 16  # a trained weight in fp32, its gradient, AdamW's two moments


@dataclass(frozen=True)
class Size:
    """A base model: weights in millions, memory in GiB of bf16."""

    weights: float  # of all parts
    unet: float
    keys_values: float  # of the cross-attention
    pixels: int  # a side
    step: dict[str, tuple[float, float]]  # an image, with memory=normal and low; by what trains: K and V, everything
    encode: float  # a picture through the VAE


SIZES = {
    "sd15": Size(1066.2, 859.5, 19.17, 512, {"kv": (0.712, 0.210), "all": (0.887, 0.225)}, 0.312),
    "sd21_base": Size(1290.0, 865.9, 25.56, 512, {"kv": (0.673, 0.172), "all": (0.887, 0.225)}, 0.312),
    "sd21": Size(1290.0, 865.9, 25.56, 768, {"kv": (1.511, 0.387), "all": (1.991, 0.506)}, 0.703),
    "sdxl": Size(3468.8, 2567.5, 340.79, 1024, {"kv": (4.846, 0.511), "all": (6.445, 0.675)}, 1.250),
}
# Stable Diffusion 1.5 on an H200, batch 2 and 8, memory=normal (experiments/speed): what fused kernels leave of the
# counted activations, and GiB of workspaces and copies that no image adds to. Taken for the other bases too.
FUSED, WORKSPACES = 0.75, 0.18
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "auto": 2}
ENCODED_PIXELS = {"normal": 8 * 512 * 512, "low": 1}  # of training views that go through the VAE at once, at the most
ENCODED = 64  # and no more views than that
ENCODED_PIXELS_CPU = 8 * 128 * 128  # larger activations leave the caches: 64 pocket views took three times as long


@dataclass(frozen=True)
class Estimate:
    """GiB of GPU memory that tensors hold at the most in each part of a training."""

    encoding: float
    training: float
    lowest: bool  # whether more is needed than is counted: a method whose activations autocast widens

    @property
    def most(self) -> float:
        return max(self.encoding, self.training)

    def in_words(self) -> str:
        least = "at least" if self.lowest else "about"
        return (
            f"{least} {self.most:.1f} GiB of a GPU's (encoding {self.encoding:.1f}, training {self.training:.1f}), "
            "by count, beside what CUDA takes for itself"
        )


def estimate(cfg: Config) -> Estimate | None:
    """Of a training on a GPU; None for a base whose size is not known, and for the pocket's, which needs no GPU."""
    size = SIZES.get(cfg.model.name)
    if size is None or cfg.task != "train":
        return None
    width = BYTES[cfg.precision]
    scale = (cfg.model.resolution / size.pixels) ** 2 * width / 2
    frozen, trained, kind = size.weights, 0.0, "kv"
    if cfg.method.train_unet in ("crossattn_kv", "crossattn"):
        trained = size.keys_values * (1 if cfg.method.train_unet == "crossattn_kv" else 2)
    elif cfg.method.train_unet == "all":
        trained, kind = size.unet, "all"
    weights = ((frozen - trained) * width + trained * TRAINED_BYTES) * 1e6 / GIB
    low = cfg.memory == "low"
    images = cfg.train.batch_size * (2 if cfg.prior.name != "none" else 1)
    an_image = size.step[kind][low] * scale * (FUSED if kind == "kv" and not low and _is_fused(cfg) else 1.0)
    encoded = views_at_once(cfg.memory, cfg.model.resolution)
    return Estimate(
        encoding=frozen * width * 1e6 / GIB + encoded * size.encode * scale,
        training=weights + WORKSPACES + images * an_image,
        lowest=cfg.method.train_unet in ("all", "lora"),
    )


def _is_fused(cfg: Config) -> bool:
    """Whether the UNet's layers have the fused kernels, as far as the settings say."""
    return cfg.precision != "fp32" and cfg.model.fused is not False and cfg.model.channels_last is not False


def views_at_once(memory: str, resolution: int, device: str = "cuda") -> int:
    """How many training views go through the VAE together. device: its type, as torch names it."""
    pixels = ENCODED_PIXELS[memory] if device == "cuda" else min(ENCODED_PIXELS[memory], ENCODED_PIXELS_CPU)
    return min(ENCODED, max(1, pixels // resolution**2))


def refusal(error: BaseException) -> str | None:
    """A sentence for an error that says a GPU's memory is used up; None for any other."""
    if type(error).__name__ != "OutOfMemoryError":
        return None
    return (
        f"The GPU's memory is used up{_held()}. Use memory=low, a smaller train.batch_size with more "
        "train.gradient_accumulation_steps, sampler.batch_size=1, or a smaller model.resolution; `dry_run=true` tells "
        "what a run needs."
    )


def _held() -> str:
    """Who holds it, as far as the driver tells."""
    try:
        import torch

        free, total = torch.cuda.mem_get_info()
        own = torch.cuda.memory_reserved()
    except (ImportError, RuntimeError, AssertionError):
        return ""
    others = max(0, total - free - own)
    return f": this process holds {own / GIB:.1f} GiB and others {others / GIB:.1f} of {total / GIB:.1f} GiB"
