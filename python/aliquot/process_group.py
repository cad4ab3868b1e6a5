"""The transport `process_group`: moves the core's bytes through a `torch.distributed` group."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist

from aliquot import _core
from aliquot._core import CommunicatorError
from aliquot.aside import explanation, while_all_live

SLICE = timedelta(seconds=0.1)
END_SECONDS = 5.0


def _tensor(buffer: memoryview) -> torch.Tensor:
    return torch.frombuffer(buffer, dtype=torch.uint8)


class ProcessGroup:
    """What `_core.process_group_communicator` calls. Buffers are writable memory of the core."""

    def __init__(self, group: dist.ProcessGroup, control: _core.ControlChannel) -> None:
        self.group = group
        self.control = control
        self.rank = group.rank()
        self.world_size = group.size()
        self.failed = False
        """Whether Gloo may still wait for a rank that is lost."""

    def all_gather(self, part: memoryview, whole: memoryview) -> None:
        """Every rank's `part`, in rank order, into `whole`."""
        pieces = list(_tensor(whole).chunk(self.world_size))
        with self._explained():
            self._finish(dist.all_gather(pieces, _tensor(part), group=self.group, async_op=True))

    def all_to_all(self, input: memoryview, output: memoryview) -> None:  # noqa: A002
        """Piece r of `input` to rank r; piece r of `output` from rank r."""
        with self._explained():
            self._finish(dist.all_to_all_single(_tensor(output), _tensor(input), group=self.group, async_op=True))

    def broadcast(self, data: memoryview, root: int) -> None:
        """`data` of `root` to every rank."""
        with self._explained():
            self._finish(dist.broadcast(_tensor(data), group=self.group, group_src=root, async_op=True))

    def send(self, data: memoryview, to: int) -> None:
        """`data` to rank `to`."""
        with self._explained():
            while_all_live(self.control, partial(dist.send, _tensor(data), group=self.group, group_dst=to))

    def receive(self, data: memoryview, from_: int) -> None:
        """Fills `data` from rank `from_`."""
        with self._explained():
            while_all_live(self.control, partial(dist.recv, _tensor(data), group=self.group, group_src=from_))

    def end(self, and_all_others: bool) -> None:
        """Ends Gloo's threads, which hold tensors, and abort if they drop one when the interpreter is gone.

        A thread that waits for a lost rank would end at the timeout, and so would whoever ends the group. It is left
        waiting, by a group that nobody ever destroys.
        """
        if self.failed:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.group))
            return
        with _core.Watchdog(END_SECONDS, f"rank {self.rank}: the end of its process group"):
            if dist.is_initialized():
                dist.destroy_process_group(None if and_all_others else self.group)
            del self.group

    def _finish(self, work: dist.Work | None) -> None:
        """Waits for Gloo, which does not see that a rank is frozen or has raised, for as long as all ranks live."""
        while work is not None:
            with contextlib.suppress(RuntimeError):
                work.wait(SLICE)
            if work.is_completed():
                work.wait()
                return
            self.control.require_intact()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self.failed = True
            if isinstance(error, CommunicatorError):
                raise
            raise explanation(self.control, error) from error
