"""A unit of a sharded model: when its parameters are ordinary tensors, and what autograd may read of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import nn

from aliquot._core import Error
from aliquot.tensors import TENSORS

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
    params: tuple[nn.Parameter, ...]
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
    versions: tuple[int, ...] = ()
    """Of the parameters, when they were last opened."""
    added: int = 0
    """CLOSED or PRIVATE, while it is in the versions."""
    overwritten: bool = False
    """Whether later units may come to lie where it lies."""

    def open(self) -> None:
        """Makes the parameters ordinary ones, while they are gathered."""
        self.open_count += 1
        if self.open_count == 1:
            self.versions = TENSORS.open(self.params, self._shift())
        else:
            self.mark()

    def close(self) -> int | None:
        """Undoes `open`; the last one puts the guard back, and returns the first parameter that was written to."""
        if self.open_count == 0:
            return None
        self.open_count -= 1
        if self.open_count == 0:
            return TENSORS.close(self.params, self._shift(), self.versions)
        self.mark()
        return None

    def mark(self) -> None:
        """Lets autograd read the parameters while they are gathered, and only then."""
        if shift := self._shift():
            TENSORS.shift_versions(self.params, shift)

    def _shift(self) -> int:
        """What is to be added to the versions now."""
        if not self.overwritten:
            return 0
        gathered = self.held or self.open_count > self.private
        wanted = 0 if gathered else PRIVATE if self.private else CLOSED
        shift, self.added = wanted - self.added, wanted
        return shift

    def drop_gradients(self) -> None:
        """Frees what autograd left on the parameters."""
        TENSORS.drop_gradients(self.params)
        self.kept_gradients = False

    def refuse_write(self, param: int) -> NoReturn:
        """The error for a forward that wrote to its own parameters: they are not this rank's to write."""
        place = self.places[param]
        raise Error(
            f"rank {place.rank}: {place.name} was written to while its unit was gathered in forward. "
            "At stage 3 that memory belongs to its owners: write between steps, under "
            "aliquot.gathered(model, write=True)"
        )
