"""The pocket world: rendered pictures with known truth, and the small models trained on them.

The rest of cdiff meets it as folders: of weights (`weights_folder`) and of images (`render_concept`).
"""

from __future__ import annotations

from pathlib import Path

from cdiff.errors import UserError

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
