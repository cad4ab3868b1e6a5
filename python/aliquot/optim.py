"""AdamW over the shards, and clipping."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import nn

from aliquot import _core
from aliquot._core import Error
from aliquot.sharded import sharded
from aliquot.sharded_optimizer import Params, ShardedOptimizer, require_possible, require_reduced

NO_GROUP = -1


class AdamW(ShardedOptimizer):
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
        params: Params | None = None,
        max_grad_norm: float | None = None,
        max_skipped: int = 20,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(model, params, defaults, max_grad_norm, max_skipped)

    def _begin(self) -> None:
        for group in self.param_groups:
            require_possible(self, group)
        self.model.engine.set_groups(self._grouping())
        self.model.adamw = weakref.ref(self)

    def _extend(self, group: dict[str, Any]) -> None:
        require_possible(self, group)
        self._require_current()
        self.model.engine.regroup(self._grouping())

    def _require_current(self) -> None:
        if self.model.adamw is None or self.model.adamw() is not self:
            raise Error(
                "another AdamW was made for this model since, and has taken the place of this one's states. Give one "
                "AdamW all groups (params=[{...}, {...}]), or step some with aliquot.TorchOptimizer"
            )

    def _update(self) -> _core.StepResult:
        self._require_current()
        return self.model.engine.step(self.core_groups(), self.max_grad_norm, self.model.stream())

    def core_groups(self) -> list[_core.AdamWGroup]:
        """What the groups say now, as the core takes it."""
        return [_core_group(group) for group in self.param_groups]

    @property
    def grad_norm(self) -> torch.Tensor:
        """As of every optimizer. On a device asking for it does not wait."""
        if address := self.model.engine.device_state():
            return self.model.tensor_at(address, (), torch.float64).float()
        return super().grad_norm

    def _skips_in_a_row(self, result: _core.StepResult) -> int:
        """On a device the result may be of an earlier step than the last: the host does not wait."""
        return result.skipped_in_a_row if self.model.engine.device_state() else super()._skips_in_a_row(result)

    def _grouping(self) -> list[list[int]]:
        grouping = [[NO_GROUP] * len(unit.params) for unit in self.model.units]
        for number, group in enumerate(self.param_groups):
            for param in group["params"]:
                place = self._place_of(param)
                grouping[place.unit.index][place.index] = number
        return grouping


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


def _core_group(group: dict[str, Any]) -> _core.AdamWGroup:
    beta1, beta2 = group["betas"]
    return _core.AdamWGroup(
        float(group["lr"]), float(beta1), float(beta2), float(group["eps"]), float(group["weight_decay"])
    )
