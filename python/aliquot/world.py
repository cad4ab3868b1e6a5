"""The world: which ranks there are, and what moves bytes between them. The only global of the package."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args
from weakref import WeakSet

import torch
import torch.distributed as dist

from aliquot import _core, gpu
from aliquot._core import DeviceError, InvalidArgument
from aliquot.agreement import require_same, versions
from aliquot.background import Background
from aliquot.farewell import announce_ending, announce_uncaught, at_end
from aliquot.rendezvous import Rendezvous, alone, meet
from aliquot.subsets import Subsets, counterparts, hosts_of_ranks, neighbours, ranks_per_host

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
    """Where sharded models live: this rank's GPU on the transports `peer` and `nccl`, the CPU on the others."""
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

    `transport`: for GPUs of one host, each rank with that of its LOCAL_RANK, which becomes torch's current device:
    `"peer"` where they map each other's memory (NVLink), else `"nccl"`; `"shared_memory"` for CPUs of one host;
    `"hierarchical"` for CPUs of several hosts with as many ranks on each: shared memory inside, `torch.distributed`
    between, where each rank moves its share only; `"process_group"` for whatever `torch.distributed` reaches (it is
    initialized with Gloo if it is not yet); `"auto"` takes the first of them that can join all ranks, but leaves no
    GPUs idle. Ranks with the same ALIQUOT_HOST_ID are on one host; without it, those whose hosts have the same name.
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
    device, subsets = CPU, Subsets(met, hosts, transport)
    if transport in ("peer", "nccl"):
        device = gpu.claim(int(os.environ.get("LOCAL_RANK", met.rank)), transport)
        communicator = _of_gpus(transport, met, device, nccl)
    elif transport == "hierarchical":
        communicator = _hierarchical(subsets)
    else:
        communicator = subsets.communicator(range(met.world_size))
    return World(met.rank, met.world_size, transport, communicator, device, timeout, met.control, subsets)


def _alone(transport: Transport, timeout: float, nccl: gpu.Origin | None) -> World:
    index = int(os.environ.get("LOCAL_RANK", "0"))
    met = alone(timeout)
    subsets = Subsets(met, hosts_of_ranks(met), "thread")
    if transport not in ("peer", "nccl") and not (transport == "auto" and gpu.usable(index)):
        return World(0, 1, "thread", _core.world_of_one(), CPU, timeout, met.control, subsets)
    if transport == "auto":
        transport = "peer" if nccl is None and gpu.map_each_other(met, index) else "nccl"
    device = gpu.claim(index, transport)
    return World(0, 1, transport, _of_gpus(transport, met, device, nccl), device, timeout, met.control, subsets)


def _of_gpus(
    transport: Transport, met: Rendezvous, device: torch.device, nccl: gpu.Origin | None
) -> _core.Communicator:
    if transport == "nccl":
        return gpu.nccl_communicator(met, device, nccl)
    if nccl is not None:
        raise InvalidArgument("init(nccl=) is for the transport nccl, not for peer")
    return gpu.peer_communicator(met, device)


def _choose(met: Rendezvous, hosts: tuple[str, ...]) -> Transport:
    """The fastest transport that joins all ranks, from what each says of itself."""
    index = int(os.environ.get("LOCAL_RANK", met.rank))
    have_gpus = set(met.control.all_gather("gpus", b"%d" % gpu.usable(index), met.timeout)) == {b"1"}
    if len(set(hosts)) > 1:
        if have_gpus:
            raise DeviceError(
                f"the ranks have GPUs on {len(set(hosts))} hosts ({', '.join(dict.fromkeys(hosts))}), and no transport "
                'joins those yet. Train on one host, or on the CPUs of all with aliquot.init("hierarchical") or '
                'aliquot.init("process_group")'
            )
        return "hierarchical" if (ranks_per_host(hosts) or 1) > 1 else "process_group"
    if not have_gpus:
        return "shared_memory"
    return "peer" if gpu.map_each_other(met, index) else "nccl"


def _hierarchical(subsets: Subsets) -> _core.Communicator:
    met = subsets.met
    size = ranks_per_host(subsets.hosts)
    if size is None:
        raise InvalidArgument(
            "the transport hierarchical needs as many ranks on each host, neighbours in the order of ranks, and they "
            f"are on {list(subsets.hosts)}; process_group joins any"
        )
    inside = subsets.communicator(neighbours(met.rank, size))
    between = subsets.communicator(counterparts(met.rank, size, met.world_size))
    return _core.hierarchical_communicator(inside, between)
