"""Stage `probe`: trains the attribute probe on renders, half of them as the VAE (finished or not) gives them back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import PartialState
from transformers import ResNetConfig, ResNetForImageClassification

from cdiff.pocket.pretrain.clip import distort
from cdiff.pocket.pretrain.loop import compiled, fit, part_ways, save_half
from cdiff.pocket.pretrain.pictures import Pictures
from cdiff.pocket.pretrain.softening import softener
from cdiff.pocket.probe import SPLITS, enlarge, split_logits
from cdiff.pocket.world.spec import ACCESSORIES, KINDS


def build_probe(sizes: Sequence[int] = (32, 64, 96, 128)) -> ResNetForImageClassification:
    config = ResNetConfig(
        embedding_size=sizes[0],
        hidden_sizes=list(sizes),
        depths=[2, 2, 2, 2],
        layer_type="basic",
        num_labels=sum(SPLITS),
    )
    return ResNetForImageClassification(config)


def probe_losses(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The four losses; labels (B, 7) as `pictures.labels_of` writes them."""
    scenes, kinds, accessories, colors = split_logits(logits.float())
    labels = labels.long()
    rows = torch.arange(len(labels), device=labels.device)
    present, worn = torch.zeros_like(kinds), torch.zeros_like(accessories)
    color_loss, count = 0.0, 0
    for kind, color, accessory in (labels[:, 1:4].T, labels[:, 4:7].T):
        there = (kind >= 0).float()
        present[rows, kind.clamp(min=0)] += there
        worn[rows, accessory.clamp(min=0)] += (accessory >= 0).float()
        each = F.cross_entropy(colors[rows, kind.clamp(min=0)], color.clamp(min=0), reduction="none")
        color_loss, count = color_loss + (each * there).sum(), count + there.sum()
    parts = {
        "scene": F.cross_entropy(scenes, labels[:, 0]),
        "kind": F.binary_cross_entropy_with_logits(kinds, present.clamp(max=1)) * len(KINDS) / 4,
        "accessory": F.binary_cross_entropy_with_logits(accessories, worn.clamp(max=1)) * len(ACCESSORIES) / 2,
        "color": color_loss / count,
    }
    return {"loss": sum(parts.values()), **parts}


def train_probe(pictures: Pictures, settings: dict, minutes: float | None, folder: Path, log) -> int:
    device = pictures.device
    torch.manual_seed(3)
    model = build_probe(settings.get("channels", (32, 64, 96, 128))).to(device, memory_format=torch.channels_last)
    part_ways(3)
    soften = softener(pictures, folder, settings)
    forward = compiled(lambda images: model(enlarge(images)).logits, device, settings)

    def draw(step: int) -> tuple[torch.Tensor, ...]:
        if step % 10 == 0:
            pictures.refresh()
            soften()
        index = torch.randint(len(pictures), (settings["batch_size"],), device=device)
        return distort(pictures.images(index)), pictures.labels[index]

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return probe_losses(forward(images), labels)

    average, steps = fit(model, draw, loss_of, settings, minutes, log)
    if PartialState().is_main_process:
        save_half(average, folder / "probe")
    return steps
