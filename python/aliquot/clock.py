"""How long the host spends in a piece of code, all calls together."""

from __future__ import annotations

from time import perf_counter


class Clock:
    """Runs in a `with` block; one within another of the same clock counts once."""

    __slots__ = ("_depth", "_start", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0
        self._start = 0.0

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._start = perf_counter()

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.seconds += perf_counter() - self._start
