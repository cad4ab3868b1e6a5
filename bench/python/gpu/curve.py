"""How far loss curves lie apart once the noise of single batches is smoothed away."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rich import box
from rich.table import Table

from gpu.records import Run

SPAN = 20  # steps that are averaged


def smoothed(losses: Sequence[float]) -> list[float]:
    """Means of SPAN steps in a row, sliding."""
    span = min(SPAN, len(losses))
    return [fmean(losses[end - span : end]) for end in range(span, len(losses) + 1)]


def differences(runs: dict[str, dict[str, list[Run]]]) -> dict[str, dict[str, Any]]:
    """By row and contender, beside the row's first contender: the largest relative differences, and where."""
    return {row: _of_row(done) for row, done in runs.items()}


def _of_row(done: dict[str, list[Run]]) -> dict[str, Any]:
    good = {name: runs[0].losses for name, runs in done.items() if runs and runs[0].failure is None}
    reference = next(iter(good.values()), [])
    return {name: _between(losses, reference) for name, losses in good.items()}


def _between(losses: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    smooth, wanted = smoothed(losses), smoothed(reference)
    apart = [abs(mine / theirs - 1) for mine, theirs in zip(smooth, wanted, strict=True)]
    return {
        "largest_smoothed": max(apart),
        "at_step": apart.index(max(apart)) + len(losses) - len(apart),
        "largest_of_a_step": max(abs(mine / theirs - 1) for mine, theirs in zip(losses, reference, strict=True)),
        "first_loss": losses[0],
        "last_smoothed_loss": smooth[-1],
    }


def curve_table(runs: dict[str, dict[str, list[Run]]]) -> Table:
    found = Table(
        "contender", title=f"losses beside the first contender's, smoothed over {SPAN} steps", box=box.SIMPLE_HEAD
    )
    for heading in ("first loss", "last, smoothed", "largest difference", "at step", "of a single step"):
        found.add_column(heading, justify="right")
    for row, by_name in differences(runs).items():
        for name, apart in by_name.items():
            found.add_row(
                f"{row} {name}", f"{apart['first_loss']:.4f}", f"{apart['last_smoothed_loss']:.4f}",
                f"{apart['largest_smoothed']:.3%}", str(apart["at_step"]), f"{apart['largest_of_a_step']:.3%}",
            )  # fmt: skip
        for name, done in runs[row].items():
            if done and (failure := done[0].failure):
                found.add_row(f"{row} {name}", failure.splitlines()[0])
    return found
