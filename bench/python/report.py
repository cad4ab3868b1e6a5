"""Turns the runs of each contender into one summary, and the summaries into tables."""

from __future__ import annotations

from statistics import fmean, median
from typing import Any

from records import Run
from rich import box
from rich.table import Table

Runs = dict[str, list[Run]]
PARTS = ("forward", "backward", "update")
MEMORY = {"peak_rss": "peak rss MiB", "peak_pss": "peak pss MiB", "peak_device": "peak GPU MiB"}
BASES = ("alone", "ddp", "fsdp2")


def step_seconds(runs: list[Run]) -> float:
    return median(seconds for run in runs for seconds in run.step_seconds)


def ratio(runs: list[Run], base: list[Run]) -> float:
    """Paired by round: what slows the machine for a round slows both sides of the fraction."""
    pairs = zip(runs, base, strict=True)
    return median(median(mine.step_seconds) / median(theirs.step_seconds) for mine, theirs in pairs)


def summary(name: str, all_runs: Runs, tokens_per_rank: int) -> dict[str, Any]:
    """Seconds, tokens per second over all ranks, MiB per rank, and the mean loss of all ranks step by step."""
    runs = all_runs[name]
    seconds = step_seconds(runs)
    return {
        "ranks": len(runs[0].ranks),
        "parameters": runs[0].ranks[0].parameters,
        "step_seconds": seconds,
        "step_seconds_by_round": [median(run.step_seconds) for run in runs],
        **{f"{part}_seconds": median(run.median_part(part) for run in runs) for part in PARTS},
        "tokens_per_second": tokens_per_rank * len(runs[0].ranks) / seconds,
        **{f"over_{base}": ratio(runs, all_runs[base]) for base in BASES if base in all_runs},
        **{f"{field}_mib": fmean(run.mib(field) for run in runs) for field in MEMORY},
        "losses": runs[0].losses,
    }


def time_table(summaries: dict[str, dict[str, Any]]) -> Table:
    first = next(iter(summaries.values()))
    bases = [base for base in BASES if f"over_{base}" in first]
    table = _table(
        f"milliseconds of a step, {first['parameters']:,} parameters",
        *("step", *PARTS, "tokens/s", *(f"/{base}" for base in bases)),
    )
    for name, row in summaries.items():
        parts = (f"{row[f'{part}_seconds'] * 1000:.0f}" for part in PARTS)
        ratios = (f"{row[f'over_{base}']:.2f}" for base in bases)
        table.add_row(name, f"{row['step_seconds'] * 1000:.0f}", *parts, f"{row['tokens_per_second']:.0f}", *ratios)
    return table


def memory_table(summaries: dict[str, dict[str, Any]]) -> Table:
    fields = {f: title for f, title in MEMORY.items() if any(row[f"{f}_mib"] for row in summaries.values())}
    table = _table("memory of a rank, mean loss of all ranks", *fields.values(), "first loss", "last loss")
    for name, row in summaries.items():
        memory = (f"{row[f'{field}_mib']:.0f}" for field in fields)
        table.add_row(name, *memory, f"{row['losses'][0]:.4f}", f"{row['losses'][-1]:.4f}")
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table("contender", title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    table.columns[0].no_wrap = True
    return table
