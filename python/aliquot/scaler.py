"""Scaling the loss, so that small gradients survive fp16."""

from __future__ import annotations

import math
from typing import Any, NoReturn, TypeVar

import torch

from aliquot._core import Error, InvalidArgument, LossScale, ScaleRule
from aliquot.sharded_optimizer import ShardedOptimizer
from aliquot.tensors import map_tensors

T = TypeVar("T")

STEADY = 1.0
"""The factor that leaves the scale as it is."""


class GradScaler:
    """Multiplies losses, as `torch.amp.GradScaler` does, and moves the scale by the same rule.

    `optimizer.step()` takes the scale out of the gradients again, within its own pass, and skips on every rank if a
    gradient overflowed on any. `update()` then multiplies the scale by `backoff_factor`; after `growth_interval` steps
    in a row without one it multiplies it by `growth_factor`. `growth_interval=None`: the scale stays as it is.

        scaler = aliquot.GradScaler(opt)
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()

    `opt.grad_norm`, `max_grad_norm=` and `aliquot.clip_grad_norm_` are of unscaled gradients, so `unscale_` has nothing
    to do; `param.grad` is scaled. On a GPU the scale is worked out there, and the host does not wait but in `get_scale`
    and `state_dict`.
    """

    def __init__(
        self,
        optimizer: ShardedOptimizer,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int | None = 2000,
        enabled: bool = True,
    ) -> None:
        if not isinstance(optimizer, ShardedOptimizer):
            raise InvalidArgument(f"GradScaler takes an optimizer of Aliquot's, not a {type(optimizer).__name__}")
        if growth_interval is None:
            growth_factor = backoff_factor = STEADY
            growth_interval = 1
        elif not (growth_factor > 1 and 0 < backoff_factor < 1 and growth_interval > 0):
            raise InvalidArgument(
                f"GradScaler: growth_factor is {growth_factor}, backoff_factor {backoff_factor}, growth_interval "
                f"{growth_interval}; they are above 1, between 0 and 1, and at least 1, or the last is None"
            )
        self.model = optimizer.model
        self.growth_factor = growth_factor
        self.backoff_factor = backoff_factor
        self.growth_interval = growth_interval
        self.enabled = enabled
        self._scaled = False
        """Whether a loss was scaled since the last update."""
        self._stepped: set[ShardedOptimizer] = set()
        """Who has stepped since the last update."""
        self._set(LossScale(init_scale if enabled else 1.0))
        self.model.scaler = self if enabled else None

    def scale(self, outputs: T) -> T:
        """The loss, or tensors in tuples, lists and dicts, times the scale."""
        if not self.enabled:
            return outputs
        scale = self._scale_tensor()
        found: list[torch.Tensor] = []

        def scaled(tensor: torch.Tensor) -> torch.Tensor:
            found.append(tensor)
            return tensor * scale

        result: T = map_tensors(scaled, outputs)
        if not found:
            raise InvalidArgument(
                f"GradScaler.scale takes a tensor, or tuples, lists and dicts of them, and found none in a "
                f"{type(outputs).__name__}"
            )
        self._scaled = True
        return result

    def step(self, optimizer: ShardedOptimizer) -> None:
        """`optimizer.step()`, which does the same when it is called itself. Any optimizer of the model."""
        if getattr(optimizer, "model", None) is not self.model:
            raise InvalidArgument("GradScaler.step: this is no optimizer of the model that the scaler was made for")
        optimizer.step()

    def require_scaled(self, optimizer: ShardedOptimizer) -> None:
        """Refuses a step of gradients that do not have the scale."""
        if not self._scaled:
            raise Error(
                "step: the loss was not scaled, but its gradients would be unscaled. Call "
                "scaler.scale(loss).backward() before each step, with the model's aliquot.GradScaler; or make one with "
                "enabled=False"
            )
        if optimizer in self._stepped:
            raise Error("step: aliquot.GradScaler.update() was not called since the last step")
        self._stepped.add(optimizer)

    def note_scaled(self) -> None:
        """The gradients in the store have the scale: they come from a checkpoint."""
        self._scaled = True

    def require_updated(self) -> None:
        """Refuses to be saved between a step and the update after it."""
        if self._stepped:
            raise Error("aliquot.GradScaler.update() was not called since the last step: save behind it")

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        """Moves the scale on after a step, or sets it."""
        if not self.enabled:
            return
        if new_scale is not None:
            self._set(LossScale(float(new_scale), self._state().growth_tracker))
        elif self._stepped:
            self.model.engine.update_loss_scale(self._rule(), self.model.stream())
        else:
            raise Error("aliquot.GradScaler.update: there was no step since the last update")
        self._scaled = False
        self._stepped.clear()
        moves = new_scale is not None or self.growth_factor != STEADY
        self.model.scale_moved = moves and self.model.holds_gradients()

    def give_up(self) -> None:
        """No loss was scaled since the last update, and nobody has stepped: the pass did not finish."""
        self._scaled = False
        self._stepped.clear()

    @property
    def rule(self) -> tuple[float, float, int]:
        """By which the scale moves: how it grows, how it backs off, after how many steps it grows."""
        return self.growth_factor, self.backoff_factor, self.growth_interval

    def unscale_(self, optimizer: torch.optim.Optimizer) -> NoReturn:
        """An error: gradients are unscaled within the step."""
        raise Error(
            "unscale_ is not needed: leave it out. aliquot.clip_grad_norm_, max_grad_norm= and opt.grad_norm are of "
            "unscaled gradients already, and opt.step() unscales them in the same pass"
        )

    def is_enabled(self) -> bool:
        """False if nothing is scaled."""
        return self.enabled

    def get_scale(self) -> float:
        """The scale. On a GPU the host waits for it."""
        return self._state().scale if self.enabled else 1.0

    def state_dict(self) -> dict[str, Any]:
        """As of `torch.amp.GradScaler`, which can load it."""
        if not self.enabled:
            return {}
        state = self._state()
        return {
            "scale": state.scale,
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "_growth_tracker": state.growth_tracker,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a `state_dict` of this class or of `torch.amp.GradScaler`."""
        if not self.enabled:
            return
        if not state_dict:
            raise InvalidArgument("GradScaler.load_state_dict: the state is empty, as that of a disabled scaler is")
        self.growth_factor = state_dict["growth_factor"]
        self.backoff_factor = state_dict["backoff_factor"]
        self.growth_interval = state_dict["growth_interval"]
        self._set(LossScale(state_dict["scale"], state_dict["_growth_tracker"]))
        self._scaled = False
        self._stepped.clear()

    def _rule(self) -> ScaleRule:
        return ScaleRule(*self.rule)

    def _set(self, state: LossScale) -> None:
        if not (0 < state.scale < math.inf):
            raise InvalidArgument(f"GradScaler: the scale is {state.scale}; it is positive and finite")
        self.model.engine.set_loss_scale(state, self.model.stream())

    def _state(self) -> LossScale:
        return self.model.engine.loss_scale(self.model.stream())

    def _scale_tensor(self) -> torch.Tensor:
        """A copy, since a graph may keep it longer than the scale stays."""
        if address := self.model.engine.device_loss_scale():
            return self.model.tensor_at(address, (), torch.float32).clone()
        return torch.tensor(self.get_scale(), device=self.model.world.device)
