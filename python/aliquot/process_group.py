"""The transport `process_group`: moves the core's bytes through a `torch.distributed` group."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from aliquot._core import CommunicatorError, PeerLost

ROLL_CALL_SECONDS = 1.0


def _tensor(buffer: memoryview) -> torch.Tensor:
    return torch.frombuffer(buffer, dtype=torch.uint8)


class ProcessGroup:
    """What `_core.process_group_communicator` calls. Buffers are writable memory of the core."""

    def __init__(self, group: dist.ProcessGroup, store: Store) -> None:
        self.group = group
        self.store = store
        self.rank = group.rank()
        self.world_size = group.size()

    def all_gather(self, part: memoryview, whole: memoryview) -> None:
        """Every rank's `part`, in rank order, into `whole`."""
        with self._explained():
            dist.all_gather(list(_tensor(whole).chunk(self.world_size)), _tensor(part), group=self.group)

    def all_to_all(self, input: memoryview, output: memoryview) -> None:  # noqa: A002
        """Piece r of `input` to rank r; piece r of `output` from rank r."""
        with self._explained():
            dist.all_to_all_single(_tensor(output), _tensor(input), group=self.group)

    def broadcast(self, data: memoryview, root: int) -> None:
        """`data` of `root` to every rank."""
        with self._explained():
            dist.broadcast(_tensor(data), group=self.group, group_src=root)

    def send(self, data: memoryview, to: int) -> None:
        """`data` to rank `to`."""
        with self._explained():
            dist.send(_tensor(data), group=self.group, group_dst=to)

    def receive(self, data: memoryview, from_: int) -> None:
        """Fills `data` from rank `from_`."""
        with self._explained():
            dist.recv(_tensor(data), group=self.group, group_src=from_)

    def end(self, and_all_others: bool) -> None:
        """Ends Gloo's threads, which hold tensors, and abort if they drop one when the interpreter is gone."""
        if dist.is_initialized():
            dist.destroy_process_group(None if and_all_others else self.group)
        del self.group

    def abort(self, reason: str) -> None:
        """Leaves `reason` for whoever asks why this rank is gone."""
        self.store.set(f"abort/{self.rank}", reason)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self._explanation(error) from error

    def _explanation(self, error: RuntimeError) -> CommunicatorError:
        """Who is missing, by a roll call over the store, which outlives the broken group."""
        text = f"rank {self.rank}: torch.distributed failed: {error}"
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
