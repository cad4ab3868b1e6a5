"""Communicators of some of the world's ranks: those of a host, a group that shards a model, counterparts in groups."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from aliquot import _core, gpu
from aliquot.aside import while_all_live
from aliquot.farewell import at_end
from aliquot.process_group import ProcessGroup
from aliquot.rendezvous import Rendezvous


def hosts_of_ranks(met: Rendezvous) -> tuple[str, ...]:
    """What each rank calls its host: ALIQUOT_HOST_ID, or the host's name."""
    mine = os.environ.get("ALIQUOT_HOST_ID", platform.node())
    return tuple(name.decode() for name in met.control.all_gather("hosts", mine.encode(), met.timeout))


def ranks_per_host(hosts: tuple[str, ...]) -> int | None:
    """Where each host has as many ranks as any other, and they are neighbours; else None."""
    size = hosts.count(hosts[0])
    expected = tuple(host for host in dict.fromkeys(hosts) for _ in range(size))
    return size if hosts == expected else None


def neighbours(rank: int, size: int) -> range:
    """The ranks among which `rank` is, where each `size` neighbours are together."""
    first = rank // size * size
    return range(first, first + size)


def counterparts(rank: int, size: int, world_size: int) -> range:
    """The ranks that have the place of `rank` among their neighbours."""
    return range(rank % size, world_size, size)


def shared_memory(met: Rendezvous, ranks: range, purpose: str = "") -> _core.Communicator:
    """Joins ranks of one host, once for each purpose."""
    name = "world" if len(ranks) == met.world_size else f"ranks {ranks.start}:{ranks.stop}:{ranks.step}"
    return _core.shared_memory_communicator(
        met.set, met.get, purpose + name, ranks.index(met.rank), len(ranks), met.timeout, met.control,
        ranks.start, ranks.step,
    )  # fmt: skip


@dataclass
class Subsets:
    """Makes a communicator once for all who ask for the same ranks."""

    met: Rendezvous
    hosts: tuple[str, ...]
    """Of each rank."""
    inside: str
    """The transport among ranks of one host."""
    between: str
    """The transport among others."""
    device: torch.device
    nccl: gpu.Origin | None = None
    """What the world's communicator is made of, where all of it is one of NCCL's."""
    made: dict[range, _core.Communicator] = field(default_factory=dict)
    _movers: list[ProcessGroup] = field(default_factory=list)
    _owns_torchs: bool = False
    """Whether torch.distributed was initialized here."""

    def communicator(self, ranks: range) -> _core.Communicator:
        """Joins evenly spaced ranks, this one among them. Collective the first time."""
        if ranks not in self.made:
            self.made[ranks] = self._join(ranks)
        return self.made[ranks]

    def _join(self, ranks: range) -> _core.Communicator:
        transport = self.inside if self._on_one_host(ranks) else self.between
        if transport not in gpu.TRANSPORTS:
            return self._of_host_memory(ranks, transport)
        beside = self._of_host_memory(ranks, "shared_memory" if self._on_one_host(ranks) else "process_group")
        joins_all = len(ranks) == self.met.world_size and self._on_one_host(ranks)
        channel = None if joins_all else self.met.control  # by which all others hear what ends it
        if transport == "peer":
            return _core.peer_communicator(beside, self.device.index, channel)
        return gpu.nccl_communicator(beside, self.device, self.nccl, channel)

    def _on_one_host(self, ranks: range) -> bool:
        return len({self.hosts[rank] for rank in ranks}) == 1

    def _of_host_memory(self, ranks: range, transport: str) -> _core.Communicator:
        if len(ranks) == 1:
            return _core.world_of_one()
        if transport == "shared_memory":
            return shared_memory(self.met, ranks)
        return _core.process_group_communicator(
            self._mover(ranks), self.met.control, ranks.index(self.met.rank), len(ranks), self.met.timeout,
            ranks.start, ranks.step,
        )  # fmt: skip

    def _mover(self, ranks: range) -> ProcessGroup:
        if not self._movers:
            at_end(self._end)
        mover = ProcessGroup(while_all_live(self.met.control, lambda: self._new_group(ranks)), self.met.control)
        self._movers.append(mover)
        return mover

    def _new_group(self, ranks: range) -> dist.ProcessGroup:
        timeout = timedelta(seconds=self.met.timeout)
        if not dist.is_initialized():
            self._owns_torchs = True
            dist.init_process_group(
                "gloo", store=PrefixStore("group", self.met.store), rank=self.met.rank, world_size=self.met.world_size,
                timeout=timeout,
            )  # fmt: skip
        group: dist.ProcessGroup = dist.new_group(
            list(ranks), backend="gloo", timeout=timeout, use_local_synchronization=True
        )
        return group

    def _end(self) -> None:
        """The last that ends takes all of torch.distributed with it, unless that would wait for a lost rank."""
        for left, mover in reversed(list(enumerate(self._movers))):
            mover.end(and_all_others=left == 0 and self._owns_torchs and not any(each.failed for each in self._movers))
