"""A unit of a sharded model: when its parameters are ordinary tensors, and what autograd may read of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from aliquot._core import Error
from aliquot.guard import ShardedParameter
from aliquot.places import drop_autograd_grads

if TYPE_CHECKING:
    from aliquot.places import Place

CLOSED = 1 << 30
"""What is added to the version of a parameter whose slot may be overwritten: autograd then refuses to read it."""
PRIVATE = 1 << 29
"""What is added while it is a private copy: what a forward saved of the slot is not to be read, and the other way."""


@dataclass(eq=False)
class Unit:
    """Parameters that are gathered together. docs/design.md, "What autograd may still read", explains the versions."""

    index: int
    name: str
    params: list[nn.Parameter]
    dtype: torch.dtype
    trainable: bool
    encloses_units: bool
    places: list[Place] = field(default_factory=list)
    address: int = 0
    """Where the full unit lies, as the parameters' tensors see it."""
    private: int = 0
    """How many aliquot.gathered hold it: the parameters are private copies then, and not where the unit lies."""
    open_count: int = 0
    """How many forwards, backwards and aliquot.gathered use it."""
    open_in_backward: bool = False
    """One of those openings is a backward's."""
    seen_in_backward: bool = False
    """It was gathered for the backward under way."""
    kept_gradients: bool = False
    """The gradients on its tensors come from a backward under no_sync that ended well."""
    held: bool = False
    """It stays gathered until the step, for the backward of a backward."""
    expected: int = 0
    """Calls of forward whose backward has not come yet."""
    versions: list[int] = field(default_factory=list)
    """Of the parameters' tensors, when they were last opened."""
    added: int = 0
    """CLOSED or PRIVATE, while it is in the versions."""
    set_versions: Callable[[Sequence[torch.Tensor], Sequence[int]], None] | None = None
    """How to set versions, where later units overwrite this one; None where nobody does."""

    def open(self) -> None:
        """Makes the parameters ordinary ones, while they are gathered."""
        self.open_count += 1
        if self.open_count == 1:
            for param in self.params:
                param.__class__ = nn.Parameter
        self.mark()
        if self.open_count == 1:
            self.versions = [param._version for param in self.params]

    def close(self) -> None:
        """Undoes `open`; the last one puts the guard back."""
        if self.open_count == 0:
            return
        self.open_count -= 1
        self.mark()
        if self.open_count == 0:
            for param in self.params:
                param.__class__ = ShardedParameter

    def mark(self) -> None:
        """Lets autograd read the parameters while they are gathered, and only then."""
        if self.set_versions is None:
            return
        gathered = self.held or self.open_count > self.private
        wanted = 0 if gathered else PRIVATE if self.private else CLOSED
        if wanted != self.added:
            with torch._C.DisableTorchFunctionSubclass():
                self.set_versions(self.params, [param._version - self.added + wanted for param in self.params])
            self.added = wanted

    def drop_gradients(self) -> None:
        """Frees what autograd left on the parameters."""
        drop_autograd_grads(self.params)
        self.kept_gradients = False

    def require_unwritten(self) -> None:
        """Refuses what a forward wrote to its own parameters: it is not this rank's to write."""
        for place, param, version in zip(self.places, self.params, self.versions, strict=True):
            if param._version != version:
                raise Error(
                    f"rank {place.rank}: {place.name} was written to while its unit was gathered in forward. "
                    "At stage 3 that memory belongs to its owners: write between steps, under "
                    "aliquot.gathered(model, write=True)"
                )
