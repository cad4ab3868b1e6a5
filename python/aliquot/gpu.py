"""What the world needs of GPUs: which one is this rank's, and NCCL between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import torch

from aliquot import _core
from aliquot._core import DeviceError
from aliquot.rendezvous import Rendezvous

TRANSPORTS = ("peer", "nccl")


class NcclCommunicator(Protocol):
    """As `cupy.cuda.nccl` makes them."""

    @property
    def comm(self) -> int:
        """The address of NCCL's own handle."""


Origin = bytes | Sequence[int] | NcclCommunicator
"""A unique id (cupy gives it as 128 signed numbers), or a communicator."""


def usable(index: int) -> bool:
    """Whether this process can train on its `index`-th GPU."""
    return _core.built_with_cuda() and torch.cuda.is_available() and index < torch.cuda.device_count()


def claim(index: int, transport: str) -> torch.device:
    """Makes the `index`-th GPU torch's current device; errors name the `transport` that needs it."""
    if not usable(index):
        raise DeviceError(
            f"the transport {transport} needs GPU {index} (LOCAL_RANK): torch sees {torch.cuda.device_count()} of them,"
            f" and this build of aliquot has {'a' if _core.built_with_cuda() else 'no'} CUDA back end"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def usable_everywhere(met: Rendezvous, index: int) -> bool:
    """Whether every rank can train on a GPU, this one on its `index`-th. Collective."""
    return set(met.control.all_gather("gpus", b"%d" % usable(index), met.timeout)) == {b"1"}


def map_each_other(met: Rendezvous, beside: _core.Communicator, index: int) -> bool:
    """Whether on every host the GPUs map each other's memory. `beside` joins the ranks of this one. Collective."""
    mine = _core.can_map_peers(beside, index)
    return set(met.control.all_gather("peers", b"%d" % mine, met.timeout)) == {b"1"}


def nccl_communicator(
    control: _core.Communicator, device: torch.device, origin: Origin | None, channel: _core.ControlChannel | None
) -> _core.Communicator:
    """A communicator of the ranks' GPUs."""
    if (library := _library()) is not None:
        _core.set_nccl_library(str(library))
    unique_id, address = b"", 0
    if isinstance(origin, bytes):
        unique_id = origin
    elif isinstance(origin, Sequence):
        unique_id = bytes(number % 256 for number in origin)
    elif origin is not None:
        address = origin.comm
    return _core.nccl_communicator(control, device.index, unique_id, address, channel)


def _library() -> Path | None:
    """The copy of NCCL that pip installs beside torch."""
    spec = find_spec("nvidia.nccl") if find_spec("nvidia") else None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, "lib", "libnccl.so.2")
        if path.exists():
            return path
    return None


def transient_memory(device: torch.device) -> tuple[Callable[[int, int], int], Callable[[int], None]]:
    """Takes and gives back memory of torch's allocator: gradients then use what activations have freed."""

    def take(size: int, stream: int) -> int:
        if torch.cuda.current_device() == device.index:  # without the detour, which takes longer than the allocation
            return int(torch._C._cuda_cudaCachingAllocator_raw_alloc(size, stream))
        return int(torch.cuda.caching_allocator_alloc(size, device, stream))

    return take, torch.cuda.caching_allocator_delete
