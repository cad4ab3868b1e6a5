"""What the user watches: a live panel on a terminal, one line now and then anywhere else. Knows nothing of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Report:
    """The state of training after `step` steps.

    `figures`: what else the run says of itself, by name, ready to print; `bytes` held by this rank, by role.
    """

    step: int
    loss: float
    figures: Mapping[str, str]
    bytes: Mapping[str, int]


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


class Lines:
    """One line every `every` steps: for logs, pipes and CI."""

    def __init__(self, console: Console, steps: int, every: int = 20) -> None:
        self._console, self._steps, self._every = console, steps, every

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        pass

    def show(self, report: Report) -> None:
        if report.step % self._every and report.step not in (1, self._steps):
            return
        figures = "".join(f"{name} {value}  " for name, value in report.figures.items())
        held = mebibytes(sum(report.bytes.values()))
        self._console.print(
            f"step {report.step:4d}/{self._steps}  loss {report.loss:.3f}  {figures}{held} per rank", soft_wrap=True
        )


class Panels:
    """A panel that is redrawn in place: numbers, the curve of the loss, a progress bar."""

    def __init__(self, console: Console, steps: int) -> None:
        self._live = Live(console=console, refresh_per_second=4)
        columns = BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, expand=True)
        self._task = self._bar.add_task("", total=steps)
        self._losses: list[float] = []

    def __enter__(self) -> Panels:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, report: Report) -> None:
        self._losses.append(report.loss)
        self._bar.update(self._task, completed=report.step)
        content = Group(numbers(report), curve(self._losses, 72), self._bar)
        self._live.update(Panel(content, title="training", subtitle="losses are rank 0's"))


Display = Lines | Panels


def open_display(console: Console, steps: int) -> Display:
    return Panels(console, steps) if console.is_terminal and not console.quiet else Lines(console, steps)


def numbers(report: Report) -> Table:
    cells = [cell for name, value in report.figures.items() for cell in (name, f"[bold]{value}[/]")]
    grid = Table.grid(padding=(0, 2))
    grid.add_row("loss", f"[bold]{report.loss:.3f}[/]", *cells[:2])
    for start in range(2, len(cells), 4):
        grid.add_row(*cells[start : start + 4])
    held = ", ".join(f"{role} {mebibytes(count)}" for role, count in report.bytes.items() if count)
    rows = Table.grid()
    rows.add_row(grid)
    rows.add_row(f"[dim]per rank: {held}[/]")
    return rows


def curve(values: list[float], width: int) -> str:
    """`values` as one line of bars, each the mean of an equal part."""
    count = min(width, len(values))
    edges = [i * len(values) // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means), max(means) - min(means) or 1.0
    return "".join(BARS[int((mean - low) / span * (len(BARS) - 1))] for mean in means)
