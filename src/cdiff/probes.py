"""What is looked at while a run trains, beside its losses: drift at chosen steps, attention before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cdiff.attention_maps import class_word_map, overlay, side_by_side
from cdiff.data.images import read_folder
from cdiff.drift import DriftProbe
from cdiff.runs import PROBES
from cdiff.tokens import PromptEncoder

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from cdiff.concepts import Concept
    from cdiff.models import Base
    from cdiff.schema import Config
    from cdiff.tracking import Tracker

PIXELS = 256  # of an attention map's side


class Probes:
    """Told every step by the engine, from 0 (before the first update); does what is due. Files go to RUN/probes."""

    def __init__(
        self,
        cfg: Config,
        base: Base,
        rows: Tensor,
        concepts: Sequence[Concept],
        tracker: Tracker,
        run_folder: Path,
        validate: Callable[[int], None],
    ) -> None:
        self.cfg, self.base, self.concepts, self.tracker = cfg, base, concepts, tracker
        self.folder, self.validate = run_folder / PROBES, validate
        self.encoder = PromptEncoder(base, rows)
        self.drift = DriftProbe(base, rows, concepts, self.encoder, tracker) if cfg.probes.every else None
        self.maps: list[np.ndarray] = []  # of each concept, before training

    def __call__(self, step: int) -> None:
        last = step == self.cfg.train.steps
        if step == 0 and self.cfg.validation.every:
            self.validate(0)  # what the untrained token draws: the first column of a grid of steps
        if self.drift is not None and (step % self.cfg.probes.every == 0 or last):
            self.drift(step)
            if last:
                self.drift.save(self.folder)
        if self.cfg.probes.attention and step == 0:
            self.maps = self._maps()
        if self.maps and last:  # a run that went on from a checkpoint has seen no "before"
            self._save_maps(step)

    def _picture(self, concept: Concept) -> Image.Image:
        return read_folder(concept.folder, limit=1)[0].image

    def _maps(self) -> list[np.ndarray]:
        side = self.cfg.model.resolution
        return [class_word_map(self.base, self.encoder, c, self._picture(c), side) for c in self.concepts]

    def _save_maps(self, step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        sheets = []
        for concept, before, after in zip(self.concepts, self.maps, self._maps(), strict=True):
            picture = self._picture(concept)
            for when, attention in (("before", before), ("after", after)):
                overlay(picture, attention, PIXELS).save(self.folder / f"attention-{concept.name}-{when}.png")
            sheets.append(side_by_side(picture, before, after, PIXELS))
            sheets[-1].save(self.folder / f"attention-{concept.name}.png")
        captions = [f"{c.class_word} in {c.token}: picture, before, after" for c in self.concepts]
        self.tracker.images("attention", sheets, captions, step)
