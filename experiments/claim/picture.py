"""The same prompts and noise, a row a run.

python experiments/claim/picture.py experiments/claim/accessories.jpg outputs/sweeps/claim_small/{2,6,1,5}-*
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from cdiff.grids import grid
from cdiff.report.study import read_pictures

WORDS = ("headphones", "santa hat", "top hat", "sunglasses", "crown", "bow tie")
EACH = 2  # pictures of a prompt


def row(run: Path, words: list[str]) -> list[Path]:
    """The first pictures of every word's prompt, of the run's evaluation."""
    [folder] = run.glob("evaluation/*/images")
    pictures = read_pictures(folder)
    return [p.file for word in words for p in [p for p in pictures if word in p.prompt][:EACH]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--words", nargs="+", default=list(WORDS))
    given = parser.parse_args()
    rows = [row(run, given.words) for run in given.runs]
    images = [Image.open(file).convert("RGB") for files in rows for file in files]
    labels = [f"{run.name.partition('-')[2]}: {', '.join(given.words)}" for run in given.runs]
    grid(images, len(rows[0]), labels).save(given.out, quality=85)


if __name__ == "__main__":
    main()
