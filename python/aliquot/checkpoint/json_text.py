"""JSON that may come from anywhere: bounded before it is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from aliquot._core import CheckpointError

MAX_BYTES = 256 << 20
MAX_ITEMS = 1 << 23
"""Commas and brackets in the text: what it may take to hold it."""


def parse_json(text: bytes) -> Any:
    """Raises CheckpointError for what is no JSON, or JSON that other readers would take for something else."""
    if len(text) > MAX_BYTES or sum(map(text.count, (b",", b"[", b"{"))) > MAX_ITEMS:
        raise CheckpointError(f"it has {len(text)} bytes, and more in them than can be held")
    try:
        return json.loads(
            text.decode(), object_pairs_hook=_without_duplicates, parse_float=_finite, parse_constant=_refuse
        )
    except RecursionError:
        raise CheckpointError("it is nested too deep") from None
    except ValueError as error:  # of json, of the encoding, of the hooks, of integers with thousands of digits
        raise CheckpointError(f"it is not JSON: {error!s:.200}") from None


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"{_first_twice(key for key, _ in pairs)!r:.100} is there twice")
    return found


def _first_twice(keys: Iterable[str]) -> str:
    seen: set[str] = set()
    return next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits:.50} is no number that a float holds")
    return number


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")
