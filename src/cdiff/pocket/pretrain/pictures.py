"""Training pictures: rendered by worker processes into shards, read by the stages as they appear."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cdiff.errors import UserError
from cdiff.pocket.world.captions import caption
from cdiff.pocket.world.motion import stirred, verb_of_picture
from cdiff.pocket.world.render import render
from cdiff.pocket.world.sample import main_subject, sample_identity, sample_scene
from cdiff.pocket.world.spec import ACCESSORIES, COLORS, KINDS, SCENES, Scene

SHARD = 10_000  # pictures in a shard
GROUP = 4  # pictures of one identity in a row, for the identity stage
CAPTIONS = (0.0, 0.0, 0.5, 1.0)  # the `detail` of each caption kept with a picture
WORDS = 48  # tokens kept of a caption; the longest the grammar makes is shorter
RESOLUTION = 128
PAIRS = 0.16  # share of the pictures that show two subjects
MOVING = 0.15  # share of the pictures whose subject is caught in a movement, as in the clips of the motion stage


def scene_at(index: int, split: str = "train", base: int = 0, pair: float = PAIRS) -> Scene:
    """The scene of picture `index`; GROUP neighbours share their main identity. Only the split "judge", for the probe,
    shows the combinations that are held out of training: a judge that never saw them would not believe them."""
    group, everything = random.Random(f"{split}/identity/{index // GROUP}"), split == "judge"
    identity = sample_identity(group, group.choice(KINDS), base=base, everything=everything)
    scene = sample_scene(random.Random(f"{split}/{index}"), identity, base, pair, everything)
    moves = random.Random(f"{split}/moves/{index}")
    return stirred(scene, moves) if moves.random() < MOVING else scene


def labels_of(scene: Scene) -> list[int]:
    """[background, then kind, colour, accessory of the main subject, then of the other; -1 where there is none]."""
    main = main_subject(scene)
    others = [s for s in scene.subjects if s is not main]
    row = [SCENES.index(scene.background)]
    for subject in [main, *others]:
        row += [KINDS.index(subject.identity.kind), COLORS.index(subject.identity.color)]
        row.append(ACCESSORIES.index(subject.accessory) if subject.accessory else -1)
    return row + [-1] * (7 - len(row))


def render_shard(folder: str, shard: int, size: int, split: str = "train", pair: float = PAIRS) -> int:
    """Writes pictures [shard * size, (shard + 1) * size) as `NNNN-*.npy`; the pixels come last."""
    from cdiff.pocket.pretrain.tokenizer import build_tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = build_tokenizer()
    pixels = np.empty((size, RESOLUTION, RESOLUTION, 3), np.uint8)
    labels = np.empty((size, 7), np.int8)
    texts: list[str] = []
    for row in range(size):
        index = shard * size + row
        scene = scene_at(index, split, pair=pair)
        pixels[row] = np.asarray(render(scene, RESOLUTION))
        labels[row] = labels_of(scene)
        words = random.Random(f"caption/{index}")
        texts += [caption(scene, words, detail, verb_of_picture(scene, words)) for detail in CAPTIONS]
    ids = tokenizer(texts, padding="max_length", max_length=WORDS, truncation=True).input_ids
    ids = np.asarray(ids, np.int16).reshape(size, len(CAPTIONS), WORDS)
    write_arrays(folder, shard, {"ids": ids, "labels": labels, "pixels": pixels})
    return shard


def write_arrays(folder: str, shard: int, arrays: dict[str, np.ndarray]) -> None:
    """Writes `NNNN-NAME.npy` in this order, each put in place whole: the last one says that the shard is complete."""
    for name, array in arrays.items():
        part = Path(folder) / f"{shard:04d}-{name}.part.npy"
        np.save(part, array)
        os.replace(part, Path(folder) / f"{shard:04d}-{name}.npy")


def render_pictures(folder: Path, count: int, workers: int, settings: dict, log, split: str = "train") -> None:
    """Renders `count` pictures in shards; shards that exist are kept. settings: `shard`, pictures in each, and `pair`,
    the share of pictures with two subjects.

    Raises:
        UserError: a shard would end amid the pictures of one identity.
    """
    size, pair = settings.get("shard", SHARD), settings.get("pair", PAIRS)
    if size % GROUP:
        raise UserError(f"shard={size} is no multiple of {GROUP}, the pictures in a row that show the same identity")
    about = {"resolution": RESOLUTION, "shard": size, "group": GROUP, "split": split, "pair": pair}
    worker = partial(render_shard, split=split, pair=pair)
    render_shards(worker, folder, "pictures", about, -(-count // size), workers, log)


def render_shards(worker: Callable, folder: Path, name: str, about: dict, shards: int, workers: int, log) -> None:
    """Runs worker(folder, shard, size) for each shard without pixels; `name`.json says what the folder holds.

    Raises:
        UserError: the folder holds shards of another kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index, size = folder / f"{name}.json", about["shard"]
    if index.exists() and json.loads(index.read_text()) != about:
        raise UserError(f"{folder} holds {name} of other settings ({index.read_text()}): remove it, or use another")
    index.write_text(json.dumps(about))
    todo = [s for s in range(shards) if not (folder / f"{s:04d}-pixels.npy").exists()]
    with ProcessPoolExecutor(max(1, workers)) as pool:
        for shard in pool.map(worker, [str(folder)] * len(todo), todo, [size] * len(todo)):
            log(f"rendered {(shard + 1) * size} {name}")


class Pictures:
    """The pictures rendered so far, on the training device: pixels (N, H, W, 3) uint8, ids, labels.

    `refresh` takes in at most one new shard, so a stage can start while rendering goes on.
    """

    def __init__(self, folder: Path, capacity: int, device: torch.device):
        self.folder, self.device, self.shards = folder, device, 0
        self.shard = json.loads((folder / "pictures.json").read_text())["shard"]
        self.capacity = max(1, capacity // self.shard)
        rows = self.capacity * self.shard
        self.pixels = torch.empty((rows, RESOLUTION, RESOLUTION, 3), dtype=torch.uint8, device=device)
        self.ids = torch.empty((rows, len(CAPTIONS), WORDS), dtype=torch.int16, device=device)
        self.labels = torch.empty((rows, 7), dtype=torch.int8, device=device)

    def __len__(self) -> int:
        return self.shards * self.shard

    def refresh(self) -> bool:
        """Loads the next shard if it is there and room is left; whether it did."""
        if self.shards == self.capacity or not self.load_shard(self.shards, self.shards):
            return False
        self.shards += 1
        return True

    def load_shard(self, shard: int, place: int) -> bool:
        """Reads shard number `shard` into the rows of place number `place`; False where it is not rendered yet."""
        if not (self.folder / f"{shard:04d}-pixels.npy").exists():
            return False
        rows = slice(place * self.shard, (place + 1) * self.shard)
        for name in ("pixels", "ids", "labels"):
            array = np.load(self.folder / f"{shard:04d}-{name}.npy")
            getattr(self, name)[rows] = torch.from_numpy(array).to(self.device)
        return True

    def images(self, index: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) float in [-1, 1], channels last."""
        return self.pixels[index].permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)

    def captions(self, index: torch.Tensor, variant: torch.Tensor, length: int, pad: int) -> torch.Tensor:
        """Token ids (B, length) of one caption each, padded with `pad`."""
        ids = self.ids[index, variant].long()
        return torch.nn.functional.pad(ids, (0, length - WORDS), value=pad)
