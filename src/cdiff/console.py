"""What the terminal shows: sentences, progress with the time left, one panel at the end.

Everything said also goes to logger "cdiff.said", so the run's log.txt has it.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

SAID = "cdiff.said"
PLAIN_SECONDS = 10.0  # without a terminal: a line of progress this often


def stdout() -> Console:
    """A console on today's sys.stdout (tests and notebooks exchange it)."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=True)


def stderr() -> Console:
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


@contextmanager
def quiet(really: bool) -> Iterator[None]:
    """In here nothing goes to the terminal but errors: of several processes one speaks."""
    if not really:
        yield
        return
    handlers = [h for h in logging.getLogger("cdiff").handlers if isinstance(h, _TerminalHandler)]
    before = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        for handler, level in zip(handlers, before, strict=True):
            handler.setLevel(level)


def say(text: str, style: str | None = None) -> None:
    """One line on the terminal and in log.txt."""
    stdout().print(escape(text), style=style)
    logging.getLogger(SAID).info(text)


def warn(text: str) -> None:
    """A warning: on the terminal and in log.txt."""
    logging.getLogger("cdiff").warning(text)


def complain(text: str) -> None:
    """An error's sentences, on stderr and in log.txt."""
    stderr().print(f"[bold red]Error:[/] {escape(text)}")
    logging.getLogger(SAID).error(text)


def summary(title: str, rows: Mapping[str, object]) -> None:
    """One readable panel at the end of a task: a name and a value a row.

    Where a row is too long for the panel the rows stand without a frame, so that paths and commands can be copied.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    for name, value in rows.items():
        table.add_row(escape(name), escape(str(value)))
    console, heading = stdout(), escape(title)
    names = max(map(len, rows), default=0)
    if console.measure(table).maximum + 4 <= console.width:
        console.print(Panel(table, title=heading, title_align="left", expand=False))
    else:
        console.print(f"[bold]{heading}[/]")
        for name, value in rows.items():
            console.print(f"  [bold]{escape(name.ljust(names))}[/]  {escape(str(value))}")
    lines = [title, *(f"  {name}: {value}" for name, value in rows.items())]
    logging.getLogger(SAID).info("\n".join(lines))


class Ticker:
    """Counts towards a total; `note` stands behind the bar ("loss 0.12")."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.note = total, 0, ""

    def __call__(self, steps: int = 1, note: str | None = None) -> None:
        self.done += steps
        self.note = self.note if note is None else note
        self.show()

    def show(self) -> None:
        """Draw the present state."""


class _BarTicker(Ticker):
    def __init__(self, total: int, bar: Progress, description: str) -> None:
        super().__init__(total)
        self.bar, self.task = bar, bar.add_task(escape(description), total=total, note="")

    def show(self) -> None:
        self.bar.update(self.task, completed=self.done, note=escape(self.note))


class _LineTicker(Ticker):
    """Few plain lines, for a file or a pipe: the first after PLAIN_SECONDS, then that often."""

    def __init__(self, total: int, description: str) -> None:
        super().__init__(total)
        self.description = description
        self.start = self.last = time.monotonic()

    def show(self) -> None:
        now = time.monotonic()
        if now - self.last < PLAIN_SECONDS or self.done >= self.total:
            return
        self.last = now
        left = (now - self.start) / max(self.done, 1) * (self.total - self.done)
        note = f", {self.note}" if self.note else ""
        print(f"{self.description}: {self.done}/{self.total}, {left:.0f} s left{note}", flush=True)


@contextmanager
def progress(total: int, description: str) -> Iterator[Ticker]:
    """A bar with the time left; in a pipe, few plain lines. Yields a ticker: call it with the steps done.

    One closing line (count and seconds) goes to log.txt, and to the pipe.
    """
    start = time.monotonic()
    console = stdout()
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as bar:
            ticker: Ticker = _BarTicker(total, bar, description)
            yield ticker
    else:
        ticker = _LineTicker(total, description)
        yield ticker
    note = f", {ticker.note}" if ticker.note else ""
    closing = f"{description}: {ticker.done}/{total} in {time.monotonic() - start:.1f} s{note}"
    if not console.is_terminal:
        print(closing, flush=True)
    logging.getLogger(SAID).info(closing)


class _TerminalHandler(logging.Handler):
    """Warnings of logger "cdiff" on stderr; what `say` and `complain` printed is not printed twice."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != SAID:
            stderr().print(f"[yellow]{record.levelname.capitalize()}:[/] {escape(record.getMessage())}")


def setup_logging() -> None:
    """Once a process: logger "cdiff" keeps everything from INFO up and shows warnings on the terminal."""
    logger = logging.getLogger("cdiff")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _TerminalHandler) for handler in logger.handlers):
        handler = _TerminalHandler()
        handler.setLevel(logging.WARNING)
        logger.addHandler(handler)
