"""Optimizers that step the shards in the store."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, overload

import torch
from torch import nn

from aliquot import _core
from aliquot._core import Error, InvalidArgument
from aliquot.passes import require_finished
from aliquot.places import Place
from aliquot.sharded import ShardedModel, sharded
from aliquot.tensors import TENSORS

logger = logging.getLogger("aliquot")

NO_GROUP = -1


class AdamW(torch.optim.Optimizer):
    """AdamW (https://arxiv.org/abs/1711.05101), as `torch.optim.AdamW` defines it, over a sharded model.

    `params`: the model's parameters or groups of them, as in torch; all by default. Groups may differ in every
    hyperparameter. `max_grad_norm`: clips by the global norm within the step. `max_skipped`: an error after so
    many steps in a row whose gradients were not finite; each such step changes nothing, on any rank.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]] | None = None,
        max_grad_norm: float | None = None,
        max_skipped: int = 20,
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise InvalidArgument(f"max_grad_norm is {max_grad_norm}; it is positive, or None")
        self.model = sharded(model)
        self.max_grad_norm = max_grad_norm
        self.max_skipped = max_skipped
        self.skipped_in_a_row = 0
        self._result: _core.StepResult | None = None
        self._made = False
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(model.parameters() if params is None else params, defaults)
        for group in self.param_groups:
            _check(group)
        self.model.engine.set_groups(_grouping(self.model, self.param_groups))
        self._made = True

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
        require_reduced(self.model)
        self.model.require_bound()
        groups = [_core_group(group) for group in self.param_groups]
        result = self.model.engine.step(groups, self.max_grad_norm, self.model.stream())
        self.model.passes.end_step()
        self.model.note_change()
        self._note(result)
        return loss

    @property
    def grad_norm(self) -> torch.Tensor:
        """Norm of the last step's gradients before clipping, a scalar on the model's device; NaN if not finite.

        A copy; asking for it does not wait.
        """
        if address := self.model.engine.device_state():
            return self.model.tensor_at(address, (), torch.float64).float()
        return torch.tensor(math.nan if self._result is None or self._result.skipped else self._result.grad_norm)

    def _note(self, result: _core.StepResult) -> None:
        """On a device the result may be of an earlier step than the last: the host does not wait."""
        new = self._result is None or result.steps_skipped > self._result.steps_skipped
        self._result = result
        self.skipped_in_a_row = result.skipped_in_a_row
        if not (result.skipped and new):
            return
        logger.warning("step skipped: the gradient of %s is not finite", result.first_bad)
        if self.skipped_in_a_row >= self.max_skipped:
            raise Error(
                f"{self.skipped_in_a_row} steps in a row were skipped, last because the gradient of {result.first_bad} "
                "is not finite; the parameters are as before the first of them"
            )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets all gradients; `set_to_none` is there for torch's signature."""
        self.model.engine.clear_gradients(self.model.stream())
        for unit in self.model.units:
            unit.drop_gradients()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only while the optimizer is made: its states are laid out then."""
        if self._made:
            raise InvalidArgument("add_param_group: give all groups when the optimizer is made, by params=")
        super().add_param_group(param_group)

    def state_dict(self) -> NoReturn:
        """An error: states are sharded."""
        raise Error("this rank holds a part of the optimizer's states, and this version can't save them")

    def load_state_dict(self, state_dict: dict[str, Any]) -> NoReturn:
        """An error: states are sharded."""
        raise Error("optimizer states are sharded, and this version can't load them")


def clip_grad_norm_(model: nn.Module, max_norm: float) -> torch.Tensor:
    """Scales the gradients in the store so that their global norm is at most `max_norm`; returns the norm before.

    Every rank calls it, between backward and step. `AdamW(max_grad_norm=)` does the same without a pass of its own.
    Gradients that are not finite are left alone, and the norm is NaN: the step will skip them.
    """
    state = sharded(model)
    require_reduced(state)
    report = state.engine.gradient_report(state.stream())
    if report.non_finite:
        return torch.tensor(math.nan)
    factor = max_norm / (report.norm + 1e-6)
    if factor < 1:
        state.engine.scale_gradients(factor, state.stream())
    return torch.tensor(report.norm)


def require_reduced(model: ShardedModel) -> None:
    """Refuses to use gradients that are not there yet."""
    require_finished(model.passes)
    for unit in model.units:
        if unit.private:
            raise Error("within aliquot.gathered the parameters are private copies: step and clip outside of it")
        if TENSORS.gradients(unit.params):
            raise Error(
                f"gradients of unit '{unit.name}' were not reduced. They come from a backward under aliquot.no_sync "
                "(run the last one before the step outside of it), or from one that did not pass the forward of "
                "a module that aliquot.shard hooked (call the model itself, or name the modules you call in units=)"
            )


def _core_group(group: dict[str, Any]) -> _core.AdamWGroup:
    beta1, beta2 = group["betas"]
    return _core.AdamWGroup(
        float(group["lr"]), float(beta1), float(beta2), float(group["eps"]), float(group["weight_decay"])
    )


def _check(group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    fine = {
        "lr": float(group["lr"]) >= 0,
        "betas": 0 <= beta1 < 1 and 0 <= beta2 < 1,
        "eps": group["eps"] >= 0,
        "weight_decay": group["weight_decay"] >= 0,
    }
    for name, good in fine.items():
        if not good:
            raise InvalidArgument(f"AdamW: {name} is {group[name]}")


def _grouping(model: ShardedModel, groups: list[dict[str, Any]]) -> list[list[int]]:
    grouping = [[NO_GROUP] * len(unit.params) for unit in model.units]
    for number, group in enumerate(groups):
        for param in group["params"]:
            place = param.__dict__.get("_aliquot")
            if not isinstance(place, Place) or place.model is not model:
                raise InvalidArgument("AdamW: params= holds a parameter that is not one of the sharded model's")
            grouping[place.unit.index][place.index] = number
    return grouping
