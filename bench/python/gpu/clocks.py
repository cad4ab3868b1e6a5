"""Marks instants without waiting for the GPU, and says afterwards how long it was from each to the next."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Protocol

import torch


class Clock(Protocol):
    def mark(self) -> None: ...
    def seconds(self) -> list[float]: ...


class HostClock:
    def __init__(self) -> None:
        self._instants: list[float] = []

    def mark(self) -> None:
        self._instants.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return [end - start for start, end in pairwise(self._instants)]


class DeviceClock:
    """An instant is when the GPU has done what the current stream was given before the mark."""

    def __init__(self) -> None:
        self._events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._events.append(event)

    def seconds(self) -> list[float]:
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(self._events)]


def clock(device: torch.device) -> Clock:
    return DeviceClock() if device.type == "cuda" else HostClock()
