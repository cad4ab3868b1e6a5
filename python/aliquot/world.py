"""The world: which ranks there are, and what moves bytes between them. The only global of the package."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args
from weakref import WeakSet

import torch
import torch.distributed as dist

from aliquot import _core, gpu
from aliquot._core import InvalidArgument
from aliquot.agreement import require_same, versions
from aliquot.background import Background
from aliquot.farewell import announce_ending, announce_uncaught, at_end
from aliquot.rendezvous import Rendezvous, alone, meet
from aliquot.subsets import Subsets, counterparts, hosts_of_ranks, neighbours, ranks_per_host, shared_memory

if TYPE_CHECKING:
    from aliquot.passes import Passes

Transport = Literal["auto", "shared_memory", "peer", "nccl", "process_group", "hierarchical"]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """The place of this process among the ranks."""

    rank: int
    world_size: int
    transport: str
    """The transport in use: `thread` where the process is alone without a GPU, else as `init` was told."""
    communicator: _core.Communicator
    device: torch.device
    """Where sharded models live: this rank's GPU on the transports of GPUs, the CPU on the others."""
    timeout: float
    """Seconds that any wait for another rank may take."""
    control: _core.ControlChannel
    """How ranks tell each other that they live, and why they stop; beside every transport."""
    subsets: Subsets
    """Communicators of some of the ranks, and on which host each is."""
    background: Background = field(default_factory=Background)
    """The save that goes on behind training."""
    passes: WeakSet[Passes] = field(default_factory=WeakSet, compare=False)
    """Of all sharded models."""

    @property
    def gpu(self) -> int:
        """The device as the core takes it: the index of the GPU, -1 for the CPU."""
        return -1 if self.device.type == "cpu" else int(self.device.index)


_world: World | None = None


def init(transport: Transport = "auto", timeout: float = 600.0, nccl: gpu.Origin | None = None) -> World:
    """Joins the ranks that torchrun started, by its environment variables; alone without them.

    `transport`: for GPUs, each rank with that of its LOCAL_RANK, which becomes torch's current device: `"peer"` on one
    host, where they map each other's memory (NVLink), else `"nccl"`, which joins GPUs of several hosts too;
    `"shared_memory"` for CPUs of one host; `"hierarchical"` for several hosts with as many ranks on each, where each
    rank moves its share only between them: if every rank has a GPU, `"peer"` (or `"nccl"`) inside a host and `"nccl"`
    between, else shared memory and `torch.distributed`; `"process_group"` for whatever `torch.distributed` reaches (it
    is initialized with Gloo if it is not yet); `"auto"` takes the fastest that joins all ranks. Ranks with the same
    ALIQUOT_HOST_ID are on one host; without it, those whose hosts have the same name.
    `timeout`: seconds that any wait for another rank may take.
    `nccl`: for those who use `cupy.cuda.nccl` too, the same kind on every rank: a unique id that all ranks got from
    one, or an `NcclCommunicator` of the same ranks, which is split and stays theirs.
    Called by `shard` if need be; a second call with the same transport returns the same world.
    """
    global _world
    if transport not in get_args(Transport):
        raise InvalidArgument(f"transport is {transport!r}; it is one of {', '.join(get_args(Transport))}")
    if _world is None:
        _world = _join(transport, timeout, nccl)
        at_end(_leave)
    elif transport not in ("auto", _world.transport) and _world.world_size > 1:
        raise InvalidArgument(f"the world is already up on {_world.transport!r}, it can't be {transport!r} as well")
    return _world


def _leave() -> None:
    """Lets peers see that this rank ends in good order, and not that it was killed."""
    if _world is not None:
        announce_ending(_world.control)
        _world.background.end()
        for communicator in (_world.communicator, *_world.subsets.made.values()):
            communicator.leave()
        _world.control.leave()


