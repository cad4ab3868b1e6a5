"""Right, or refused by an error that names the call to use: the two outcomes that a user may meet."""

from __future__ import annotations

import re
from collections.abc import Callable

import aliquot


def refused(action: Callable[[], object]) -> bool:
    """Whether Aliquot refuses it; if it does, it has to name a call that exists."""
    error = error_of(action)
    assert error is None or names_a_call(str(error)), f"names no call to use: {error}"
    return error is not None


def error_of(action: Callable[[], object]) -> aliquot.Error | None:
    try:
        action()
    except aliquot.Error as error:
        return error
    return None


def names_a_call(text: str) -> bool:
    return any(callable(getattr(aliquot, name, None)) for name in re.findall(r"aliquot\.(\w+)", text))
