"""The world: which ranks there are, and what moves bytes between them. The only global of the package."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from aliquot import _core, gpu
from aliquot._core import InvalidArgument
from aliquot.agreement import require_same, versions
from aliquot.aside import while_all_live
from aliquot.background import Background
from aliquot.farewell import announce_ending, announce_uncaught, at_end
from aliquot.rendezvous import Rendezvous, alone, meet

Transport = Literal["auto", "shared_memory", "peer", "nccl", "process_group"]
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
    """Where sharded models live: this rank's GPU on the transports `peer` and `nccl`, the CPU on the others."""
    timeout: float
    """Seconds that any wait for another rank may take."""
    control: _core.ControlChannel
    """How ranks tell each other that they live, and why they stop; beside every transport."""
    background: Background = field(default_factory=Background)
    """The save that goes on behind training."""

    @property
    def gpu(self) -> int:
        """The device as the core takes it: the index of the GPU, -1 for the CPU."""
        return -1 if self.device.type == "cpu" else int(self.device.index)


_world: World | None = None


def init(transport: Transport = "auto", timeout: float = 600.0, nccl: gpu.Origin | None = None) -> World:
    """Joins the ranks that torchrun started, by its environment variables; alone without them.

    `transport`: for GPUs of one host, each rank with that of its LOCAL_RANK, which becomes torch's current device:
    `"peer"` where they map each other's memory (NVLink), else `"nccl"`; `"shared_memory"` for CPUs of one host;
    `"process_group"` for whatever `torch.distributed` reaches (it is initialized with Gloo if it is not yet); `"auto"`
    takes the first of them that can join all ranks.
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
        _world.communicator.leave()
        _world.control.leave()


def _join(transport: Transport, timeout: float, nccl: gpu.Origin | None) -> World:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not dist.is_initialized():
        return _alone(transport, timeout, nccl)
    met = meet(timeout)
    announce_uncaught(met.control)
    require_same(met.control, "are started differently", [f"transport {transport!r}", *versions()], timeout)
    if transport == "auto":
        transport = "nccl" if nccl is not None else _choose(met)
    device = CPU
    if transport in ("peer", "nccl"):
        device = gpu.claim(int(os.environ.get("LOCAL_RANK", met.rank)), transport)
        communicator = _of_gpus(transport, met, device, nccl)
    elif transport == "shared_memory":
        communicator = _core.shared_memory_communicator(
            met.set, met.get, "world", met.rank, met.world_size, timeout, met.control
        )
    else:
        communicator = _process_group(met)
    return World(met.rank, met.world_size, transport, communicator, device, timeout, met.control)


def _alone(transport: Transport, timeout: float, nccl: gpu.Origin | None) -> World:
    index = int(os.environ.get("LOCAL_RANK", "0"))
    met = alone(timeout)
    if transport not in ("peer", "nccl") and not (transport == "auto" and gpu.usable(index)):
        return World(0, 1, "thread", _core.world_of_one(), CPU, timeout, met.control)
    if transport == "auto":
        transport = "peer" if nccl is None and gpu.map_each_other(met, index) else "nccl"
    device = gpu.claim(index, transport)
    return World(0, 1, transport, _of_gpus(transport, met, device, nccl), device, timeout, met.control)


def _of_gpus(
    transport: Transport, met: Rendezvous, device: torch.device, nccl: gpu.Origin | None
) -> _core.Communicator:
    if transport == "nccl":
        return gpu.nccl_communicator(met, device, nccl)
    if nccl is not None:
        raise InvalidArgument("init(nccl=) is for the transport nccl, not for peer")
    return gpu.peer_communicator(met, device)


def _choose(met: Rendezvous) -> Transport:
    """The fastest transport that joins all ranks, from what each says of itself."""
    index = int(os.environ.get("LOCAL_RANK", met.rank))
    usable = gpu.usable(index)
    places = met.control.all_gather("place", f"{usable:d} {platform.node()}".encode(), met.timeout)
    gpus, hosts = zip(*(place.decode().split(" ", 1) for place in places), strict=True)
    if len(set(hosts)) > 1:
        return "process_group"
    if set(gpus) != {"1"}:
        return "shared_memory"
    return "peer" if gpu.map_each_other(met, index) else "nccl"


def _process_group(met: Rendezvous) -> _core.Communicator:
    from aliquot.process_group import ProcessGroup

    everything = not dist.is_initialized()
    group = while_all_live(met.control, lambda: _new_group(met))
    mover = ProcessGroup(group, met.control)
    at_end(lambda: mover.end(and_all_others=everything))
    return _core.process_group_communicator(mover, met.rank, met.world_size, met.timeout)


def _new_group(met: Rendezvous) -> dist.ProcessGroup:
    timeout = timedelta(seconds=met.timeout)
    if not dist.is_initialized():
        store = PrefixStore("group", met.store)
        dist.init_process_group("gloo", store=store, rank=met.rank, world_size=met.world_size, timeout=timeout)
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timeout)
    return group
