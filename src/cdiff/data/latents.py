"""Training views encoded ahead: a training step samples latents from these moments and never runs the VAE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from cdiff import processes
from cdiff.concepts import Concept
from cdiff.data.augment import View, apply_view, sample_view
from cdiff.data.beside import own_caption
from cdiff.data.images import Picture
from cdiff.data.prompts import caption, load_templates, with_prefix
from cdiff.errors import UserError
from cdiff.schema import AugmentConfig

PREPARING_THREADS = 4  # Pillow resizes outside Python's lock


@dataclass
class TrainingViews:
    """N augmented views in latent space; all tensors on the CPU, float32. latents = mean + std * randn."""

    mean: torch.Tensor  # (N, C, h, w), times scaling_factor (after shift_factor)
    std: torch.Tensor  # (N, C, h, w), times scaling_factor
    masks: torch.Tensor  # (N, 1, h, w), the weight of each cell in the loss, 0 to 1
    prompts: list[str]
    concept: list[int]  # which concept each view shows
    time_ids: torch.Tensor | None = None  # (N, 6), see size_and_crop; for SDXL

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class PlannedView:
    concept: int
    view: View
    prompt: str


def plan_views(
    concepts: Sequence[Concept],
    picture_counts: Sequence[int],
    count: int,
    conf: AugmentConfig,
    resolution: int,
    seed: int,
    templates: str | Sequence[str],
    captions: Sequence[Sequence[str | None]] | None = None,
) -> list[PlannedView]:
    """What the `count` views are, before a pixel is touched. Concepts take turns, so each has an equal share.

    captions: of each concept's pictures, the user's own; where there is one it stands in the templates' place.
    """
    if isinstance(templates, str):
        templates = load_templates(templates)
    plan = []
    for number in range(count):
        index, which = divmod(number, len(concepts))
        own_seed = f"{seed}/{which}"  # else all concepts would share their geometry
        view = sample_view(index, own_seed, picture_counts[which], resolution, conf)
        concept = concepts[which]
        own = captions[which][view.picture] if captions else None
        if own is None:
            text = caption(own_seed, index, templates, concept.token, concept.class_word, view.prefix)
        else:
            text = with_prefix(own_caption(own, concept.token, concept.class_word), view.prefix)
        plan.append(PlannedView(which, view, text))
    return plan


def encode_views(
    vae: torch.nn.Module,
    concepts: Sequence[Concept],
    pictures: Sequence[Sequence[Picture]],
    count: int,
    conf: AugmentConfig,
    resolution: int,
    seed: int,
    device: torch.device | str,
    batch_size: int,
    templates: str | Sequence[str],
    progress: Callable[[int], None] | None = None,
) -> TrainingViews:
    """Draws `count` views of the concepts' pictures and encodes them, `batch_size` at a time, in the VAE's dtype.

    pictures[i] belong to concepts[i]; `vae` is on `device`; `templates`: a name, a file or the templates;
    `progress` is told how many views each batch finished. The views don't depend on `batch_size`.
    Raises UserError for a resolution that the VAE's latents don't divide, or when the encoding isn't finite.
    """
    counts = [len(own) for own in pictures]
    captions = [[picture.caption for picture in own] for own in pictures]
    plan = plan_views(concepts, counts, count, conf, resolution, seed, templates, captions)
    return _encode_plan(vae, plan, pictures, resolution, device, batch_size, progress, conf.background)


def encode_class_images(
    vae: torch.nn.Module,
    pictures: Sequence[Picture],
    prompts: Sequence[str],
    resolution: int,
    device: torch.device | str,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> TrainingViews:
    """Images of the class for prior preservation: each once, its middle square, with its own prompt, unmasked."""
    plan = [PlannedView(0, View(number), prompt) for number, prompt in zip(range(len(pictures)), prompts, strict=True)]
    return _encode_plan(vae, plan, [pictures], resolution, device, batch_size, progress)


def _encode_plan(
    vae: torch.nn.Module,
    plan: list[PlannedView],
    pictures: Sequence[Sequence[Picture]],
    resolution: int,
    device: torch.device | str,
    batch_size: int,
    progress: Callable[[int], None] | None,
    background: float = 0.0,
) -> TrainingViews:
    factor = vae_factor(vae)
    if resolution % factor:
        raise UserError(f"model.resolution={resolution} is not a multiple of {factor}, the pixels of one latent cell.")

    def prepare(item: PlannedView) -> tuple[torch.Tensor, torch.Tensor]:
        picture = pictures[item.concept][item.view.picture]
        return apply_view(picture.image, item.view, resolution, factor, picture.mask, background)

    encoded = []
    for batch in _prepared_batches(plan, prepare, batch_size):
        mean, std = encode_pixels(vae, torch.stack([pixels for pixels, _ in batch]), device)
        encoded.append((mean, std, torch.stack([mask for _, mask in batch])))
        if progress:
            progress(len(batch) * processes.count())
    means, stds, masks = zip(*processes.together(encoded), strict=True)
    # cat, outside inference mode, makes ordinary tensors of them, which autograd can keep.
    views = TrainingViews(
        torch.cat(means), torch.cat(stds), torch.cat(masks),
        [item.prompt for item in plan], [item.concept for item in plan],
        torch.tensor([size_and_crop(item.view, pictures[item.concept][item.view.picture].image.size, resolution)
                      for item in plan], dtype=torch.float32),
    )  # fmt: skip
    if not (views.mean.isfinite().all() and views.std.isfinite().all()):
        raise UserError("The VAE gave values that are not finite in this precision: use precision=fp32 or bf16.")
    return views


def size_and_crop(view: View, size: tuple[int, int], resolution: int) -> tuple[int, ...]:
    """SDXL's micro-conditioning (arXiv 2307.01952, section 2.2) of a view, in pixels: the picture's height and width
    before resizing, top and left of the crop, height and width of the training image.

    size: (width, height) of the picture. Its square counts, and no more than the resolution: sampling asks for a
    picture of full resolution, and one that was reduced looks it. A smaller one says so, and the blur of its
    enlargement is not taken for the concept's.
    """
    side = min(*size, resolution)
    top, left = (view.top, view.left) if view.scale > 1 else (0, 0)
    return side, side, top, left, resolution, resolution


@torch.inference_mode()
def encode_pixels(
    vae: torch.nn.Module, pixels: torch.Tensor, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the scaled latents' posterior, float32 on the CPU.

    pixels: (B, 3, R, R) in [-1, 1]. Outside autocast: the VAE's own dtype decides.
    """
    device = torch.device(device)
    with torch.autocast(device.type, enabled=False):
        posterior = vae.encode(pixels.to(device, vae.dtype)).latent_dist
    scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
    return (posterior.mean.float().cpu() - shift) * scale, posterior.std.float().cpu() * scale


def vae_factor(vae: torch.nn.Module) -> int:
    """Pixels a latent cell is wide: every block of an AutoencoderKL but the last halves the picture."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def _prepared_batches(plan: list[PlannedView], prepare: Callable, batch_size: int) -> Iterator[list]:
    """Batches of prepared views in order, of several processes this one's share; the next one is prepared while the
    caller encodes."""
    batches = processes.in_turns([plan[start : start + batch_size] for start in range(0, len(plan), batch_size)])
    with ThreadPoolExecutor(PREPARING_THREADS) as pool:
        ahead: list = []
        for batch in [*batches, []]:
            ready, ahead = ahead, [pool.submit(prepare, item) for item in batch]
            if ready:
                yield [future.result() for future in ready]
