"""One row an image, written as they are scored: rows.csv is the journal, rows.parquet is made of it in the end.

A row is one line, so that a process killed while it wrote leaves at most one half line, which is dropped. Numbers are
written so that they read back to the same bits. Memory does not grow with the number of rows.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdiff.errors import UserError

CSV_FILE, PARQUET_FILE = "rows.csv", "rows.parquet"
TEXTS = ("concept", "prompt", "text", "index", "seed", "file", "digest", "fault")
NUMBERS = ("index", "seed")
ROW_GROUP = 2_000  # rows of a parquet file held in memory at once


@dataclass(frozen=True, slots=True)  # the folder is one object for all: 100,000 jobs take 20 MB
class Job:
    """One image to score: `prompt` is what it was drawn with, `text` what the text metrics compare with."""

    concept: str
    prompt: str
    text: str
    index: int
    seed: int | None
    folder: Path
    file: str

    @property
    def path(self) -> Path:
        return self.folder / self.file


@dataclass(frozen=True)
class Row:
    """A line of rows.csv. `values` holds NaN where a metric says nothing; `fault` says why an image was not scored."""

    concept: str
    prompt: str
    text: str
    index: int
    seed: int | None
    file: str
    digest: str  # of the file's bytes: an image that changed is scored again
    fault: str
    values: dict[str, float]


class Journal:
    """rows.csv, open for appending. Use `Journal.resume`."""

    def __init__(self, file: Path, metrics: Sequence[str]) -> None:
        self.file, self.metrics = file, tuple(metrics)
        self._stream = file.open("a", encoding="utf-8", newline="")
        self._writer = csv.writer(self._stream, lineterminator="\n")

    @classmethod
    def resume(
        cls, file: Path, metrics: Sequence[str], jobs: Iterable[Job], batch_size: int = 1
    ) -> tuple[Journal, int]:
        """Open the journal after the rows that still hold; returns it and their number.

        Rows hold from the start of the file as long as they are whole, belong to the jobs in order, and their image has
        not changed. What comes after is cut off. The number is a multiple of `batch_size` (or all jobs), so that what
        is scored again falls into the same batches, and gives the same bits, as without the interruption.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        keep, kept = _header_bytes(metrics), 0
        if not file.is_file() or not _has_header(file, keep):
            file.write_bytes(keep)
        offset, count, rest = len(keep), 0, iter(jobs)
        complete = True
        for end, row in _rows_with_ends(file, metrics, len(keep)):
            job = next(rest, None)
            if job is None or not _same(row, job):
                complete = False
                break
            count += 1
            if count % batch_size == 0:
                offset, kept = end, count
            last = end
        if complete and count and next(rest, None) is None:
            offset, kept = last, count
        with file.open("r+b") as stream:
            stream.truncate(offset)
        return cls(file, metrics), kept

    def add(self, job: Job, values: Mapping[str, float], fault: str | None = None) -> None:
        """Append the row of a job; `flush` makes it lasting."""
        texts = (job.concept, job.prompt, job.text, job.index, "" if job.seed is None else job.seed, job.file)
        numbers = [_number(values.get(name, math.nan)) for name in self.metrics]
        self._writer.writerow([_line(v) for v in texts] + [digest(job.path), _line(fault or "")] + numbers)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        """Flush to the disk and close."""
        if not self._stream.closed:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of a rows.csv, one at a time; a half-written last one is passed over.

    Raises:
        UserError: no such file, or one that is no rows.csv.
    """
    try:
        with file.open("rb") as stream:
            head = stream.readline()
    except OSError as error:
        raise UserError(f"The rows {file} can't be read ({error.strerror}): evaluate the run again.") from error
    columns = next(csv.reader([head.decode("utf-8", "replace")]), [])
    if tuple(columns[: len(TEXTS)]) != TEXTS:
        raise UserError(f"{file} is no table of scored images: its columns are {', '.join(columns)[:80]}.")
    for _, row in _rows_with_ends(file, columns[len(TEXTS) :], len(head)):
        yield row


def write_parquet(rows_file: Path, metrics: Sequence[str]) -> Path:
    """rows.csv as parquet, beside it, a group of rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"index": pa.int64(), "seed": pa.int64()}
    fields = [pa.field(name, kinds.get(name, pa.string())) for name in TEXTS]
    schema = pa.schema(fields + [pa.field(name, pa.float32()) for name in metrics])
    target = rows_file.with_name(PARQUET_FILE)
    partial = target.with_name(target.name + ".part")
    with pq.ParquetWriter(partial, schema) as writer:
        for group in _groups(read_rows(rows_file), ROW_GROUP):
            columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in group] for name in TEXTS}
            for name in metrics:
                columns[name] = [None if math.isnan(row.values[name]) else row.values[name] for row in group]
            writer.write_table(pa.table(columns, schema=schema))
    os.replace(partial, target)
    return target


def digest(path: Path) -> str:
    """16 hex digits of the file's content; empty when it can't be read."""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    except OSError:
        return ""


def _same(row: Row, job: Job) -> bool:
    """Whether the row is the job's, and its image is still the one that was scored."""
    facts = (job.concept, job.prompt, job.text, job.index, job.seed, job.file)
    said = (row.concept, row.prompt, row.text, row.index, row.seed, row.file)
    return tuple(_line(f) for f in facts) == tuple(_line(f) for f in said) and row.digest == digest(job.path)


def _rows_with_ends(file: Path, metrics: Sequence[str], start: int) -> Iterator[tuple[int, Row]]:
    """Whole rows from byte `start`, each with the byte behind it; ends at the first line that is no row."""
    with file.open("rb") as stream:
        stream.seek(start)
        end = start
        for line in stream:
            end += len(line)
            row = _parsed(line, metrics) if line.endswith(b"\n") else None
            if row is None:
                return
            yield end, row


def _parsed(line: bytes, metrics: Sequence[str]) -> Row | None:
    try:
        [cells] = csv.reader([line.decode("utf-8")], strict=True)
        if len(cells) != len(TEXTS) + len(metrics):
            return None
        facts: dict[str, Any] = dict(zip(TEXTS, cells))
        facts |= {"index": int(facts["index"]), "seed": int(facts["seed"]) if facts["seed"] else None}
        numbers = [float(cell) if cell else math.nan for cell in cells[len(TEXTS) :]]
    except (ValueError, csv.Error):
        return None
    return Row(**facts, values=dict(zip(metrics, numbers)))


def _header_bytes(metrics: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([*TEXTS, *metrics])
    return text.getvalue().encode("utf-8")


def _has_header(file: Path, header: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(header)) == header


def _number(value: float) -> str:
    value = float(value)
    return "" if math.isnan(value) else repr(value)


def _line(value: object) -> str:
    """Text of one line: a prompt with a line break must not look like two rows."""
    return (
        " ".join(str("" if value is None else value).splitlines())
        .replace("\0", "?")
        .encode("utf-8", "replace")
        .decode()
    )


def _groups(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    group: list[Row] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
