"""What an optimizer keeps of parameters, as checkpoints take it and give it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from aliquot._core import CheckpointError
from aliquot.checkpoint.parts import Quantized
from aliquot.places import Place

Scalars = Mapping[str, Mapping[str, Any]]
"""States that are no tensors, or single numbers: by parameter's name, then by state's."""


def steps_of(scalars: Scalars, place: Place) -> int:
    """How often a parameter was stepped, as a checkpoint says; 0 where it does not."""
    steps = scalars.get(place.name, {}).get("steps", 0)
    if type(steps) is not int or not 0 <= steps < 1 << 63:
        raise CheckpointError(f"{place.name}: its steps are {steps!r:.100}")
    return steps


@dataclass(frozen=True)
class State:
    """A state of some elements of a parameter, one number for each as it lies in the store."""

    name: str
    place: Place
    begin: int
    """Of the parameter's numbers in the store, where it starts."""
    value: torch.Tensor
    """Flat."""


@dataclass(frozen=True)
class QuantizedState:
    """One that is kept in 8 bits: the same, of what this rank saves."""

    name: str
    place: Place
    begin: int
    value: Quantized
