"""One run, or one folder of images: draw what is missing, score, average, write. The parts in their order."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdiff import console, processes, shared
from cdiff.errors import UserError
from cdiff.evaluation.drawn import draw_missing
from cdiff.evaluation.folders import read_image_folder
from cdiff.evaluation.prompts import metric_text
from cdiff.evaluation.protocol import Subject, read_cases
from cdiff.evaluation.results import Result, write_result
from cdiff.evaluation.rows import CSV_FILE, Job, read_rows, write_parquet
from cdiff.evaluation.scoring import refuse_too_many, score_jobs
from cdiff.evaluation.summary import summarise
from cdiff.metrics import Reference, Scorer, open_metrics, prepare_references
from cdiff.metrics.references import content_key
from cdiff.runs import atomic_write
from cdiff.sampling import Request, image_seed
from cdiff.schema import Config

if TYPE_CHECKING:
    import torch

    from cdiff.data.images import Picture
    from cdiff.models import Base

IMAGE_METRICS = ("clip_i", "dino_i", "recognized")  # compare with real pictures
SCORING_FILE = "scoring.json"
FOLDER = "evaluation"


@dataclass(frozen=True)
class Scoring:
    """The scorers of a configuration and the metrics they give, in the order of the columns."""

    scorers: list[Scorer]
    metrics: tuple[str, ...]

    def models(self) -> dict[str, str]:
        """Metric -> the model that gave it."""
        return {name: scorer.model for scorer in self.scorers for name in scorer.metrics if name in self.metrics}


def open_scoring(cfg: Config, world: str, device: torch.device | str, with_references: bool) -> Scoring:
    """Open the metrics of the configuration; those that compare with real pictures are left out where there are none.

    Raises:
        UserError: nothing is left to score, or the objective is not among it.
    """
    scorers = shared.get(
        "scorers", (repr(cfg.metrics), world, str(device)), lambda: open_metrics(cfg.metrics, world, device)
    )
    for scorer in scorers:
        scorer.forget()
    asked = [name for scorer in scorers for name in scorer.metrics]
    metrics = tuple(name for name in asked if with_references or name not in IMAGE_METRICS)
    if not metrics:
        what = f"{', '.join(asked)} compare with real pictures: give their folder, references=DIR" if asked else (
            f"there is no metric model for the {world} world: name one, metrics.clip=DIR"
        )  # fmt: skip
        raise UserError(f"Nothing can be scored: {what}.")
    left_out = [name for name in asked if name not in metrics]
    if left_out:
        console.say(f"{', '.join(left_out)} left out: they compare with real pictures, given by references=DIR.")
    return Scoring([scorer for scorer in scorers if set(scorer.metrics) & set(metrics)], metrics)


def evaluate_run(
    cfg: Config,
    subjects: Sequence[Subject],
    pictures: Mapping[str, Sequence[Picture]],
    folder: Path,
    scoring: Scoring,
    base: Callable[[], Base],
    made: str,
    facts: Mapping[str, Any],
) -> Result | None:
    """Evaluate a trained adapter by `cfg.protocol`, in FOLDER/evaluation/NAME. Several processes share the drawing; the
    first alone scores, and the others get None.

    Args:
        cfg: with the run's own model; sampler, seed, protocol and metrics are the evaluation's.
        pictures: concept -> its real pictures.
        base: gives the model with the adapter applied; called when an image is missing.
        made: what tells this adapter's weights from others'.
        facts: about the run, for metrics.json: run, method ...
    """
    cases = read_cases(cfg.protocol, subjects)
    target = folder / FOLDER / (cfg.evaluate.name or cfg.protocol.name)
    with locked(target) if processes.is_first() else contextlib.nullcontext():
        each = range(cfg.protocol.images_per_prompt)
        asked = [(c, Request(c.prompt, i, image_seed(cfg.seed, c.prompt, i))) for c in cases for i in each]
        images = target / "images"
        files = draw_missing(cfg, [request for _, request in asked], images, base, made)
        if not processes.is_first():
            return None
        classes = {subject.token: subject.class_word for subject in subjects}
        conf = cfg.evaluate
        texts = {c.prompt: metric_text(c.prompt, conf.prompt_rule, classes, conf.tokens) for c in cases}
        jobs = [
            Job(case.label, request.prompt, texts[case.prompt], request.index, request.seed, images, file)
            for (case, request), file in zip(asked, files, strict=True)
        ]
        real = {case.label: [p for name in case.concepts for p in pictures.get(name, ())] for case in cases}
        named = dict(facts) | {"protocol": cfg.protocol.name}
        return _scored(cfg, jobs, real, target, scoring, named, [s.name for s in subjects])


def evaluate_images(
    cfg: Config, folder: Path, pictures: Sequence[Picture], scoring: Scoring, facts: Mapping[str, Any]
) -> Result:
    """Score anybody's images (`read_image_folder`), in FOLDER/evaluation/NAME, or in the run's own folder."""
    conf = cfg.evaluate
    jobs = read_image_folder(folder, conf.prompt_rule, conf.tokens)
    target = folder / FOLDER / (conf.name or "images")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError:
        target = Path(facts["folder"]) / FOLDER / (conf.name or "images")
    with locked(target):
        concept = jobs[0].concept
        named = {key: value for key, value in facts.items() if key != "folder"}
        return _scored(cfg, jobs, {concept: pictures}, target, scoring, named, [concept])


def _scored(
    cfg: Config,
    jobs: list[Job],
    real: Mapping[str, Sequence[Picture]],
    target: Path,
    scoring: Scoring,
    facts: Mapping[str, Any],
    concepts: Sequence[str],
) -> Result:
    """Rows, averages and metrics.json of images that lie on the disk."""
    references: dict[str, Reference | None] = {
        label: prepare_references(scoring.scorers, pictures) if pictures else None for label, pictures in real.items()
    }
    _forget_other_scores(target, scoring, real)
    with console.progress(len(jobs), "Scoring") as ticker:
        file, kept = score_jobs(
            jobs,
            target,
            scoring.scorers,
            scoring.metrics,
            references,
            max_bad_share=cfg.evaluate.max_bad_share,
            batch_size=cfg.metrics.batch_size,
            workers=cfg.metrics.workers,
            progress=ticker,
        )
    if kept:
        console.say(f"{kept} of {len(jobs)} images had been scored before.")
    summary = summarise(read_rows(file), scoring.metrics, cfg.evaluate.resamples)
    _check_share(summary.bad, summary.bad_files, len(jobs), cfg.evaluate.max_bad_share)
    write_parquet(file, scoring.metrics)
    counts = {label: len(pictures) for label, pictures in real.items()}
    facts = dict(facts) | {"prompt_rule": cfg.evaluate.prompt_rule, "references": counts, "seed": cfg.seed}
    facts["image_folder"] = str(jobs[0].folder.absolute())
    result = Result(target, facts, tuple(concepts), scoring.models(), summary)
    write_result(result)
    return result


def _check_share(bad: int, names: Sequence[str], total: int, share: float) -> None:
    """Rows kept from an earlier call may be the bad ones: the share is judged again over all."""
    if bad:
        refuse_too_many(names, bad, int(share * total), total, share)
        console.warn(f"{bad} of {total} images could not be read and are not part of the result.")


def _forget_other_scores(target: Path, scoring: Scoring, real: Mapping[str, Sequence[Picture]]) -> None:
    """Rows that other models, or other real pictures, gave are dropped."""
    keys = {
        label: hashlib.sha256("".join(content_key(picture.image) for picture in pictures).encode()).hexdigest()[:16]
        for label, pictures in real.items()
    }
    now = {"models": {scorer.name: scorer.fingerprint() for scorer in scoring.scorers}, "references": keys}
    file = target / SCORING_FILE
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if before is not None and before != now:
        (target / CSV_FILE).unlink(missing_ok=True)
    atomic_write(file, json.dumps(now, indent=2) + "\n")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Two processes must not write the rows of one evaluation.

    Raises:
        UserError: another one does, or the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"The evaluation can't be written into {folder} ({error.strerror or error}).") from error
    with stream:
        try:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such locks on this system
            pass
        except OSError:
            raise UserError(
                f"Another process is evaluating in {folder}: wait for it, or give evaluate.name=."
            ) from None
        yield
