"""What the ranks of one run took, taken together."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import Protocol


class TimedRank(Protocol):
    """Losses of every step, seconds of the timed ones."""

    @property
    def losses(self) -> Sequence[float]: ...
    @property
    def forward(self) -> Sequence[float]: ...
    @property
    def backward(self) -> Sequence[float]: ...
    @property
    def update(self) -> Sequence[float]: ...


class TimedRanks:
    """Base of a run, whose `ranks` are the ranks' records."""

    @property
    def _timed(self) -> Sequence[TimedRank]:
        ranks: Sequence[TimedRank] = self.ranks  # type: ignore[attr-defined]
        return ranks

    @property
    def losses(self) -> list[float]:
        """Mean over the ranks, step by step."""
        return [fmean(step) for step in zip(*(rank.losses for rank in self._timed), strict=True)]

    @property
    def step_seconds(self) -> list[float]:
        """A step lasts as long as its slowest rank."""
        by_rank = ([sum(parts) for parts in zip(r.forward, r.backward, r.update, strict=True)] for r in self._timed)
        return [max(step) for step in zip(*by_rank, strict=True)]

    def median_part(self, part: str) -> float:
        """Median seconds of `forward`, `backward` or `update`, mean over the ranks."""
        return fmean(median(getattr(rank, part)) for rank in self._timed)
