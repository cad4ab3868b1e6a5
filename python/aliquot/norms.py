"""Norms of some of a model's gradients, and clipping to them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from aliquot._core import Error, InvalidArgument
from aliquot.agreement import require_agreement
from aliquot.places import Place, places_of

if TYPE_CHECKING:
    from aliquot.sharded import ShardedModel

SquareSums = Mapping[Place, float]
"""Of each parameter's gradient, over all ranks and without the loss scale; NaN where one is not finite."""


def square_sums(model: ShardedModel) -> SquareSums:
    """As of now. Every rank calls it, and the host waits."""
    sums = model.engine.square_sums(model.stream())
    return {place: sums[unit.index][place.index] for unit in model.units for place in unit.places}


def require_alike(model: ShardedModel, groups: Iterable[Iterable[Place]], max_norms: Iterable[float | None]) -> None:
    """Refuses ranks that clip other gradients, or to other norms: each would scale its own part. Collective."""
    lines = (
        f"{', '.join(place.name for place in places)} to {max_norm}"
        for places, max_norm in zip(groups, max_norms, strict=True)
    )
    require_agreement(model.world, "clip differently", lines)


def norm_of(places: Iterable[Place], squares: SquareSums) -> float:
    """Of all their gradients together."""
    return math.sqrt(math.fsum(squares[place] for place in places))


def clip_factor(norm: float, max_norm: float) -> float:
    """As `torch.nn.utils.clip_grad_norm_` has it, where it is less than 1."""
    return max_norm / (norm + 1e-6)


def clip(places: Iterable[Place], norm: float, max_norm: float) -> None:
    """Scales gradients whose norm is `norm` to `max_norm`, if that is less; not if they are not finite."""
    factor = clip_factor(norm, max_norm)
    if factor < 1:
        for place in places:
            place.model.engine.scale_gradient(place.unit.index, place.index, factor, place.model.stream())


def require_positive(max_grad_norm: float | None) -> None:
    """Refuses to clip to what is no norm."""
    if max_grad_norm is not None and not (isinstance(max_grad_norm, Real) and max_grad_norm > 0):
        raise InvalidArgument(f"max_grad_norm is {max_grad_norm!r}; it is positive, or None")


class GroupNorms:
    """Of the parameter groups of a step, each by itself, before any clipping."""

    def __init__(self, model: ShardedModel, groups: Sequence[Sequence[Place]]) -> None:
        squares = square_sums(model)
        self.groups = groups
        self.norms = [norm_of(places, squares) for places in groups]
        self.total = norm_of(squares, squares)
        """Of all gradients, those of parameters in no group included."""

    def clip(self, max_norms: Iterable[float | None]) -> None:
        """Scales each group to its own, if it has one; none where any gradient is not finite: the step skips then."""
        if math.isnan(self.total):
            return
        for places, norm, max_norm in zip(self.groups, self.norms, max_norms, strict=True):
            if max_norm is not None:
                clip(places, norm, max_norm)


def clip_groups(model: ShardedModel, groups: Sequence[Mapping[str, Any]]) -> GroupNorms | None:
    """Clips each parameter group that has a `max_grad_norm` of its own. None where none has; else the host waits."""
    max_norms = [group.get("max_grad_norm") for group in groups]
    if all(max_norm is None for max_norm in max_norms):
        return None
    if model.capturing:
        raise Error(
            "a captured step takes no group with a max_grad_norm of its own, since the host waits for its norm: clip "
            "all with max_grad_norm= of the optimizer"
        )
    places = [places_of("step", group["params"]) for group in groups]
    require_alike(model, places, max_norms)
    norms = GroupNorms(model, places)
    norms.clip(max_norms)
    return norms
