"""Jobs -> rows.csv, as a stream; goes on where an interrupted one stopped."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cdiff.errors import UserError
from cdiff.evaluation.rows import CSV_FILE, Job, Journal
from cdiff.metrics import Item, Scorer, score_items

if TYPE_CHECKING:
    from cdiff.metrics import Reference

log = logging.getLogger("cdiff")


def score_jobs(
    jobs: Sequence[Job],
    folder: Path,
    scorers: Sequence[Scorer],
    metrics: Sequence[str],
    references: Mapping[str, Reference | None],
    *,
    max_bad_share: float,
    batch_size: int = 16,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> tuple[Path, int]:
    """Score each job's image into FOLDER/rows.csv. Returns that file and how many rows were there already.

    Args:
        references: concept of a job -> features of its real pictures; null: image metrics are left empty.
        max_bad_share: more unreadable images than this share of all end it.

    Raises:
        UserError: too many images that can't be read.
    """
    file = folder / CSV_FILE
    journal, kept = Journal.resume(file, metrics, jobs, batch_size)
    tick = progress or (lambda _count: None)
    tick(kept)
    limit = math.floor(max_bad_share * len(jobs))
    bad: list[str] = []
    with journal:
        items = (
            Item(job.path, job.text, references.get(job.concept), job) for job in itertools.islice(jobs, kept, None)
        )
        for count, scored in enumerate(score_items(scorers, items, batch_size, workers), 1):
            journal.add(scored.item.key, scored.values, scored.fault)
            if count % batch_size == 0:
                journal.flush()
            tick(1)
            if scored.fault:
                bad.append(scored.item.key.file)
                log.warning("not scored: %s", scored.fault)
                refuse_too_many(bad, len(bad), limit, len(jobs), max_bad_share)
    return file, kept


def refuse_too_many(names: Sequence[str], bad: int, limit: int, total: int, share: float) -> None:
    """Raises UserError when more images are bad than may be, or all of them."""
    if bad > limit or bad == total:
        named = ", ".join(names[:5]) + (" ..." if bad > 5 else "")
        raise UserError(
            f"{bad} of {total} images can't be read ({named}), more than evaluate.max_bad_share={share:g} allows: "
            "mend or remove them."
        )
