"""Clips, scored frame by frame as they are drawn: one row a clip, averaged over its frames.

Beside the metrics of images, a clip as a whole gets `frame_consistency`, the mean cosine of the CLIP image features of
neighbouring frames, and `motion`, how far things move from the first frame to the last (cdiff.displacement).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdiff.displacement import displacement
from cdiff.evaluation.evaluating import FOLDER, Scoring
from cdiff.evaluation.prompts import metric_text
from cdiff.evaluation.results import Result, write_result
from cdiff.evaluation.rows import CSV_FILE, Job, Journal, read_rows, write_parquet
from cdiff.evaluation.summary import summarise
from cdiff.metrics import Item, Reference, Scorer, prepare_references, score_items
from cdiff.schema import VIDEO_METRICS, Config

if TYPE_CHECKING:
    from PIL import Image

    from cdiff.data.images import Picture
    from cdiff.evaluation.protocol import Subject
    from cdiff.sampling import Request

CONSISTENCY, MOTION = VIDEO_METRICS
HOW_MOTION = "block matching, frames of 128 px"


class ClipScorer:
    """Scores clips into FOLDER/evaluation/NAME. Use `add` for each, then `result`."""

    def __init__(
        self,
        cfg: Config,
        scoring: Scoring,
        subjects: Sequence[Subject],
        pictures: Mapping[str, Sequence[Picture]],
        folder: Path,
    ) -> None:
        """pictures: concept -> its real pictures; a clip is compared with those of the concepts its prompt names."""
        self.cfg, self.scoring, self.subjects, self.pictures = cfg, scoring, subjects, pictures
        self.clip = next((scorer for scorer in scoring.scorers if scorer.name == "clip"), None)
        self.metrics = (*scoring.metrics, *((CONSISTENCY,) if self.clip else ()), MOTION)
        self.target = folder / FOLDER / (cfg.evaluate.name or "clips")
        self.journal, _ = Journal.resume(self.target / CSV_FILE, self.metrics, [])
        self.references: dict[str, Reference | None] = {}

    def add(self, request: Request, frames: Sequence[Image.Image], file: Path) -> dict[str, float]:
        """Score one clip, whose file on the disk is `file`. Returns metric -> its number, NaN where it says nothing."""
        conf = self.cfg.evaluate
        label = self._label(request.prompt)
        classes = {subject.token: subject.class_word for subject in self.subjects}
        text = metric_text(request.prompt, conf.prompt_rule, classes, conf.tokens)
        reference = self._reference(label)
        items = (Item(frame, text, reference) for frame in frames)
        scored = list(score_items(self.scoring.scorers, items, self.cfg.metrics.batch_size, self.cfg.metrics.workers))
        values = {name: _mean([one.values[name] for one in scored]) for name in self.scoring.metrics}
        if self.clip is not None:
            values[CONSISTENCY] = frame_consistency(self.clip, frames)
        values[MOTION] = (
            displacement(frames, self.clip.place.device if self.clip else "cpu") if frames[1:] else math.nan
        )
        self.journal.add(Job(label, request.prompt, text, request.index, request.seed, file.parent, file.name), values)
        self.journal.flush()
        return values

    def result(self, facts: Mapping[str, Any]) -> Result:
        """Rows, averages and metrics.json of all clips added; facts: about the run (name, run, method ...)."""
        self.journal.close()
        rows = self.target / CSV_FILE
        write_parquet(rows, self.metrics)
        summary = summarise(read_rows(rows), self.metrics, self.cfg.evaluate.resamples)
        models = self.scoring.models() | {MOTION: HOW_MOTION}
        if self.clip is not None:
            models[CONSISTENCY] = self.clip.model
        counts = {label: 0 if found is None else found.count for label, found in self.references.items()}
        about = {"of": "clips", "frames": self.cfg.video.frames, "protocol": None, "seed": self.cfg.seed}
        about |= {"prompt_rule": self.cfg.evaluate.prompt_rule, "references": counts}
        result = Result(self.target, dict(facts) | about, tuple(self.references), models, summary)
        write_result(result)
        return result

    def _label(self, prompt: str) -> str:
        """The concepts whose tokens a prompt holds, joined by +; all of them for a prompt without any."""
        named = [subject.name for subject in self.subjects if subject.token in prompt]
        return "+".join(named or [subject.name for subject in self.subjects]) or "any"

    def _reference(self, label: str) -> Reference | None:
        if label not in self.references:
            pictures = [picture for name in label.split("+") for picture in self.pictures.get(name, ())]
            found = prepare_references(self.scoring.scorers, pictures) if pictures else None
            self.references[label] = found
        return self.references[label]


def frame_consistency(scorer: Scorer, frames: Sequence[Image.Image]) -> float:
    """Mean cosine of the scorer's image features of neighbouring frames; NaN for a single frame."""
    if len(frames) < 2:
        return math.nan
    scorer.load()
    size, prepared = scorer.place.batch_size, [scorer.prepare(frame) for frame in frames]
    parts = [scorer.encode(prepared[start : start + size]) for start in range(0, len(prepared), size)]
    features = np.concatenate(parts).astype(np.float64)
    return float((features[:-1] * features[1:]).sum(axis=1).mean())


def _mean(values: Sequence[float]) -> float:
    said = [value for value in values if not math.isnan(value)]
    return sum(said) / len(said) if said else math.nan
