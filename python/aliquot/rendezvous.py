"""How the ranks of a job find each other: torch's store, and the control channel that they make through it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from aliquot import _core
from aliquot._core import InvalidArgument, PeerLost
from aliquot.aside import while_all_live

PATIENCE = 10.0
"""Seconds after which a rank that says nothing counts as frozen, unless ALIQUOT_PATIENCE says otherwise."""
LONGEST = 1e9
"""What a clock of milliseconds can count to, by far."""


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks have met. Once they have, whoever waits here for a rank that is lost hears of that."""

    store: Store
    rank: int
    world_size: int
    timeout: float
    control: _core.ControlChannel

    def set(self, key: str, value: str) -> None:
        """Lets the ranks read `value`."""
        while_all_live(self.control, lambda: self.store.set(key, value))

    def get(self, key: str) -> str:
        """Waits until a rank has set it."""
        return while_all_live(self.control, lambda: self.store.get(key)).decode()


def meet(timeout: float) -> Rendezvous:
    """All ranks of the job, by torchrun's variables or torch's process group."""
    store, rank, world_size = _store(timeout)
    return _joined(PrefixStore("aliquot", store), rank, world_size, timeout)


def alone(timeout: float) -> Rendezvous:
    """A world of one."""
    return _joined(HashStore(), 0, 1, timeout)


def _store(timeout: float) -> tuple[Store, int, int]:
    if dist.is_initialized():
        return dist.distributed_c10d._get_default_store(), dist.get_rank(), dist.get_world_size()
    try:  # a world of one: not the store waits for all ranks, but the control channel, which says who is missing
        store, rank, _ = next(rendezvous("env://?world_size=1", timeout=timedelta(seconds=timeout)))
    except dist.DistError as error:
        raise _absent(int(os.environ["RANK"]), error) from None
    return store, rank, int(os.environ["WORLD_SIZE"])


def _joined(store: Store, rank: int, world_size: int, timeout: float) -> Rendezvous:
    """Rank 0 listens on the interface that other hosts know it by, which torchrun names."""

    def get(key: str) -> str:
        try:
            return store.get(key).decode()
        except dist.DistError as error:
            raise _absent(rank, error) from None

    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    control = _core.ControlChannel(store.set, get, "control", rank, world_size, address, _patience(), timeout)
    return Rendezvous(store, rank, world_size, timeout, control)


def _absent(rank: int, error: Exception) -> PeerLost:
    lost = PeerLost(f"rank {rank} waited for all ranks to join, in vain; not arrived: rank 0 ({error})")
    lost.rank = 0
    return lost


def _patience() -> float:
    text = os.environ.get("ALIQUOT_PATIENCE", str(PATIENCE))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.01 <= seconds < LONGEST:
        raise InvalidArgument(f"ALIQUOT_PATIENCE is {text!r}; it is a number of seconds, such as 10")
    return seconds
