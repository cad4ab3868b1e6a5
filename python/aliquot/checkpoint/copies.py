"""Copies on the host of what a save behind training is to write."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from aliquot import _core


class HostCopies:
    """Keeps their memory from one save to the next: to take it costs many times what it costs to fill it. It is one set
    for all models: a save of other tensors gives back what does not fit them.
    """  # fmt: skip

    def __init__(self) -> None:
        self._taken: list[Tensor] = []
        """Bytes, in the order in which they were asked for."""
        self._given = 0

    def begin(self) -> None:
        """Those that were given out are no longer needed."""
        self._given = 0

    def of(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor, once the device has come so far. The tensors are nearly always those of last time."""
        pinned = tensor.device.type == "cuda"
        if self._given == len(self._taken) or not _fits(self._taken[self._given], tensor.nbytes, pinned):
            del self._taken[self._given :]  # before more is taken
            self._taken.append(_pinned(tensor.nbytes) if pinned else pageable(tensor.nbytes))
        memory = self._taken[self._given]
        self._given += 1
        return memory.view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)

    def lender(self) -> Callable[[int], Tensor]:
        """Of a load, which is over before the next save begins: gives each kept piece once, to who wants its size, and
        fresh memory to others.
        """  # fmt: skip
        spare: dict[int, list[Tensor]] = defaultdict(list)
        for memory in reversed(self._taken):
            spare[memory.nbytes].append(memory)
        return lambda size: spare[size].pop() if spare[size] else pageable(size)


def _fits(memory: Tensor, size: int, pinned: bool) -> bool:
    return memory.nbytes == size and memory.is_pinned() == pinned


def pageable(size: int) -> Tensor:
    """So many bytes of fresh memory."""
    return torch.empty(size, dtype=torch.uint8, device="cpu")


def _pinned(size: int) -> Tensor:
    """Not torch's, which takes up to twice as much."""
    memory = _core.PinnedMemory(size)
    return torch.utils.dlpack.from_dlpack(_core.view(memory.address, [size], memory, "uint8", -1))
