"""Tensors by name, of which one is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from aliquot._core import CheckpointError, InvalidArgument

ROUNDED = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
"""Dtypes that are cast to one another."""


@dataclass(frozen=True)
class Entry:
    """What is known of a tensor before it is read."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """In memory, and in a file."""
        return self.numel * self.dtype.itemsize

    def cast_to(self, dtype: torch.dtype | None) -> Entry:
        """The same in another floating-point dtype, where it is in one that is rounded."""
        return self if dtype is None or self.dtype not in ROUNDED else replace(self, dtype=dtype)


Named = Iterator[tuple[str, Tensor]]
"""Tensors that come one after the other; the one before is gone when the next is asked for."""


class Source(Mapping[str, Tensor]):
    """Tensors on a disk: `source[name]` reads one, anew each time."""

    def __init__(self, entries: Mapping[str, Entry], read: Callable[[str], Tensor]) -> None:
        self.entries = entries
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def renamed(self, rename: Callable[[str], str | None]) -> Source:
        """The same by other names; what becomes None is left out."""
        before: dict[str, str] = {}
        for name in self.entries:
            if (other := rename(name)) is not None:
                if other in before:
                    raise CheckpointError(f"{before[other]} and {name} would both be named {other}")
                before[other] = name
        entries = {other: replace(self.entries[name], name=other) for other, name in before.items()}
        return Source(entries, lambda other: self._read(before[other]))


def require_rounded(dtype: torch.dtype | None) -> None:
    """Refuses a dtype that no tensor is cast to."""
    if dtype is not None and dtype not in ROUNDED:
        raise InvalidArgument(f"dtype is {dtype}; it is one of {', '.join(sorted(map(str, ROUNDED)))}, or None")
