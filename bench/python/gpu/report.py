"""Turns the runs of each contender into one summary, and the summaries into one table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Any

from rich import box
from rich.table import Table

from gpu.records import FLOOR, Row, Run

Runs = dict[str, list[Run]]  # of one row, by contender
PARTS = ("forward", "backward", "update")
MEMORY = ("allocated", "reserved", "in_use")
BASES = {FLOOR: "/floor", "ddp": "/ddp", "fsdp2": "/fsdp2", "deepspeed-3": "/ds-3"}
COLUMNS = (
    "step ms", "forw", "back", "upd", "tokens/s", *BASES.values(),
    "alloc", "resrv", "in use", "host ms", "f us", "b us", "loss", "last",
)  # fmt: skip


def summary(name: str, all_runs: Runs) -> dict[str, Any]:
    """Seconds, tokens per second over all ranks, GiB per rank, host seconds, and the mean losses step by step."""
    runs = all_runs[name]
    if not runs or runs[0].failure:
        return {"failure": runs[0].failure if runs else "not run"}
    good = [run for run in runs if run.failure is None]
    seconds = median(seconds for run in good for seconds in run.step_seconds)
    host = {part: median(run.host(part) for run in good) for part in (*PARTS, "waited")}
    return {
        "software": good[0].ranks[0].software,
        "ranks": len(good[0].ranks),
        "parameters": good[0].ranks[0].parameters,
        "trained": good[0].ranks[0].trained,
        "units": good[0].ranks[0].units,
        "step_seconds": seconds,
        "step_seconds_by_round": [median(run.step_seconds) for run in good],
        **{f"{part}_seconds": median(run.median_part(part) for run in good) for part in PARTS},
        **{f"over_{base}": ratio for base in BASES if (ratio := _ratio(runs, all_runs.get(base, []))) is not None},
        **{f"{part}_gib": fmean(run.gib(part) for run in good) for part in MEMORY},
        "host_seconds": host,
        "host_seconds_per_unit": _per_unit(good[0], all_runs.get(FLOOR, [])),
        "losses": good[0].losses,
    }


def table(rows: Sequence[Row], runs: dict[str, Runs]) -> Table:
    found = Table("contender", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in COLUMNS:
        found.add_column(heading, justify="right", no_wrap=True)
    found.columns[0].no_wrap = True
    for row in rows:
        summaries = {name: summary(name, runs[str(row)]) for name in runs[str(row)]}
        found.add_row(_heading(row, summaries.values()))
        for name, values in summaries.items():
            found.add_row(name, *_cells(values, row.batch * row.context))
    return found


def _ratio(runs: list[Run], base: list[Run]) -> float | None:
    """Paired by round: what slows the machine for a round slows both sides of the fraction."""
    pairs = [(mine, theirs) for mine, theirs in zip(runs, base, strict=False) if not (mine.failure or theirs.failure)]
    ratios = [median(mine.step_seconds) / median(theirs.step_seconds) for mine, theirs in pairs]
    return median(ratios) if ratios else None


def _per_unit(run: Run, floor: list[Run]) -> dict[str, float]:
    units = run.ranks[0].units
    if hooks := run.ranks[0].host.hooks:
        return {part: seconds / units for part, seconds in zip(("forward", "backward"), hooks, strict=True)}
    if not floor or floor[0].failure:
        return {}
    return {part: (run.host(part) - floor[0].host(part)) / units for part in ("forward", "backward")}


def _heading(row: Row, summaries: Iterable[dict[str, Any]]) -> str:
    counts = ((values["parameters"], values["trained"]) for values in summaries if "parameters" in values)
    parameters, trained = next(counts, (0, 0))
    part = f", of which {trained / 1e6:,.1f} M train" if trained < parameters else ""
    return f"[bold]{row}[/], {parameters / 1e6:,.0f} M{part}"


def _cells(values: dict[str, Any], tokens: int) -> list[str]:
    if failure := values.get("failure"):
        return [failure.splitlines()[0][:40]]
    host, per_unit = values["host_seconds"], values["host_seconds_per_unit"]
    enqueued = sum(host[part] for part in PARTS)
    doubt = "~" if host["waited"] > enqueued else ""
    return [
        *(f"{values[f'{part}_seconds'] * 1000:.1f}" for part in ("step", *PARTS)),
        f"{tokens * values['ranks'] / values['step_seconds']:,.0f}",
        *(f"{values[f'over_{base}']:.2f}" if f"over_{base}" in values else "" for base in BASES),
        *(f"{values[f'{part}_gib']:.1f}" for part in MEMORY),
        f"{doubt}{enqueued * 1000:.1f}",
        *(f"{doubt}{per_unit[part] * 1e6:.0f}" if part in per_unit else "" for part in ("forward", "backward")),
        f"{values['losses'][0]:.4f}", f"{values['losses'][-1]:.4f}",
    ]  # fmt: skip
