"""A unit of a sharded model: when its parameters are ordinary tensors, and what autograd may read of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import torch
from torch import nn

from aliquot import _core
from aliquot._core import Error
from aliquot.tensors import TENSORS

if TYPE_CHECKING:
    from aliquot.places import Place


class Unit(_core.Unit):
    """Parameters that are gathered together."""

    def __init__(
        self, index: int, name: str, params: tuple[nn.Parameter, ...], dtype: torch.dtype, trainable: bool,
        encloses_units: bool,
    ) -> None:  # fmt: skip
        super().__init__(TENSORS, index, params, dtype, trainable)
        self.name = name
        self.encloses_units = encloses_units
        self.places: list[Place] = []

    def refuse_write(self, param: int) -> NoReturn:
        """The error for a forward that wrote to its own parameters: they are not this rank's to write."""
        place = self.places[param]
        raise Error(
            f"rank {place.rank}: {place.name} was written to while its unit was gathered in forward. "
            "At stage 3 that memory belongs to its owners: write between steps, under "
            "aliquot.gathered(model, write=True)"
        )
