"""Reads what aliquot.profile writes, as the viewers do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import aliquot

TRACKS = ["gathers", "packs", "reduces", "steps", "exposed"]

Event = dict[str, Any]


def read(profile: aliquot.Profile) -> tuple[dict[str, list[Event]], str]:
    """The trace's slices by track, and the name of its one process."""
    assert profile.path
    trace = json.loads(profile.path.read_text())
    assert trace["displayTimeUnit"] == "ms"
    events = trace["traceEvents"]
    assert {event["pid"] for event in events} == {profile.rank}
    (process,) = (event["args"]["name"] for event in events if event["name"] == "process_name")
    tracks = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    slices: dict[str, list[Event]] = {name: [] for name in tracks.values()}
    for event in events:
        if event["ph"] == "X":
            slices[tracks[event["tid"]]].append(event)
    return slices, process


def outermost(track: list[Event]) -> Iterator[Event]:
    """Those that lie in no other; fails where two overlap and neither lies in the other."""
    ends: list[float] = []
    for event in track:
        while ends and ends[-1] <= event["ts"]:
            ends.pop()
        end = event["ts"] + event["dur"]
        assert event["dur"] >= 0
        assert not ends or end <= ends[-1] + 0.001, event  # a nanosecond
        if not ends:
            yield event
        ends.append(end)


def seconds(track: list[Event]) -> float:
    return sum(event["dur"] for event in outermost(track)) / 1e6
