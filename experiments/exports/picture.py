"""The picture at the head of README.md: one training picture, then four of a run's samples.

python experiments/exports/picture.py outputs/first docs/images/first.png
"""

import sys
from pathlib import Path

from PIL import Image

from cdiff.pocket import render_concept

SIDE, GAP = 192, 8
NAMES = (
    "a-photo-of-a-new1-dog-1",
    "a-new1-dog-wearing-headphones-1",
    "a-new1-dog-on-the-beach-1",
    "a-new1-dog-in-the-snow-1",
)

run, out = Path(sys.argv[1]), Path(sys.argv[2])
files = [min(Path(render_concept("dog")).glob("*.png")), *(run / "samples" / f"{name}.png" for name in NAMES)]
sheet = Image.new("RGB", (len(files) * (SIDE + GAP) - GAP, SIDE), "white")
for place, file in enumerate(files):
    sheet.paste(
        Image.open(file).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), (place * (SIDE + GAP), 0)
    )
sheet.save(out, optimize=True)
