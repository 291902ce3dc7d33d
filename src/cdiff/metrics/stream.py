"""Images read and preprocessed by threads while the models run."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from cdiff.data.images import Picture, read_picture
from cdiff.errors import UserError
from cdiff.metrics.interface import Item, Scored, Scorer

MOST_WORKERS = 16

In = TypeVar("In")
Out = TypeVar("Out")


def iterate_images(paths: Iterable[Path], workers: int = 0) -> Iterator[Picture | UserError]:
    """Pictures in the order of `paths`, read ahead by threads (0: one for each core, at most 16).

    A file that can't be read comes as its UserError and does not stop the rest.
    """

    def read(path: Path) -> Picture | UserError:
        try:
            return read_picture(path)
        except UserError as error:
            return error

    workers = _workers(workers)
    return _ahead(read, paths, workers, 2 * workers)


def score_items(
    scorers: Sequence[Scorer], items: Iterable[Item], batch_size: int = 32, workers: int = 0
) -> Iterator[Scored]:
    """Score a stream of items by every scorer, in order, one Scored an item.

    Files are decoded and preprocessed by `workers` threads (0: one for each core, at most 16) into a bounded queue, so
    memory does not grow with the number of items; items are taken from the iterable as they are needed. An unreadable
    file yields a Scored with a fault and does not stop the rest.

    Raises:
        UserError: a model that can't be loaded, before the first item is read.
    """
    for scorer in scorers:
        scorer.load()

    def prepare(item: Item) -> tuple[Item, list[Any] | UserError]:
        try:
            image = read_picture(item.image).image if isinstance(item.image, str | Path) else item.image
        except UserError as error:
            return item, error
        return item, [scorer.prepare(image) for scorer in scorers]

    workers = _workers(workers)
    stream = _ahead(prepare, items, workers, 2 * batch_size + workers)
    while batch := list(itertools.islice(stream, batch_size)):
        yield from _score_batch(scorers, batch)


def _score_batch(scorers: Sequence[Scorer], batch: list[tuple[Item, list[Any] | UserError]]) -> list[Scored]:
    good = [(item, prepared) for item, prepared in batch if not isinstance(prepared, UserError)]
    columns: dict[str, Any] = {}
    if good:
        prompts, references = [item.prompt for item, _ in good], [item.reference for item, _ in good]
        for number, scorer in enumerate(scorers):
            columns |= scorer.score_prepared([prepared[number] for _, prepared in good], prompts, references)
    rows = iter(range(len(good)))
    out = []
    for item, prepared in batch:
        if isinstance(prepared, UserError):
            out.append(Scored(item, {}, str(prepared)))
        else:
            row = next(rows)
            out.append(Scored(item, {name: float(column[row]) for name, column in columns.items()}))
    return out


def _ahead(work: Callable[[In], Out], things: Iterable[In], workers: int, depth: int) -> Iterator[Out]:
    """`work` of each thing, in order, done by threads at most `depth` things ahead of whoever reads."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="cdiff-loader")
    waiting: deque[Future[Out]] = deque()
    source = iter(things)
    try:
        while True:
            waiting.extend(pool.submit(work, thing) for thing in itertools.islice(source, depth - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:  # also when the reader stops early
        pool.shutdown(wait=True, cancel_futures=True)


def _workers(asked: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return asked or min(MOST_WORKERS, cores)
