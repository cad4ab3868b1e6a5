"""`aliquot.profile`: when gathers, reductions and steps happen, and how much of them holds the model up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from torch import nn

from aliquot._core import Slice, Timeline
from aliquot.sharded import sharded
from aliquot.trace import placed, write_trace


@dataclass(frozen=True)
class Times:
    """Of one activity, on this rank."""

    count: int
    bytes: int
    seconds: float
    """In which it was under way, or waited for."""
    exposed: float
    """Of these, the seconds in which the model could not compute."""


@dataclass
class Profile:
    """What one rank did; filled when the profile ends. Prints as a table."""

    rank: int
    path: Path | None
    """Where this rank's trace is."""
    seconds: float = 0.0
    """How long the profile was on."""
    exposed: float = 0.0
    """In which the model could not compute, for whatever reason of those in `times`."""
    times: dict[str, Times] = field(default_factory=dict)
    """By activity: `gather`; `pack`, of gradients on their way out; `reduce`; `step`."""

    def __str__(self) -> str:
        lines = [f"rank {self.rank}: {self.seconds:.3f} s    count       MiB    seconds    exposed"]
        for activity, of in self.times.items():
            lines.append(
                f"{activity:>16} {of.count:>8} {of.bytes / 2**20:>9.1f} {of.seconds:>10.4f} {of.exposed:>10.4f}"
            )
        return "\n".join([*lines, f"{'all':>16} {self.exposed:>40.4f}"])


@contextmanager
def profile(model: nn.Module, path: str | PathLike[str] | None = None) -> Iterator[Profile]:
    """Within it, records when this rank gathers, reduces and steps, and for how long the model waits for that.

        with aliquot.profile(model, "trace.json") as profile:
            for _ in range(5):
                train_step()
        print(profile)

    `path`: where to write a Chrome trace, for chrome://tracing or https://ui.perfetto.dev; None for the sums alone.
    Each rank writes a file of its own, with its number before the suffix: `trace.0.json`, `trace.1.json`; a rank that
    is alone writes `trace.json`. Not collective: any ranks may profile, any steps. Nothing is written if the block
    raises.

    On a GPU times are those of CUDA events, read when the profile ends: the host does not wait before. "Exposed" is
    what the stream of the model spends on waiting for gathers and reductions and on work of Aliquot's own; on CPUs
    that is all, as the caller does all work. docs/benchmarks.md, "A timeline", says how to read it.
    """
    state = sharded(model)
    made = Profile(state.world.rank, _of_rank(path, state.world.rank, state.world.world_size))
    if made.path is not None:
        made.path.parent.mkdir(parents=True, exist_ok=True)
    timeline = Timeline(state.device)
    begin = time.monotonic()
    state.engine.profile(timeline)
    try:
        yield made
    finally:
        state.engine.profile(None)
    slices = timeline.slices()
    made.seconds = time.monotonic() - begin
    _sum_up(made, slices)
    if made.path is not None:
        write_trace(made.path, made.rank, timeline, slices)


def _of_rank(path: str | PathLike[str] | None, rank: int, world_size: int) -> Path | None:
    if path is None or world_size == 1:
        return None if path is None else Path(path)
    return Path(path).with_suffix(f".{rank}{Path(path).suffix}")


def _sum_up(made: Profile, slices: list[Slice]) -> None:
    made.exposed = _seconds([slice_ for slice_ in slices if slice_.exposed])
    for activity in ("gather", "pack", "reduce", "step"):
        if of := [slice_ for slice_ in slices if slice_.activity == activity]:
            work = [slice_ for slice_ in of if not slice_.wait]
            made.times[activity] = Times(
                count=sum(place.outermost for place in placed(work)),
                bytes=sum(slice_.bytes for slice_ in work),
                seconds=_seconds(of),
                exposed=_seconds([slice_ for slice_ in of if slice_.exposed]),
            )


def _seconds(slices: list[Slice]) -> float:
    """That any of them covers."""
    return sum(place.end - place.begin for place in placed(slices) if place.outermost)
