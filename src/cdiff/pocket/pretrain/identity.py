"""Stage `identity`: a ViT whose CLS feature tells individuals of one class apart, whatever scene and pose."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import PartialState
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from cdiff.pocket.pretrain.clip import MEAN, STD, distort
from cdiff.pocket.pretrain.loop import compiled, fit, part_ways, save_half
from cdiff.pocket.pretrain.pictures import GROUP, RESOLUTION, Pictures
from cdiff.pocket.pretrain.softening import softener
from cdiff.pocket.world.spec import KINDS


def build_identity(vision: dict) -> ViTModel:
    """`vision` overrides its sizes."""
    sizes = {
        "hidden_size": 192,
        "intermediate_size": 384,
        "num_hidden_layers": 5,
        "num_attention_heads": 3,
        "image_size": RESOLUTION,
        "patch_size": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    config = ViTConfig(**sizes | vision)
    return ViTModel(config, add_pooling_layer=False)


def pair_loss(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """Symmetric InfoNCE over (B, D) normalised features: row i of both is the same individual, all others are not."""
    logits = first @ second.T / temperature
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class Pairs:
    """Draws two pictures of each of many individuals of one kind; pictures with two subjects are left out.

    A batch holds `count` pairs, or fewer where the pictures there at the start have not so many individuals of a kind.
    """

    def __init__(self, pictures: Pictures, count: int):
        self.pictures, self.count, self.known = pictures, count, 0
        self.groups: list[torch.Tensor] = []

    def update(self) -> None:
        if self.known == len(self.pictures):
            return
        self.known = len(self.pictures)
        labels = self.pictures.labels[: self.known].view(-1, GROUP, 7)
        alone = labels[:, :, 4] < 0
        self.usable = alone
        kind = labels[:, 0, 1]
        enough = alone.sum(1) >= 2
        groups = [torch.nonzero((kind == k) & enough).squeeze(1) for k in range(len(KINDS))]
        self.groups = [group for group in groups if len(group) > 1]
        self.count = min([self.count, *map(len, self.groups)])

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices of pictures (B,) and of their partners (B,)."""
        groups = self.groups[int(torch.randint(len(self.groups), ()))]
        chosen = groups[torch.randperm(len(groups), device=groups.device)[: self.count]]
        order = torch.rand(len(chosen), GROUP, device=groups.device) + 9.0 * ~self.usable[chosen]
        two = order.argsort(1)[:, :2]
        return chosen * GROUP + two[:, 0], chosen * GROUP + two[:, 1]


def train_identity(pictures: Pictures, settings: dict, minutes: float | None, folder: Path, log) -> int:
    device = pictures.device
    torch.manual_seed(4)
    model = build_identity(settings.get("vision", {})).to(device)
    part_ways(4)
    soften = softener(pictures, folder, settings)
    pairs = Pairs(pictures, settings["batch_size"])
    forward = compiled(lambda images: F.normalize(model(images).last_hidden_state[:, 0], dim=-1), device, settings)

    def draw(step: int) -> tuple[torch.Tensor, ...]:
        if step % 10 == 0:
            pictures.refresh()
            soften()
            pairs.update()
        return (distort(pictures.images(torch.cat(pairs.draw()))),)

    def loss_of(images: torch.Tensor) -> dict[str, torch.Tensor]:
        first, second = forward(images).float().chunk(2)
        with torch.autocast(device.type, enabled=False):
            loss = pair_loss(first, second, settings["temperature"])
        top1 = ((first @ second.T).argmax(1) == torch.arange(len(first), device=device)).float().mean()
        return {"loss": loss, "top1": top1}

    average, steps = fit(model, draw, loss_of, settings, minutes, log)
    if PartialState().is_main_process:
        save_half(average, folder / "identity")
        size = {"height": RESOLUTION, "width": RESOLUTION}
        ViTImageProcessor(size=size, image_mean=MEAN, image_std=STD).save_pretrained(folder / "identity")
    return steps
