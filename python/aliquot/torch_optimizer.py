"""Optimizers of `torch.optim`, and others made like them, over the shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from aliquot._core import InvalidArgument
from aliquot.piecewise import Piece, PiecewiseOptimizer
from aliquot.sharded_optimizer import Params, settings_of
from aliquot.states import Scalars, State
from aliquot.unit import Unit


class TorchOptimizer(PiecewiseOptimizer):
    """Any optimizer that updates each element by itself, as in `TorchOptimizer(model, torch.optim.SGD, lr=0.1)`.

    It steps flat pieces of the fp32 values that this rank holds, so its states are sharded as they are. `defaults`:
    what `optimizer` is made with; `param_groups` has them, and what is changed there counts from the next step on.
    An optimizer whose update depends on a parameter's shape or on other elements (Muon, Adafactor, LAMB, LBFGS) is
    refused. `params`, `max_grad_norm`, `max_skipped`: as for `AdamW`.
    """

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
        pieces = list(self._pieces_of(group, self.model.units))
        if self._made:
            self.inner.add_param_group(self._inner(group, pieces))
        self.pieces.append(pieces)

    def take_unit(self, unit: Unit) -> None:
        """The other optimizer steps the new pieces too."""
        held = [len(pieces) for pieces in self.pieces]
        super().take_unit(unit)
        for pieces, before, theirs in zip(self.pieces, held, self.inner.param_groups, strict=True):
            theirs["params"] += [piece.value for piece in pieces[before:]]

    def _inner(self, group: dict[str, Any], pieces: list[Piece]) -> dict[str, Any]:
        return group | {"params": [piece.value for piece in pieces]}

    @property
    def kind(self) -> str:
        """With the class of the other optimizer."""
        return f"{super().kind}({type(self.inner).__name__})"

    def states(self) -> Iterator[State]:
        """Tensors with a number for each element."""
        for piece, name, value in self._inner_states():
            if _is_elementwise(value, piece):
                yield State(name, piece.place, piece.begin, value)

    def scalars(self) -> Scalars:
        """All other states, such as `step`."""
        found: dict[str, dict[str, Any]] = {}
        for piece, name, value in self._inner_states():
            if not _is_elementwise(value, piece):
                found.setdefault(piece.place.name, {})[name] = value
        return found

    def prepare(self, states: Iterable[State], scalars: Scalars) -> Callable[[], None]:
        """See ShardedOptimizer."""
        tensors = self._by_piece(states)
        loaded: dict[torch.Tensor, dict[str, Any]] = {}
        for group, pieces in zip(self.param_groups, self.pieces, strict=True):
            beside = bool(group.get("capturable") or group.get("fused"))  # then scalars are where the parameters are
            for piece in pieces:
                single = {
                    name: value.to(piece.value.device if beside else "cpu", copy=True)
                    if isinstance(value, torch.Tensor)
                    else value
                    for name, value in scalars.get(piece.place.name, {}).items()
                }
                if state := single | tensors.get(piece, {}):
                    loaded[piece.value] = state

        def put() -> None:
            self.inner.state.clear()
            self.inner.state.update(loaded)

        return put

    def _inner_states(self) -> Iterator[tuple[Piece, str, Any]]:
        for pieces in self.pieces:
            for piece in pieces:
                for name, value in self.inner.state.get(piece.value, {}).items():
                    yield piece, name, value

    def step_pieces(self) -> None:
        """Lets the other optimizer step, with what the groups say here. What it keeps in its groups shows here too."""
        for mine, theirs in zip(self.param_groups, self.inner.param_groups, strict=True):
            theirs.update(settings_of(mine))
        self.inner.step()
        for mine, theirs in zip(self.param_groups, self.inner.param_groups, strict=True):
            mine.update(settings_of(theirs))


def _is_elementwise(value: Any, piece: Piece) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == piece.value.shape


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
