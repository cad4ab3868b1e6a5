"""Slices of time as a Chrome trace, for chrome://tracing and https://ui.perfetto.dev."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aliquot._core import Slice, Timeline

TRACKS: dict[str, Callable[[Slice], bool]] = {
    "gathers": lambda slice_: slice_.activity == "gather" and not slice_.wait,
    "packs": lambda slice_: slice_.activity == "pack",
    "reduces": lambda slice_: slice_.activity == "reduce" and not slice_.wait,
    "steps": lambda slice_: slice_.activity == "step",
    "exposed": lambda slice_: slice_.exposed,
}


@dataclass(frozen=True)
class Placed:
    """A slice on a track, where slices lie within each other or apart."""

    slice: Slice
    begin: float
    end: float
    outermost: bool


def placed(slices: Iterable[Slice]) -> Iterator[Placed]:
    """Slices in the order of time; one that began before another's end, and ends after it, begins there."""
    ends: list[float] = []
    for slice_ in sorted(slices, key=lambda slice_: (slice_.begin, -slice_.end)):
        begin = slice_.begin
        while ends and (ends[-1] <= begin or ends[-1] < slice_.end):
            begin = max(begin, ends.pop())
        yield Placed(slice_, begin, slice_.end, outermost=not ends)
        ends.append(slice_.end)


def write_trace(path: Path, rank: int, timeline: Timeline, slices: list[Slice]) -> None:
    """One process, `rank`, with a track for each kind. Times are those of the host's monotonic clock."""
    events = [{"ph": "M", "pid": rank, "name": "process_name", "args": {"name": f"rank {rank}"}}]
    for track, (name, holds) in enumerate(TRACKS.items()):
        on_track = {"pid": rank, "tid": track}
        events.append({"ph": "M", **on_track, "name": "thread_name", "args": {"name": name}})
        events.append({"ph": "M", **on_track, "name": "thread_sort_index", "args": {"sort_index": track}})
        events += [on_track | _event(place, timeline.origin) for place in placed(filter(holds, slices))]
    path.write_text(json.dumps({"displayTimeUnit": "ms", "traceEvents": events}))


def _event(place: Placed, origin: float) -> dict[str, Any]:
    begin, end = (round(1e9 * (origin + time)) for time in (place.begin, place.end))
    activity = place.slice.activity
    return {
        "ph": "X",
        "name": place.slice.name,
        "cat": activity,
        "ts": begin / 1000,
        "dur": (end - begin) / 1000,
        "args": {"activity": activity, "wait": place.slice.wait, "bytes": place.slice.bytes},
    }
