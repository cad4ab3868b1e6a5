"""Elements of tensors, where a rank keeps them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from aliquot import _core
from aliquot.checkpoint.copies import HostCopies


@dataclass(frozen=True)
class Numbers:
    """Flat tensors, on the host or a device, that the core reads and writes."""

    elements: Tensor
    low: Tensor | None = None
    """Of halves, where `elements` are the high ones."""

    def in_file(self, name: str, word: str, shape: Sequence[int]) -> _core.FileTensor:
        """As the core takes it; the tensors must stay."""
        device = -1 if self.elements.device.type == "cpu" else self.elements.device.index
        return _core.FileTensor(name, word, shape, self.elements.data_ptr(), self.elements.nbytes, self._low, device)

    def given(self, values: Tensor) -> tuple[int, int, int, int]:
        """The same where they are to be overwritten with values of the host."""
        return values.data_ptr(), values.nbytes, self.elements.data_ptr(), self._low

    @property
    def _low(self) -> int:
        return 0 if self.low is None else self.low.data_ptr()


class Memory(Protocol):
    """Where elements are: as themselves, or as something that they can be made of."""

    def copied(self, copies: HostCopies) -> Memory:
        """The same elements in copies."""

    def numbers(self) -> Numbers:
        """What a file of the elements is written from: the memory itself if it can be."""

    def take(self, values: Tensor) -> None:
        """Overwrites them with values of the host."""

    def is_put_as(self, values: Tensor) -> bool:
        """Whether `_core.ValuePutter` overwrites `numbers` with these values as `take` would."""


@dataclass(frozen=True)
class Plain:
    """The elements themselves, in a flat tensor."""

    elements: Tensor
    """Contiguous: a copy that is made when a file is written would come behind what the writer waits for."""

    def numel(self) -> int:
        """How many."""
        return self.elements.numel()

    def copied(self, copies: HostCopies) -> Plain:
        """See Memory."""
        return Plain(copies.of(self.elements))

    def numbers(self) -> Numbers:
        """See Memory."""
        return Numbers(self.elements)

    def take(self, values: Tensor) -> None:
        """See Memory. Rounds to the dtype kept here."""
        self.elements.copy_(values)

    def is_put_as(self, values: Tensor) -> bool:
        """See Memory."""
        return values.dtype is self.elements.dtype and _are_laid_alike(values, self.elements)


@dataclass(frozen=True)
class Halves:
    """fp32 numbers as bf16 parameters and 16 more bits (split_master.h)."""

    high: Tensor
    low: Tensor

    def copied(self, copies: HostCopies) -> Halves:
        """See Memory."""
        return Halves(copies.of(self.high), copies.of(self.low))

    def numbers(self) -> Numbers:
        """See Memory."""
        return Numbers(self.high, self.low)

    def take(self, values: Tensor) -> None:
        """See Memory."""
        masters = values.float()
        on_host = self.high.device.type == "cpu"
        high, low = (half if on_host else torch.empty_like(half, device="cpu") for half in (self.high, self.low))
        _core.split_masters(masters.data_ptr(), high.data_ptr(), low.data_ptr(), masters.numel())
        if not on_host:
            self.high.copy_(high)
            self.low.copy_(low)

    def is_put_as(self, values: Tensor) -> bool:
        """See Memory."""
        return values.dtype is torch.float32 and _are_laid_alike(values, self.high)


@dataclass(frozen=True)
class Quantized:
    """fp32 numbers of a state as codes of 8 bits and scales of their blocks (quantization.h), from a block's start on.

    Its own `numbers` leave the same codes and scales when they are taken again.
    """

    role: str
    codes: Tensor
    scales: Tensor
    dtype = torch.float32

    def numel(self) -> int:
        """How many numbers."""
        return self.codes.numel()

    def copied(self, copies: HostCopies) -> Quantized:
        """See Memory."""
        return Quantized(self.role, copies.of(self.codes), copies.of(self.scales))

    def numbers(self) -> Numbers:
        """See Memory."""
        codes, scales = self.codes.cpu(), self.scales.cpu()
        numbers = torch.empty(codes.numel(), dtype=torch.float32, device="cpu")
        _core.dequantize(self.role, codes.data_ptr(), scales.data_ptr(), numbers.data_ptr(), numbers.numel())
        return Numbers(numbers)

    def take(self, values: Tensor) -> None:
        """See Memory. Rounds to what the codes can say."""
        numbers = values.float().contiguous()
        codes, scales = (torch.empty_like(tensor, device="cpu") for tensor in (self.codes, self.scales))
        _core.quantize(self.role, numbers.data_ptr(), codes.data_ptr(), scales.data_ptr(), numbers.numel())
        self.codes.copy_(codes)
        self.scales.copy_(scales)

    def is_put_as(self, values: Tensor) -> bool:
        """See Memory."""
        return False


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

    def copied(self, copies: HostCopies) -> Part:
        """The same elements in copies."""
        return replace(self, memory=self.memory.copied(copies))

    @property
    def file_shape(self) -> tuple[int, ...]:
        """In a file: the tensor's own where this is all of it."""
        return tuple(self.shape) if self.end - self.begin == self.shape.numel() else (self.end - self.begin,)


def _are_laid_alike(values: Tensor, place: Tensor) -> bool:
    return values.numel() == place.numel() and values.is_contiguous() and place.is_contiguous()


def as_bytes(tensor: Tensor) -> ctypes.Array[ctypes.c_char]:
    """The memory of a contiguous tensor on the host, without a copy; the tensor must stay."""
    return (ctypes.c_char * (tensor.numel() * tensor.element_size())).from_address(tensor.data_ptr())
