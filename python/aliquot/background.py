"""The save that goes on behind training."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from aliquot import _core
from aliquot.checkpoint.copies import HostCopies

logger = logging.getLogger("aliquot")


class Background:
    """At most one save at a time. Every rank calls the same methods in the same order."""

    def __init__(self) -> None:
        self._calls = 0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.copies = HostCopies()
        """What the save that is under way writes. It has ended when the next one begins."""

    def next_call(self) -> str:
        """What the ranks call this save or load among themselves."""
        self._calls += 1
        return f"checkpoint/{self._calls}"

    def start(self, save: Callable[[], None]) -> None:
        """Lets a save run. The interpreter does not exit before it has ended."""
        self._thread = threading.Thread(target=self._run, args=(save,), name="aliquot save")
        self._thread.start()

    def _run(self, save: Callable[[], None]) -> None:
        try:
            save()
        except BaseException as error:
            self._error = error
            logger.error("the checkpoint was not saved: %s", error)

    def settle(self) -> None:
        """Waits for the save, and raises its error."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def end(self) -> None:
        """Waits for the save, at the end of the process; its error is in the log."""
        if self._thread is not None:
            self._thread.join()

    def poll(self, communicator: _core.Communicator) -> None:
        """Raises the save's error once all ranks know how it went. Collective while there is one."""
        if self._thread is None:
            return
        done = b"\0" if self._thread.is_alive() else b"\1"
        if b"\0" not in communicator.all_gather("background save", done):
            self.settle()
