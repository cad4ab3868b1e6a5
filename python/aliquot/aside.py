"""Calls of others that wait for ranks in their own way."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import TypeVar

from aliquot import _core
from aliquot._core import CommunicatorError

T = TypeVar("T")
LOOK_SECONDS = 0.1
LOSS_SECONDS = 2.0
"""How long it may take at most until a rank's death is known."""


def while_all_live(control: _core.ControlChannel, call: Callable[[], T]) -> T:
    """What `call` returns. If a rank is lost meanwhile it is left behind, on a thread of its own: even torch's store
    does not answer while the rank that serves it is frozen.
    """  # fmt: skip
    future: Future[T] = Future()
    Thread(target=_fulfil, args=(future, call), daemon=True).start()
    while not wait([future], LOOK_SECONDS).done:
        control.require_intact()
    try:
        return future.result()
    except RuntimeError as error:
        raise explanation(control, error) from error


def explanation(control: _core.ControlChannel, error: RuntimeError) -> CommunicatorError:
    """Who is missing, if that is why there was an error of torch.distributed."""
    try:
        control.look_for_lost(LOSS_SECONDS)
    except CommunicatorError as lost:
        return lost
    return CommunicatorError(f"rank {control.rank}: torch.distributed failed: {error}")


def _fulfil(future: Future[T], call: Callable[[], T]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:  # it is raised where it is waited for
        future.set_exception(error)
