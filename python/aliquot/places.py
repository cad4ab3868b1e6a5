"""Where one parameter of a sharded model is, and what may be done to it between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from aliquot._core import Error, InvalidArgument
from aliquot.guard import StoredGradient, refuse
from aliquot.tensors import TENSORS
from aliquot.words import in_words

if TYPE_CHECKING:
    from aliquot.sharded import ShardedModel
    from aliquot.unit import Unit


@dataclass(eq=False)
class Place:
    """Where one parameter is: which model, unit and index."""

    model: ShardedModel
    unit: Unit
    index: int
    name: str
    shape: torch.Size
    holder: nn.Module
    """The module that has the parameter as an attribute."""

    @property
    def rank(self) -> int:
        """Of this process."""
        return self.model.world.rank

    @property
    def readable(self) -> bool:
        """Whether this rank holds all values between steps."""
        return self.model.stage < 3

    def refuse_values(self, func: Callable[..., Any]) -> NoReturn:
        """The error for using values that are sharded."""
        remedy = (
            f"its values are sharded over {self.model.shards.world_size} ranks and not gathered here. Read them under "
            "aliquot.gathered(model), write them under aliquot.gathered(model, write=True), save with "
            "aliquot.full_state_dict(model), load with aliquot.load_full_state_dict(model, state_dict), move or cast "
            f"the model before aliquot.shard. If the model's own forward uses it outside the module of unit "
            f"'{self.unit.name}', name the units with aliquot.shard(model, units=[...]) so that both lie in one"
        )
        refuse(self, func, "the parameter", remedy)

    def refuse_gradient(self, func: Callable[..., Any]) -> NoReturn:
        """The error for using a gradient that is sharded."""
        remedy = (
            "it is reduced into the store, sharded over the ranks. Clip with aliquot.clip_grad_norm_(model, max_norm) "
            "or aliquot.AdamW(max_grad_norm=), step with aliquot.AdamW, forget it with zero_grad()"
        )
        refuse(self, func, "the gradient of", remedy)

    def refuse_rebinding(self, func: Callable[..., Any]) -> NoReturn:
        """The error for giving the parameter other memory than that of the store."""
        remedy = (
            "its values lie in the store and not in memory of its own. Write them in place, under "
            "aliquot.gathered(model, write=True), or with aliquot.load_full_state_dict(model, state_dict); move or "
            "cast the model before aliquot.shard"
        )
        refuse(self, func, "the parameter", remedy)

    def unfreeze(self) -> None:
        """What `param.requires_grad_(True)` does first: where it was frozen by `aliquot.shard`, its unit trains from
        here on. Every rank does it, between steps.
        """  # fmt: skip
        if not self.unit.trainable:
            self.model.unfreeze(self.unit)

    def refuse_unfrozen(self) -> NoReturn:
        """The error for a gradient for which there is no place."""
        raise Error(
            f"rank {self.rank}: {self.name} got a gradient, but was frozen when the model was sharded, so there is no "
            "place for it. Call requires_grad_(True) on every rank, between steps and not within aliquot.gathered"
        )

    def require_bound(self) -> None:
        """Refuses to go on where another parameter was put in this one's place."""
        if self.holder._parameters.get(self.name.rpartition(".")[2]) is not self.unit.params[self.index]:
            raise Error(
                f"rank {self.rank}: {self.name} was replaced by another parameter after aliquot.shard; the store still "
                "has the old one. Write values with aliquot.load_full_state_dict(model, state_dict) or under "
                "aliquot.gathered(model, write=True)"
            )

    def gradient(self) -> torch.Tensor | None:
        """What `param.grad` is outside forward and backward: an unreduced gradient, or the one in the store.

        At stages 0 and 1 the tensor is the store's own memory, which the next backward overwrites.
        """
        if unreduced := TENSORS.gradients((self.unit.params[self.index],)):
            return unreduced[0]
        if not self.unit.trainable or not self.model.engine.has_gradient(self.unit.index, self.index):
            return None
        if self.model.stage >= 2:
            return StoredGradient.of(self)
        return self.model.view_as(self.model.engine.whole_gradient(self.unit.index), self, self.gradient_dtype)

    @property
    def gradient_dtype(self) -> torch.dtype:
        """Of the gradient in the store, as one of torch's."""
        return self.unit.dtype if in_words(self.unit.dtype) else self.model.gradient_dtype(self.unit)

    def set_gradient(self, value: torch.Tensor | None) -> None:
        """What `param.grad = value` does: None drops the gradient in the store."""
        if value is not None:
            raise Error(
                f"gradients of a sharded model are in the store; param.grad of {self.name} can only be set to None. "
                "aliquot.clip_grad_norm_(model, max_norm) scales them, aliquot.AdamW steps with them"
            )
        if self.unit.trainable:
            self.model.engine.clear_gradient(self.unit.index, self.index, self.model.stream())
            TENSORS.drop_gradients((self.unit.params[self.index],))

    def description(self) -> str:
        """What printing the parameter shows."""
        held = "whole on every rank" if self.readable else f"sharded over {self.model.shards.world_size} ranks"
        return f"<parameter '{self.name}' of shape {tuple(self.shape)}, {held}; aliquot.gathered(model) has its values>"


def places_of(call: str, params: Iterable[nn.Parameter]) -> list[Place]:
    """Where the parameters are, each once; of one sharded model."""
    found = [param.__dict__.get("_aliquot") for param in params]
    places = list(dict.fromkeys(place for place in found if isinstance(place, Place)))
    if not all(isinstance(place, Place) for place in found):
        raise InvalidArgument(f"{call} takes a sharded model, or parameters of one")
    if any(place.model is not places[0].model for place in places):
        raise InvalidArgument(f"{call} takes parameters of one model at a time")
    return places
