"""A sharded model: its units, where each parameter lies, and the engine that holds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.utils.dlpack
from torch import nn

from aliquot import _core
from aliquot._core import Error, InvalidArgument
from aliquot.guard import ShardedParameter, StoredGradient, refuse
from aliquot.units import Group, Plan
from aliquot.world import World

if TYPE_CHECKING:
    from aliquot.passes import Passes


@dataclass(eq=False)
class Place:
    """Where one parameter is: which model, unit and index."""

    model: ShardedModel
    unit: Unit
    index: int
    name: str
    shape: torch.Size

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
            f"its values are sharded over {self.model.world.world_size} ranks and not gathered here. Read them under "
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

    def gradient(self) -> torch.Tensor | None:
        """What `param.grad` is outside forward and backward."""
        if not self.unit.trainable or not self.model.engine.has_gradient(self.unit.index, self.index):
            return None
        if self.model.stage >= 2:
            return StoredGradient.of(self)
        return self.model.view(self.model.engine.whole_gradient(self.unit.index), self)

    def set_gradient(self, value: torch.Tensor | None) -> None:
        """What `param.grad = value` does: None drops the gradient in the store."""
        if value is not None:
            raise Error(
                f"gradients of a sharded model are in the store; param.grad of {self.name} can only be set to None"
            )
        if self.unit.trainable:
            self.model.engine.clear_gradient(self.unit.index, self.index)
            drop_autograd_grads([self.unit.params[self.index]])

    def description(self) -> str:
        """What printing the parameter shows."""
        held = "whole on every rank" if self.readable else f"sharded over {self.model.world.world_size} ranks"
        return f"<parameter '{self.name}' of shape {tuple(self.shape)}, {held}; aliquot.gathered(model) has its values>"


_GRAD: Any = torch.Tensor.grad
"""The attribute of plain tensors, under whatever a subclass defines."""


def autograd_grads(params: list[nn.Parameter]) -> list[torch.Tensor | None]:
    """The gradients that autograd left on the tensors themselves, whatever class the parameters have now."""
    with torch._C.DisableTorchFunctionSubclass():
        return [_GRAD.__get__(param) for param in params]


def drop_autograd_grads(params: list[nn.Parameter]) -> None:
    """Frees those gradients."""
    with torch._C.DisableTorchFunctionSubclass():
        for param in params:
            _GRAD.__set__(param, None)


@dataclass(eq=False)
class Unit:
    """Parameters that are gathered together."""

    index: int
    name: str
    params: list[nn.Parameter]
    trainable: bool
    places: list[Place] = field(default_factory=list)
    address: int = 0
    """Where the full unit lies, as the parameters' tensors see it."""
    private: bool = False
    """The parameters are private copies for now (aliquot.gathered) and not where the unit lies."""
    open_count: int = 0
    expected: int = 0
    """Calls of forward whose backward has not come yet."""

    def open(self) -> None:
        """Makes the parameters ordinary ones, while they are gathered."""
        self.open_count += 1
        if self.open_count == 1:
            for param in self.params:
                param.__class__ = nn.Parameter

    def close(self) -> None:
        """Undoes `open`; the last one puts the guard back."""
        self.open_count = max(0, self.open_count - 1)
        if self.open_count == 0:
            for param in self.params:
                param.__class__ = ShardedParameter


class ShardedModel:
    """What `aliquot.shard` made of a module. Found again by `sharded(module)`."""

    def __init__(self, root: nn.Module, plan: Plan, world: World, engine: _core.Engine, stage: int) -> None:
        self.root = root
        self.world = world
        self.engine = engine
        self.stage = stage
        self.units = [Unit(i, group.name, group.params, group.trainable) for i, group in enumerate(plan.groups)]
        of_group = dict(zip(plan.groups, self.units, strict=True))
        self.needs = {module: [of_group[group] for group in groups] for module, groups in plan.needs.items()}
        self.passes: Passes
        """Set when the hooks are installed."""
        self.unreduced = False
        """Gradients of a backward under no_sync wait in `param.grad`."""
        for group, unit in of_group.items():
            self._place(group, unit)

    def _place(self, group: Group, unit: Unit) -> None:
        for index, (name, param) in enumerate(zip(group.names, group.params, strict=True)):
            place = Place(self, unit, index, name, param.shape)
            unit.places.append(place)
            param.grad = None
            param.data = torch.full((), torch.nan).expand(param.shape)
            param.__dict__["_aliquot"] = place
            param.__class__ = ShardedParameter

    def view(self, address: int, place: Place) -> torch.Tensor:
        """The tensor of the parameter at `place` in the flat unit at `address`."""
        if place.shape.numel() == 0:
            return torch.empty(place.shape)
        start = address + 4 * self.engine.offset(place.unit.index, place.index)
        return torch.utils.dlpack.from_dlpack(_core.view(start, list(place.shape), self.engine))

    def land(self, unit: Unit, address: int) -> None:
        """Points the unit's parameters to where it was gathered. Does nothing where they point there already."""
        if unit.private or address in (0, unit.address):
            return
        unit.address = address
        unit.open()
        for place, param in zip(unit.places, unit.params, strict=True):
            param.data = self.view(address, place)
        unit.close()


def remember(model: ShardedModel) -> None:
    """Lets `sharded` find the model by its root module."""
    model.root.__dict__["_aliquot"] = model


def sharded(module: nn.Module) -> ShardedModel:
    """The sharded model whose root is `module`."""
    found = module.__dict__.get("_aliquot")
    if not isinstance(found, ShardedModel):
        raise InvalidArgument(f"this {type(module).__name__} is not sharded: call aliquot.shard(model) on it first")
    return found