def _join(transport: Transport, timeout: float, nccl: gpu.Origin | None) -> World:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not dist.is_initialized():
        return _alone(transport, timeout, nccl)
    met = meet(timeout)
    announce_uncaught(met.control)
    require_same(met.control, "are started differently", [f"transport {transport!r}", *versions()], timeout)
    hosts = hosts_of_ranks(met)
    if transport == "auto":
        transport = "nccl" if nccl is not None else _choose(met, hosts)
    if nccl is not None and transport != "nccl":
        raise InvalidArgument(f"init(nccl=) is for the transport nccl, not for {transport}")
    inside, between = _parts(transport, met, hosts)
    device = gpu.claim(_local_rank(met), transport) if between in gpu.TRANSPORTS else CPU
    subsets = Subsets(met, hosts, inside, between, device, nccl)
    communicator = (
        _hierarchical(subsets) if transport == "hierarchical" else subsets.communicator(range(met.world_size))
    )
    return World(met.rank, met.world_size, transport, communicator, device, timeout, met.control, subsets)


def _alone(transport: Transport, timeout: float, nccl: gpu.Origin | None) -> World:
    met = alone(timeout)
    index = _local_rank(met)
    if transport not in gpu.TRANSPORTS and not (transport == "auto" and gpu.usable(index)):
        name, device = "thread", CPU
    else:
        name, device = transport, gpu.claim(index, transport)
        if transport == "auto":
            name = "peer" if nccl is None and _core.can_map_peers(_core.world_of_one(), index) else "nccl"
    subsets = Subsets(met, hosts_of_ranks(met), name, name, device, nccl)
    return World(0, 1, name, subsets.communicator(range(1)), device, timeout, met.control, subsets)


def _local_rank(met: Rendezvous) -> int:
    return int(os.environ.get("LOCAL_RANK", met.rank))


def _choose(met: Rendezvous, hosts: tuple[str, ...]) -> Transport:
    """The fastest transport that joins all ranks, from what each says of itself."""
    have_gpus = gpu.usable_everywhere(met, _local_rank(met))
    if len(set(hosts)) > 1:
        if (ranks_per_host(hosts) or 1) > 1:
            return "hierarchical"
        return "nccl" if have_gpus else "process_group"
    if not have_gpus:
        return "shared_memory"
    return "peer" if _map_each_other(met, hosts) else "nccl"


def _parts(transport: Transport, met: Rendezvous, hosts: tuple[str, ...]) -> tuple[str, str]:
    """The transports among ranks of one host, and among others. Collective."""
    if transport == "peer" and len(set(hosts)) > 1:
        raise InvalidArgument(
            f"the transport peer joins GPUs of one host, and the ranks are on {list(dict.fromkeys(hosts))}; "
            "hierarchical is peer inside hosts and nccl between them"
        )
    if transport != "hierarchical":
        return transport, transport
    if ranks_per_host(hosts) is None:
        raise InvalidArgument(
            "the transport hierarchical needs as many ranks on each host, neighbours in the order of ranks, and they "
            f"are on {list(hosts)}; process_group joins any, and of GPUs nccl"
        )
    if not gpu.usable_everywhere(met, _local_rank(met)):
        return "shared_memory", "process_group"
    return "peer" if _map_each_other(met, hosts) else "nccl", "nccl"


def _map_each_other(met: Rendezvous, hosts: tuple[str, ...]) -> bool:
    here = neighbours(met.rank, hosts.count(hosts[0]))
    beside = _core.world_of_one() if len(here) == 1 else shared_memory(met, here, "choose ")
    return gpu.map_each_other(met, beside, _local_rank(met))


def _hierarchical(subsets: Subsets) -> _core.Communicator:
    met, size = subsets.met, subsets.hosts.count(subsets.hosts[0])
    inside = subsets.communicator(neighbours(met.rank, size))
    between = subsets.communicator(counterparts(met.rank, size, met.world_size))
    return _core.hierarchical_communicator(inside, between, -1 if subsets.device == CPU else subsets.device.index)
