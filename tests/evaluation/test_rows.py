"""The journal of rows: what survives a kill, what is scored again, and that nothing is held in memory."""

from __future__ import annotations

import csv
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_scorer import FakeScorer, coloured
from PIL import Image

from cdiff.errors import UserError
from cdiff.evaluation.rows import CSV_FILE, Job, Journal, Row, read_rows, write_parquet
from cdiff.evaluation.scoring import score_jobs
from cdiff.evaluation.summary import summarise

METRICS = ("clip_t", "clip_i")


def make_jobs(folder: Path, count: int = 11) -> list[Job]:
    prompts = ['a "quoted", dog', "a dog\nin two lines", "a chien très joli"]
    return [
        Job(
            "dog",
            prompts[i % 3],
            prompts[i % 3],
            i // 3,
            7 * i,
            folder,
            coloured(folder / f"{i:03d}.png", (i * 9, 40, 200 - i)).name,
        )
        for i in range(count)
    ]


def score(jobs, folder: Path, scorer: FakeScorer | None = None, share: float = 0.5, batch: int = 3) -> tuple[Path, int]:
    options = {"max_bad_share": share, "batch_size": batch, "workers": 1}
    return score_jobs(jobs, folder, [scorer or FakeScorer()], METRICS, {}, **options)


def test_rows_come_back_as_they_were_written(tmp_path):
    jobs = make_jobs(tmp_path / "images")
    file, kept = score(jobs, tmp_path)
    rows = list(read_rows(file))
    assert kept == 0 and [row.file for row in rows] == [job.file for job in jobs]
    assert rows[0].prompt == 'a "quoted", dog' and rows[1].prompt == "a dog in two lines" and rows[4].seed == 28
    assert math.isnan(rows[0].values["clip_i"])
    with Image.open(jobs[0].path) as image:
        exact = FakeScorer().score_prepared([FakeScorer().prepare(image)], [jobs[0].text], [None])
    assert np.float32(rows[0].values["clip_t"]) == exact["clip_t"][0]
    assert len(list(csv.reader(file.open(newline="", encoding="utf-8")))) == 12


def test_parquet_holds_the_same(tmp_path):
    file, _ = score(make_jobs(tmp_path / "images"), tmp_path)
    table = pq.read_table(write_parquet(file, METRICS)).to_pylist()
    for row, line in zip(read_rows(file), table, strict=True):
        assert (line["prompt"], line["index"], line["seed"], line["file"]) == (
            row.prompt,
            row.index,
            row.seed,
            row.file,
        )
        assert line["clip_t"] == np.float32(row.values["clip_t"]) and line["clip_i"] is None
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("cut", [1, 9, 30, 200, 600])
def test_a_killed_scoring_goes_on_and_gives_the_same_file(tmp_path, cut):
    jobs = make_jobs(tmp_path / "images")
    file, _ = score(jobs, tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    scorer = FakeScorer()
    _, kept = score(jobs, tmp_path, scorer)
    assert file.read_bytes() == whole
    assert kept % 3 == 0 and kept < len(jobs) and len(scorer.seen) == len(jobs) - kept


def test_what_is_done_is_not_done_again(tmp_path):
    jobs = make_jobs(tmp_path / "images")
    file, _ = score(jobs, tmp_path)
    whole, scorer = file.read_bytes(), FakeScorer()
    assert score(jobs, tmp_path, scorer)[1] == len(jobs)
    assert scorer.seen == [] and file.read_bytes() == whole


def test_an_interrupt_keeps_the_batches_before_it(tmp_path):
    jobs = make_jobs(tmp_path / "images")
    with pytest.raises(KeyboardInterrupt):
        score(jobs, tmp_path, FakeScorer(stop_after=7))
    assert len(list(read_rows(tmp_path / CSV_FILE))) == 6
    assert score(jobs, tmp_path)[1] == 6


def test_a_changed_image_or_prompt_is_scored_again(tmp_path):
    jobs = make_jobs(tmp_path / "images")
    score(jobs, tmp_path)
    coloured(jobs[7].path, (1, 2, 3))
    assert score(jobs, tmp_path)[1] == 6
    jobs[4] = replace(jobs[4], text="another text")
    assert score(jobs, tmp_path)[1] == 3
    assert score(jobs[:5], tmp_path)[1] == 3  # fewer jobs than rows: the last batch is another one
    assert len(list(read_rows(tmp_path / CSV_FILE))) == 5


def test_garbage_in_the_file_is_cut_off(tmp_path):
    jobs = make_jobs(tmp_path / "images")
    file, _ = score(jobs, tmp_path)
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:8]) + b"\0" * 300 + b"\n" + b"".join(lines[8:]))
    assert score(jobs, tmp_path)[1] == 6 and file.read_bytes() == whole
    file.write_bytes(b"something,else\n1,2\n")
    assert score(jobs, tmp_path)[1] == 0 and file.read_bytes() == whole


def test_an_unreadable_image_is_named_skipped_and_counted(tmp_path, caplog):
    jobs = make_jobs(tmp_path / "images")
    jobs[4].path.write_bytes(b"no image")
    file, _ = score(jobs, tmp_path)
    rows = list(read_rows(file))
    assert [row.file for row in rows if row.fault] == ["004.png"] and "004.png" in caplog.text
    summary = summarise(rows, METRICS, 100)
    assert (summary.scored, summary.bad, summary.bad_files) == (10, 1, ["004.png"])
    assert score(jobs, tmp_path)[1] == len(jobs)


def test_too_many_unreadable_images(tmp_path):
    jobs = make_jobs(tmp_path / "images")
    for job in jobs[3:6]:
        job.path.write_bytes(b"no image")
    with pytest.raises(
        UserError, match=r"3 of 11 images can't be read \(003.png, 004.png, 005.png\).*max_bad_share=0.2"
    ):
        score(jobs, tmp_path, share=0.2)


def test_rows_that_are_none(tmp_path):
    with pytest.raises(UserError, match="can't be read"):
        list(read_rows(tmp_path / CSV_FILE))
    (tmp_path / CSV_FILE).write_text("a,b\n")
    with pytest.raises(UserError, match="no table of scored images"):
        list(read_rows(tmp_path / CSV_FILE))


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """30,000 rows of one image: journal, averages and parquet hold a piece at a time."""
    image = coloured(tmp_path / "one.png", (9, 9, 9))

    def jobs(count):
        return (
            Job("dog", f"prompt {i % 20}", f"prompt {i % 20}", i // 20, i, image.parent, image.name)
            for i in range(count)
        )

    def peak(count: int) -> int:
        tracemalloc.start()
        journal, _ = Journal.resume(tmp_path / str(count) / CSV_FILE, METRICS, jobs(count))
        with journal:
            for job in jobs(count):
                journal.add(job, {"clip_t": 0.5})
        summary = summarise(read_rows(journal.file), METRICS, 100)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert summary.scored == count and summary.overall()["clip_t"].images == count
        return found

    assert peak(6000) < peak(600) + 300_000


def test_rows_are_read_one_at_a_time(tmp_path):
    """The averages take a generator, and take from it as they go."""
    alive = []

    def rows():
        for i in range(5):
            alive.append(i)
            yield Row("dog", f"p{i}", "t", 0, 0, "f", "d", "", {"clip_t": 0.1 * i})

    source = rows()
    next(source)
    assert alive == [0]
    assert summarise(source, ("clip_t",), 100).scored == 4
