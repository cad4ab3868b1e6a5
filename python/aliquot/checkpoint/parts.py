"""Elements of tensors, where a rank keeps them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from aliquot import _core


class Memory(Protocol):
    """Where elements are: as themselves, or as something that they can be made of."""

    def copied(self) -> Memory:
        """A copy on the host, once the device has come so far."""

    def values(self) -> Tensor:
        """The elements, flat and on the host; the memory itself where it is that."""

    def take(self, values: Tensor) -> None:
        """Overwrites them."""


@dataclass(frozen=True)
class Plain:
    """The elements themselves, in a flat tensor."""

    elements: Tensor

    def numel(self) -> int:
        """How many."""
        return self.elements.numel()

    def copied(self) -> Plain:
        """See Memory."""
        return Plain(_on_host(self.elements))

    def values(self) -> Tensor:
        """See Memory."""
        return self.elements.cpu().contiguous()

    def take(self, values: Tensor) -> None:
        """See Memory. Rounds to the dtype kept here."""
        self.elements.copy_(values)


@dataclass(frozen=True)
class Halves:
    """fp32 numbers as bf16 parameters and 16 more bits (split_master.h)."""

    high: Tensor
    low: Tensor

    def copied(self) -> Halves:
        """See Memory."""
        return Halves(_on_host(self.high), _on_host(self.low))

    def values(self) -> Tensor:
        """See Memory."""
        high, low = self.high.cpu(), self.low.cpu()
        joined = torch.empty(high.numel(), dtype=torch.float32, device="cpu")
        _core.join_masters(high.data_ptr(), low.data_ptr(), joined.data_ptr(), joined.numel())
        return joined

    def take(self, values: Tensor) -> None:
        """See Memory."""
        masters = values.float()
        high, low = (torch.empty(masters.numel(), dtype=torch.bfloat16, device="cpu") for _ in range(2))
        _core.split_masters(masters.data_ptr(), high.data_ptr(), low.data_ptr(), masters.numel())
        self.high.copy_(high)
        self.low.copy_(low)


@dataclass(frozen=True)
class Quantized:
    """fp32 numbers of a state as codes of 8 bits and scales of their blocks (quantization.h), from a block's start on.

    Its own `values` leave the same codes and scales when they are taken again.
    """

    role: str
    codes: Tensor
    scales: Tensor
    dtype = torch.float32

    def numel(self) -> int:
        """How many numbers."""
        return self.codes.numel()

    def copied(self) -> Quantized:
        """See Memory."""
        return Quantized(self.role, _on_host(self.codes), _on_host(self.scales))

    def values(self) -> Tensor:
        """See Memory."""
        codes, scales = self.codes.cpu(), self.scales.cpu()
        numbers = torch.empty(codes.numel(), dtype=torch.float32, device="cpu")
        _core.dequantize(self.role, codes.data_ptr(), scales.data_ptr(), numbers.data_ptr(), numbers.numel())
        return numbers

    def take(self, values: Tensor) -> None:
        """See Memory. Rounds to what the codes can say."""
        numbers = values.float().contiguous()
        codes, scales = (torch.empty_like(tensor, device="cpu") for tensor in (self.codes, self.scales))
        _core.quantize(self.role, numbers.data_ptr(), codes.data_ptr(), scales.data_ptr(), numbers.numel())
        self.codes.copy_(codes)
        self.scales.copy_(scales)


@dataclass(frozen=True)
class Part:
    """Some elements of a flattened tensor."""

    key: str
    dtype: torch.dtype
    shape: torch.Size
    """Of the whole."""
    begin: int
    end: int
    memory: Memory

    def copied(self) -> Part:
        """The same, of a copy on the host, once the device has come so far."""
        return replace(self, memory=self.memory.copied())

    @property
    def file_shape(self) -> tuple[int, ...]:
        """In a file: the tensor's own where this is all of it."""
        return tuple(self.shape) if self.end - self.begin == self.shape.numel() else (self.end - self.begin,)


def _on_host(tensor: Tensor) -> Tensor:
    pinned = tensor.device.type == "cuda"
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)
    return copy.copy_(tensor, non_blocking=True)


def as_bytes(tensor: Tensor) -> ctypes.Array[ctypes.c_char]:
    """The memory of a contiguous tensor on the host, without a copy; the tensor must stay."""
    return (ctypes.c_char * (tensor.numel() * tensor.element_size())).from_address(tensor.data_ptr())
