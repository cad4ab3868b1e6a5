"""How far a command has come: a bar on a terminal, else a line now and then. On stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aliquot.checkpoint.cli.text import size_text

Note = Callable[[int], None]
"""Told how many bytes were done since it was told last."""
LINES = 10


@contextmanager
def progress(what: str, total: int) -> Iterator[Note]:
    """`total`: bytes."""
    with _bar(what, total) if sys.stderr.isatty() else _lines(what, total) as note:
        yield note


@contextmanager
def _bar(what: str, total: int) -> Iterator[Note]:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as Speed
    except ImportError:
        with _lines(what, total) as note:
            yield note
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _lines(what: str, total: int) -> Iterator[Note]:
    done = said = 0

    def note(count: int) -> None:
        nonlocal done, said
        done += count
        if (now := done * LINES // max(total, 1)) > said:
            said = now
            print(f"{what}: {100 * done // max(total, 1)} % of {size_text(total)}", file=sys.stderr)

    yield note
