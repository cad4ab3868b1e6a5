"""The transport `process_group`: moves the core's bytes through a `torch.distributed` group."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
import torch.distributed as dist

from aliquot._core import CommunicatorError, PeerLost

P = ParamSpec("P")
ROLL_CALL_SECONDS = 1.0


def _tensor(buffer: memoryview) -> torch.Tensor:
    return torch.frombuffer(buffer, dtype=torch.uint8)


def _explained(
    method: Callable[Concatenate[ProcessGroup, P], None],
) -> Callable[Concatenate[ProcessGroup, P], None]:
    """Turns what a process group raises into an error that names the rank that is gone."""

    @wraps(method)
    def call(self: ProcessGroup, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except RuntimeError as error:
            raise self.explain(method.__name__, error) from error

    return call


class ProcessGroup:
    """What `_core.process_group_communicator` calls. Buffers are writable memory of the core."""

    def __init__(self, group: dist.ProcessGroup, store: dist.Store) -> None:
        self.group = group
        self.store = store
        self.rank = group.rank()
        self.world_size = group.size()

    @_explained
    def all_gather(self, part: memoryview, whole: memoryview) -> None:
        """Every rank's `part`, in rank order, into `whole`."""
        dist.all_gather_into_tensor(_tensor(whole), _tensor(part), group=self.group)

    @_explained
    def all_to_all(self, input: memoryview, output: memoryview) -> None:  # noqa: A002
        """Piece r of `input` to rank r; piece r of `output` from rank r."""
        dist.all_to_all_single(_tensor(output), _tensor(input), group=self.group)

    @_explained
    def broadcast(self, data: memoryview, root: int) -> None:
        """`data` of `root` to every rank."""
        dist.broadcast(_tensor(data), group=self.group, group_src=root)

    @_explained
    def send(self, data: memoryview, to: int) -> None:
        """`data` to rank `to`."""
        dist.send(_tensor(data), group=self.group, group_dst=to)

    @_explained
    def receive(self, data: memoryview, from_: int) -> None:
        """Fills `data` from rank `from_`."""
        dist.recv(_tensor(data), group=self.group, group_src=from_)

    def abort(self, reason: str) -> None:
        """Leaves `reason` for whoever asks why this rank is gone."""
        self.store.set(f"abort/{self.rank}", reason)

    def explain(self, operation: str, error: RuntimeError) -> CommunicatorError:
        """Who is missing, by a roll call over the store, which outlives the broken group."""
        text = f"rank {self.rank}: {operation} over torch.distributed failed: {error}"
        try:
            missing = self._roll_call()
        except RuntimeError:  # the store died with the rank that hosts it
            missing = [0]
        if not missing:
            return CommunicatorError(text)
        lost = PeerLost(f"rank {missing[0]} is gone (no answer to a roll call of {ROLL_CALL_SECONDS} s). {text}")
        lost.rank = missing[0]
        return lost

    def _roll_call(self) -> list[int]:
        self.store.set_timeout(timedelta(seconds=ROLL_CALL_SECONDS))
        self.store.set(f"here/{self.rank}", "")
        deadline = time.monotonic() + ROLL_CALL_SECONDS
        missing = set(range(self.world_size))
        while missing and time.monotonic() < deadline:
            missing = {rank for rank in missing if not self.store.check([f"here/{rank}"])}
        return sorted(missing)
