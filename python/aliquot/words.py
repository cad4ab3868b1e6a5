"""Parameters that are neither fp32 nor bf16 lie in the store bit by bit, as fp32 words.

complex64 trains: its parts are fp32 numbers, and all that is done to them is done to each part. Integers, bytes and
8-bit floats are frozen, so nobody computes with the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from aliquot._core import InvalidArgument
from aliquot.precision import NAMES, Precision

WORD = torch.float32


def dtype_in_unit(name: str, param: torch.Tensor, precision: Precision, kept: bool = False) -> torch.dtype:
    """What `param` is computed with: what `precision` says of floating-point numbers, fp32 where its module is `kept` so,
    and its own dtype if it is in words.
    """  # fmt: skip
    if param.is_complex() and param.requires_grad and param.dtype != torch.complex64:
        raise InvalidArgument(f"{name} is {param.dtype}; complex parameters train as complex64: convert it")
    return param.dtype if _is_kept_in_words(param) else precision.dtype_of(name, param, kept)


def _is_kept_in_words(param: torch.Tensor) -> bool:
    numbers_of_one_byte = param.is_floating_point() and param.dtype.itemsize == 1
    return param.is_complex() or (not param.requires_grad and (not param.is_floating_point() or numbers_of_one_byte))


def in_words(dtype: torch.dtype) -> bool:
    """Whether parameters of units of this dtype lie in words."""
    return dtype not in NAMES


def dtype_in_store(dtype: torch.dtype) -> torch.dtype:
    """What the core takes the numbers of a unit of this dtype for."""
    return WORD if in_words(dtype) else dtype


def numel_in_store(shape: Sequence[int], dtype: torch.dtype) -> int:
    """How many numbers of `dtype_in_store` a parameter takes."""
    in_store = dtype_in_store(dtype)
    return -(-prod(shape) * dtype.itemsize // in_store.itemsize)


def to_words(value: torch.Tensor) -> torch.Tensor:
    """A copy of the tensor's bits, as words; the last one is filled up with zeros."""
    held = value.resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)
    words = torch.zeros(numel_in_store(value.shape, value.dtype), dtype=WORD, device=value.device)
    words.view(torch.uint8)[: held.numel()] = held
    return words


def from_words(words: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """The tensor whose bits `words` are, in the same memory."""
    return words.view(dtype)[: prod(shape)].view(shape)
