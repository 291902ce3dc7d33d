"""The same prompts and noise, a row a run.

    python experiments/claim/picture.py experiments/claim/accessories.jpg outputs/sweeps/claim_small/{2,6,1,5}-*
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from cdiff.report.study import read_pictures

WORDS = ("headphones", "santa hat", "top hat", "sunglasses", "crown", "bow tie")
SIDE, GAP, EACH = 112, 2, 2  # EACH: pictures of a prompt


def row(run: Path, words: list[str]) -> list[Image.Image]:
    """The first pictures of every word's prompt, of the run's evaluation."""
    [folder] = run.glob("evaluation/*/images")
    pictures = read_pictures(folder)
    chosen = [[picture for picture in pictures if word in picture.prompt][:EACH] for word in words]
    files = [picture.file for some in chosen for picture in some]
    return [Image.open(file).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS) for file in files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--words", nargs="+", default=list(WORDS))
    given = parser.parse_args()
    rows = [row(run, given.words) for run in given.runs]
    pitch = SIDE + GAP
    sheet = Image.new("RGB", (pitch * len(rows[0]) - GAP, pitch * len(rows) - GAP), "white")
    for y, images in enumerate(rows):
        for x, image in enumerate(images):
            sheet.paste(image, (pitch * x, pitch * y))
    sheet.save(given.out, quality=90)


if __name__ == "__main__":
    main()
