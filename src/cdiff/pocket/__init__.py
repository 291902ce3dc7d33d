"""The pocket world: rendered pictures with known truth, and the small models trained on them.

The rest of cdiff meets it as folders, of weights (`weights_folder`) and of images (`render_concept`), and asks it
whether pictures show what their prompts say (`judge_images`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cdiff.errors import UserError

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from cdiff.pocket.reading import Asked

WEIGHTS = Path(__file__).parent / "weights"


def weights_folder(name: str) -> Path:
    """The folder of a shipped model (`base`, `clip`, `probe`, ...), which `from_pretrained` opens."""
    folder = WEIGHTS / name
    if not folder.is_dir():
        raise UserError(f"the pocket weights '{name}' are missing from {WEIGHTS}: install cdiff again.")
    return folder


def render_concept(name: str) -> Path:
    """The folder of five rendered pictures of a shipped concept (see `cdiff.pocket.gallery`)."""
    from cdiff.pocket.gallery import render_concept

    return render_concept(name)


def other_individuals(kind: str, count: int = 99) -> list[list[Image.Image]]:
    """Pictures of so many individuals of a kind that no pocket model has seen, as many of each as of a concept."""
    from cdiff.pocket.gallery import other_individuals

    return other_individuals(kind, count)


def read_prompt(prompt: str) -> Asked:
    """What a prompt asks of a picture: kinds, scenes, accessories, colours (see `cdiff.pocket.reading`)."""
    from cdiff.pocket.reading import read_prompt

    return read_prompt(prompt)


def judge_images(
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    folder: Path | None = None,
    device: str | torch.device = "cpu",
) -> list[dict[str, float]]:
    """Is what each prompt names in its picture? {"class", "scene", "accessory", "color"}: 1, 0, NaN not asked for.

    `folder` holds the probe; null: the shipped one. Images of any size, RGB.
    """
    from cdiff.pocket.judging import judge_images

    return judge_images(images, prompts, folder or weights_folder("probe"), device)
