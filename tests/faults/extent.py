"""How much of what can happen is tried."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Extent:
    """How much is tried."""

    stages: tuple[int, ...]
    """For what a stage is not likely to matter to."""
    points: int | None
    """Of the calls at which ranks die, how many; None: all."""
    kills: int
    """At random instants, for each stage, of one rank and of all."""
    kills_elsewhere: int
    """Of asynchronous saves, pruning and loads."""
    flips: int
    damages: int


SHORT = Extent(stages=(2,), points=4, kills=2, kills_elsewhere=2, flips=100, damages=20)
LONG = Extent(stages=(1, 2, 3), points=None, kills=200, kills_elsewhere=50, flips=1000, damages=200)
