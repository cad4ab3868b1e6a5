"""Optimizers of `torch.optim`, and others made like them, over the shards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from aliquot._core import InvalidArgument
from aliquot.piecewise import Piece, PiecewiseOptimizer
from aliquot.sharded_optimizer import Params


class TorchOptimizer(PiecewiseOptimizer):
    """Any optimizer that updates each element by itself, as in `TorchOptimizer(model, torch.optim.SGD, lr=0.1)`.

    It steps flat pieces of the fp32 values that this rank holds, so its states are sharded as they are. `defaults`:
    what `optimizer` is made with; `param_groups` has them, and what is changed there counts from the next step on.
    16-bit models need `Precision(master="fp32")`. An optimizer whose update depends on a parameter's shape or on other
    elements (Muon, Adafactor, LAMB, LBFGS) is refused. `params`, `max_grad_norm`, `max_skipped`: as for `AdamW`.
    """  # fmt: skip

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[..., torch.optim.Optimizer],
        *,
        params: Params | None = None,
        max_grad_norm: float | None = None,
        max_skipped: int = 20,
        **defaults: Any,
    ) -> None:
        _require_elementwise(optimizer, defaults)
        self._make = partial(optimizer, **defaults)
        all_defaults = self._make([nn.Parameter(torch.zeros(1))]).defaults
        super().__init__(model, params, all_defaults, max_grad_norm, max_skipped)

    def _begin(self) -> None:
        super()._begin()
        self.inner = self._make([self._inner(*both) for both in zip(self.param_groups, self.pieces, strict=True)])

    def _extend(self, group: dict[str, Any]) -> None:
        pieces = list(self._pieces_of(group))
        if self._made:
            self.inner.add_param_group(self._inner(group, pieces))
        self.pieces.append(pieces)

    def _inner(self, group: dict[str, Any], pieces: list[Piece]) -> dict[str, Any]:
        return group | {"params": [piece.value for piece in pieces]}

    def step_pieces(self) -> None:
        """Lets the other optimizer step, with what the groups say here. What it keeps in its groups shows here too."""
        for mine, theirs in zip(self.param_groups, self.inner.param_groups, strict=True):
            theirs.update(_settings(mine))
        self.inner.step()
        for mine, theirs in zip(self.param_groups, self.inner.param_groups, strict=True):
            mine.update(_settings(theirs))


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


LR = 0.1
"""Of the trial: large enough to see what is done with it."""


def _require_elementwise(optimizer: Callable[..., torch.optim.Optimizer], defaults: dict[str, Any]) -> None:
    """Refuses one that steps a matrix otherwise than flat pieces of it. Found out by trying."""
    name = getattr(optimizer, "__name__", repr(optimizer))
    remedy = "a rank holds flat pieces of parameters. Take one that updates each element by itself, or aliquot.AdamW"
    values = torch.Generator("cpu").manual_seed(0)
    matrix, *gradients = torch.randn(4, 6, 8, generator=values, device="cpu")
    try:
        whole = _stepped(optimizer, defaults, [matrix.clone()], [[gradient] for gradient in gradients])
        pieces = _stepped(optimizer, defaults, _cut(matrix), [_cut(gradient) for gradient in gradients])
    except Exception as error:
        raise InvalidArgument(f"TorchOptimizer can't step with {name}, which said: {error}; {remedy}") from error
    moved = (whole - matrix.flatten()).abs().max().item()
    if not torch.allclose(whole, pieces, rtol=0, atol=1e-4 * moved):
        raise InvalidArgument(f"TorchOptimizer: {name} steps a matrix otherwise than flat pieces of it, but {remedy}")


def _cut(matrix: torch.Tensor) -> list[torch.Tensor]:
    flat = matrix.flatten()
    return [flat[:20].clone(), flat[20:].clone()]


def _stepped(
    optimizer: Callable[..., torch.optim.Optimizer], defaults: dict[str, Any], values: list[torch.Tensor],
    gradients: list[list[torch.Tensor]],
) -> torch.Tensor:  # fmt: skip
    params = [nn.Parameter(value) for value in values]
    made = optimizer(params, **defaults)
    for group in made.param_groups:
        if "lr" in group:
            group["lr"] = LR
    for of_step in gradients:
        for param, gradient in zip(params, of_step, strict=True):
            param.grad = gradient.clone()
        made.step()
    return torch.cat([param.detach().flatten() for param in params])
