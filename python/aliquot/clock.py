"""How long the host spends in a piece of code, all calls together."""

from __future__ import annotations

from time import perf_counter


class Clock:
    """Runs in a `with` block, which must not lie within another of the same clock."""

    __slots__ = ("_start", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += perf_counter() - self._start
