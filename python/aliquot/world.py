"""The world: which ranks there are, and what moves bytes between them. The only global of the package."""

from __future__ import annotations

import atexit
import os
import platform
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from aliquot import _core, gpu
from aliquot._core import InvalidArgument

Transport = Literal["auto", "shared_memory", "peer", "nccl", "process_group"]
CPU = torch.device("cpu")
PATIENCE = 10.0
"""Seconds after which a rank that says nothing counts as frozen, unless ALIQUOT_PATIENCE says otherwise."""


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
    control: _core.ControlChannel
    """How ranks tell each other that they live, and why they stop; beside every transport."""

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
        atexit.register(_leave)
    elif transport not in ("auto", _world.transport) and _world.world_size > 1:
        raise InvalidArgument(f"the world is already up on {_world.transport!r}, it can't be {transport!r} as well")
    return _world


def _leave() -> None:
    """Lets peers see that this rank ends in good order, and not that it was killed."""
    if _world is not None:
        _world.communicator.leave()
        _world.control.leave()


def _join(transport: Transport, timeout: float, nccl: gpu.Origin | None) -> World:
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 and not dist.is_initialized():
        return _alone(transport, timeout, nccl)
    store, rank, world_size = _rendezvous(timeout)
    store = PrefixStore("aliquot", store)
    control = _control(store, rank, world_size, timeout)
    if transport == "auto":
        transport = "nccl" if nccl is not None else _choose(store, rank, world_size, timeout)
    device = CPU
    if transport in ("peer", "nccl"):
        device = gpu.claim(int(os.environ.get("LOCAL_RANK", rank)), transport)
        communicator = _of_gpus(transport, store, rank, world_size, timeout, device, nccl)
    elif transport == "shared_memory":
        communicator = _core.shared_memory_communicator(
            store.set, lambda key: store.get(key).decode(), "world", rank, world_size, timeout
        )
    else:
        communicator = _process_group(store, rank, world_size, timeout)
    return World(rank, world_size, transport, communicator, device, control)


def _alone(transport: Transport, timeout: float, nccl: gpu.Origin | None) -> World:
    index = int(os.environ.get("LOCAL_RANK", "0"))
    store = HashStore()
    control = _control(store, 0, 1, timeout)
    if transport not in ("peer", "nccl") and not (transport == "auto" and gpu.usable(index)):
        return World(0, 1, "thread", _core.world_of_one(), CPU, control)
    if transport == "auto":
        transport = "peer" if nccl is None and gpu.map_each_other(store, 0, 1, timeout, index) else "nccl"
    device = gpu.claim(index, transport)
    return World(0, 1, transport, _of_gpus(transport, store, 0, 1, timeout, device, nccl), device, control)


def _control(store: Store, rank: int, world_size: int, timeout: float) -> _core.ControlChannel:
    """The address is that of the interface that other hosts know rank 0 by, which torchrun names."""
    return _core.ControlChannel(
        store.set, lambda key: store.get(key).decode(), "control", rank, world_size,
        os.environ.get("MASTER_ADDR", "127.0.0.1"), float(os.environ.get("ALIQUOT_PATIENCE", PATIENCE)), timeout,
    )  # fmt: skip


def _of_gpus(
    transport: Transport, store: Store, rank: int, world_size: int, timeout: float, device: torch.device,
    nccl: gpu.Origin | None,
) -> _core.Communicator:  # fmt: skip
    if transport == "nccl":
        return gpu.nccl_communicator(store, rank, world_size, timeout, device, nccl)
    if nccl is not None:
        raise InvalidArgument("init(nccl=) is for the transport nccl, not for peer")
    return gpu.peer_communicator(store, rank, world_size, timeout, device)


def _rendezvous(timeout: float) -> tuple[Store, int, int]:
    if dist.is_initialized():
        return dist.distributed_c10d._get_default_store(), dist.get_rank(), dist.get_world_size()
    store, rank, world_size = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
    return store, rank, world_size


def _choose(store: Store, rank: int, world_size: int, timeout: float) -> Transport:
    """The fastest transport that joins all ranks, from what each says of itself."""
    index = int(os.environ.get("LOCAL_RANK", rank))
    usable = gpu.usable(index)
    store.set(f"place/{rank}", f"{usable:d} {platform.node()}")
    gpus, hosts = zip(*(store.get(f"place/{other}").decode().split(" ", 1) for other in range(world_size)), strict=True)
    if len(set(hosts)) > 1:
        return "process_group"
    if set(gpus) != {"1"}:
        return "shared_memory"
    return "peer" if gpu.map_each_other(store, rank, world_size, timeout, index) else "nccl"


def _process_group(store: Store, rank: int, world_size: int, timeout: float) -> _core.Communicator:
    from aliquot.process_group import ProcessGroup

    everything = not dist.is_initialized()
    if everything:
        dist.init_process_group(
            "gloo", store=PrefixStore("group", store), rank=rank, world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )  # fmt: skip
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
    mover = ProcessGroup(group, store)
    atexit.register(mover.end, and_all_others=everything)
    return _core.process_group_communicator(mover, rank, world_size, timeout)
