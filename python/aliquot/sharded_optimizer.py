"""What every optimizer of a sharded model does: when it may step, what it says of gradients, which groups it has."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, overload

import torch
from torch import nn

from aliquot import _core
from aliquot._core import Error, InvalidArgument
from aliquot.agreement import require_agreement
from aliquot.norms import GroupNorms, clip_groups, require_positive
from aliquot.passes import require_finished
from aliquot.places import Place
from aliquot.sharded import ShardedModel, sharded
from aliquot.states import QuantizedState, Scalars, State
from aliquot.tensors import TENSORS
from aliquot.unit import Unit

logger = logging.getLogger("aliquot")

Params = Iterable[nn.Parameter] | Iterable[dict[str, Any]]


class ShardedOptimizer(torch.optim.Optimizer):
    """Steps what this rank holds of a sharded model, from the gradients in the store."""

    def __init__(
        self,
        model: nn.Module,
        params: Params | None,
        defaults: dict[str, Any],
        max_grad_norm: float | None,
        max_skipped: int,
    ) -> None:
        require_positive(max_grad_norm)
        self.model = sharded(model)
        self.max_grad_norm = max_grad_norm
        self.max_skipped = max_skipped
        self.skipped_in_a_row = 0
        self._result: _core.StepResult | None = None
        self._group_norms: GroupNorms | None = None
        """Of the last step, where a group clips by its own."""
        self._made = False
        super().__init__(model.parameters() if params is None else params, defaults)
        self._require_agreement(self.param_groups)
        self._begin()
        self._made = True
        self.model.optimizers.add(self)

    @abstractmethod
    def _begin(self) -> None:
        """Makes the states, of `param_groups`."""

    @abstractmethod
    def _extend(self, group: dict[str, Any]) -> None:
        """Takes one more of `param_groups`."""

    def take_unit(self, unit: Unit) -> None:
        """The unit trains from here on."""

    @abstractmethod
    def _update(self) -> _core.StepResult:
        """Updates the parameters, or skips."""

    state_names: frozenset[str] | None = None
    """Of the states that each parameter has, if it has any; None: whatever a checkpoint says."""

    keeps_loaded = True
    """Whether tensors that `prepare` was given become its states."""

    @property
    def kind(self) -> str:
        """What a checkpoint calls it: only the same kind takes its states."""
        return type(self).__name__

    @abstractmethod
    def states(self) -> Iterator[State | QuantizedState]:
        """What this rank holds of the states that are tensors, where they are."""

    @abstractmethod
    def scalars(self) -> Scalars:
        """The states that are not. On a device the host waits."""

    @abstractmethod
    def prepare(self, states: Iterable[State], scalars: Scalars) -> Callable[[], None]:
        """Makes ready to have these states, of a checkpoint, and no others; what is returned puts them in place.

        Tensors are on the host, and, if it `keeps_loaded`, the optimizer's from here on; else only until they are in
        place. Those of a parameter cover what it steps of it.
        """

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates the parameters from the gradients in the store. Every rank calls it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.require_ready()
        require_unmoved(self.model)
        if self.model.scaler is not None:
            self.model.scaler.require_scaled(self)
        self._group_norms = clip_groups(self.model, self.param_groups)
        result = self._update()
        self.model.passes.end_step()
        self.model.note_change()
        if not self.model.capturing:
            self.note(result)
        return loss

    def require_settings(self, number: int, group: dict[str, Any]) -> None:
        """Refuses hyperparameters of `param_groups[number]` that can't be right. Every step asks it."""
        require_positive(group.get("max_grad_norm"))

    def require_ready(self) -> None:
        """Refuses to step where gradients or parameters are not where they belong, or by what can't be right.
        Collective while a save goes on.
        """  # fmt: skip
        self.model.world.background.poll(self.model.world.communicator)
        for number, group in enumerate(self.param_groups):
            self.require_settings(number, group)
        require_in_store(self.model)
        self.model.require_bound()

    @property
    def grad_norm(self) -> torch.Tensor:
        """Norm of the last step's gradients before clipping, a scalar; NaN if not finite."""
        return self._norm_of_step() if self._group_norms is None else self._tensor(self._group_norms.total)

    @property
    def grad_norms(self) -> torch.Tensor:
        """The same for each parameter group. Measured where any group has a `max_grad_norm` of its own."""
        if self._group_norms is None:
            raise Error(
                "norms of groups are measured where a group has a max_grad_norm of its own, as in "
                'params=[{"params": ..., "max_grad_norm": math.inf}, ...], which measures and does not clip; and by '
                "the first step"
            )
        return self._tensor(self._group_norms.norms)

    def _tensor(self, value: float | list[float]) -> torch.Tensor:
        return torch.tensor(value, device=self.model.world.device)

    def _norm_of_step(self) -> torch.Tensor:
        """As the core measured it, when all was clipped."""
        return torch.tensor(math.nan if self._result is None or self._result.skipped else self._result.grad_norm)

    def note(self, result: _core.StepResult) -> None:
        """Remembers how a step went; tells of a skipped one, and raises where too many were."""
        new = self._result is None or result.steps_skipped > self._result.steps_skipped
        self._result = result
        self.skipped_in_a_row = self._skips_in_a_row(result)
        if not (result.skipped and new):
            return
        logger.warning("step skipped: the gradient of %s is not finite", result.first_bad)
        if self.skipped_in_a_row >= self.max_skipped:
            raise Error(
                f"{self.skipped_in_a_row} steps in a row were skipped, last because the gradient of {result.first_bad} "
                "is not finite; the parameters are as before the first of them"
            )

    def _skips_in_a_row(self, result: _core.StepResult) -> int:
        return self.skipped_in_a_row + 1 if result.skipped else 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets all gradients; `set_to_none` is there for torch's signature."""
        drop_gradients(self.model)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Steps more of the model's parameters from here on. Every rank calls it, between steps."""
        require_positive(param_group.get("max_grad_norm"))
        super().add_param_group(param_group)
        if not self._made:
            return
        try:
            self._require_agreement(self.param_groups[-1:])
            self._extend(self.param_groups[-1])
        except BaseException:
            self.param_groups.pop()
            raise

    def state_dict(self) -> NoReturn:
        """An error: states are sharded."""
        raise Error(
            "this rank holds a part of the optimizer's states: save them with "
            "aliquot.save_checkpoint(directory, model, opt, step=)"
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> NoReturn:
        """An error: states are sharded."""
        raise Error("optimizer states are sharded: load them with aliquot.load_checkpoint(directory, model, opt)")

    def _require_agreement(self, groups: list[dict[str, Any]]) -> None:
        """Raises an error on every rank if they differ. Collective."""
        require_agreement(self.model.world, "make different optimizers", self._description(groups))

    def _description(self, groups: list[dict[str, Any]]) -> Iterator[str]:
        yield f"{type(self).__name__} with max_grad_norm {self.max_grad_norm}"
        for group in groups:
            settings = {key: value for key, value in group.items() if isinstance(value, int | float | tuple | str)}
            yield f"group of {settings}"
            yield from (f"parameter {self._place_of(param).name}" for param in group["params"])

    def places(self) -> Iterator[Place]:
        """Of all parameters that it steps."""
        return (self._place_of(param) for group in self.param_groups for param in group["params"])

    def _place_of(self, param: nn.Parameter) -> Place:
        place = param.__dict__.get("_aliquot")
        if not isinstance(place, Place) or place.model is not self.model:
            raise InvalidArgument(
                f"{type(self).__name__}: params= holds a parameter that is not one of the sharded model's"
            )
        return place


def settings_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a parameter group says beside its parameters."""
    return {key: value for key, value in group.items() if key != "params"}


def drop_gradients(model: ShardedModel) -> None:
    """Forgets those in the store and those that were not reduced."""
    model.engine.clear_gradients(model.stream())
    model.scale_moved = model.accumulating = False
    for unit in model.units:
        unit.drop_gradients()


def require_reduced(model: ShardedModel) -> None:
    """Refuses to use gradients that are not there yet."""
    require_in_store(model)
    require_unmoved(model)


def require_unmoved(model: ShardedModel) -> None:
    """Refuses gradients of a loss scale that has moved since."""
    if model.scale_moved:
        raise Error(
            "these gradients are of the loss scale before aliquot.GradScaler.update(): call zero_grad() between update "
            "and the next backward, and update once all optimizers have stepped"
        )


def require_in_store(model: ShardedModel) -> None:
    """Refuses gradients that were not reduced, or are not all there."""
    require_finished(model.passes)
    model.require_no_copies("step and clip")
    for unit in model.units:
        if TENSORS.gradients(unit.params):
            raise Error(
                f"gradients of unit '{unit.name}' were not reduced. They come from a backward under aliquot.no_sync "
                "(run the last one before the step outside of it), or from one that did not pass the forward of "
                "a module that aliquot.shard hooked (call the model itself, or name the modules you call in units=)"
            )
