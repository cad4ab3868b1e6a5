"""What a rank says to its peers before its process ends, so that none waits for it."""

from __future__ import annotations

import atexit
import multiprocessing
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.util import Finalize
from types import TracebackType

from aliquot import _core


def announce_uncaught(control: _core.ControlChannel) -> None:
    """Tells the peers, from now on, of an exception that ends this process, or this thread."""
    mine = threading.current_thread()
    hook, thread_hook = sys.excepthook, threading.excepthook

    def announce(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        control.announce(in_words(error))
        hook(kind, error, trace)

    def announce_of_thread(args: threading.ExceptHookArgs) -> None:
        if args.thread is mine and args.exc_value is not None:
            control.announce(in_words(args.exc_value))
        thread_hook(args)

    sys.excepthook, threading.excepthook = announce, announce_of_thread
    at_end(lambda: announce_ending(control))


def announce_ending(control: _core.ControlChannel) -> None:
    """Tells the peers of the exception that ends a process of multiprocessing, which catches it and calls no hook.

    To leave by `sys.exit` is to be done, whatever the code: other ranks may still have to finish.
    """
    error = sys.exc_info()[1]
    if error is not None and not isinstance(error, SystemExit):
        control.announce(in_words(error))


def in_words(error: BaseException) -> str:
    """What was raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def at_end(call: Callable[[], None]) -> None:
    """Calls it at the end of this process; what was registered last comes first."""
    if multiprocessing.parent_process() is None:
        atexit.register(call)
    else:
        Finalize(None, call, exitpriority=0)  # there nobody calls what is registered with atexit
