"""LAMB over the shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from aliquot.fused import require_possible
from aliquot.piecewise import Piece, PiecewiseOptimizer
from aliquot.places import Place
from aliquot.sharded_optimizer import Params
from aliquot.states import Scalars, State, steps_of


class LAMB(PiecewiseOptimizer):
    """LAMB (You et al., 2020, https://arxiv.org/abs/1904.00962, algorithm 2, with phi the identity).

    An AdamW whose update of each parameter is as long as the parameter times `lr`: the ratio of their norms is taken
    over the whole parameter, of which ranks hold parts. It is 1 where one of them is zero. `params`, `max_grad_norm`,
    `max_skipped`: as for `AdamW`.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        *,
        params: Params | None = None,
        max_grad_norm: float | None = None,
        max_skipped: int = 20,
    ) -> None:
        self._moments: dict[Piece, _Moments] = {}
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(model, params, defaults, max_grad_norm, max_skipped)

    def _extend(self, group: dict[str, Any]) -> None:
        require_possible("LAMB", group)
        super()._extend(group)

    state_names = frozenset(("exp_avg", "exp_avg_sq"))

    def states(self) -> Iterator[State]:
        """The moments."""
        for piece, moments in self._moments.items():
            yield State("exp_avg", piece.place, piece.begin, moments.exp_avg)
            yield State("exp_avg_sq", piece.place, piece.begin, moments.exp_avg_sq)

    def scalars(self) -> Scalars:
        """How often each parameter was stepped."""
        return {piece.place.name: {"steps": moments.steps} for piece, moments in self._moments.items()}

    def prepare(self, states: Iterable[State], scalars: Scalars) -> Callable[[], None]:
        """See ShardedOptimizer."""
        loaded = {
            piece: _Moments(steps_of(scalars, piece.place), found["exp_avg"], found["exp_avg_sq"])
            for piece, found in self._by_piece(states).items()
        }
        return lambda: setattr(self, "_moments", loaded)

    def step_pieces(self) -> None:
        """One update."""
        updates = {}
        for group, pieces in zip(self.param_groups, self.pieces, strict=True):
            for piece in pieces:
                if piece.value.grad is not None:
                    moments = self._moments.setdefault(piece, _Moments.zero(piece.value))
                    updates[piece] = group["lr"], moments.direction(piece.value, group)
        values = self._norms((piece, piece.value) for piece in updates)
        directions = self._norms((piece, direction) for piece, (_, direction) in updates.items())
        for piece, (lr, direction) in updates.items():
            value, length = values[piece.place], directions[piece.place]
            ratio = torch.where((value > 0) & (length > 0), value / length, 1.0)
            piece.value.sub_(lr * ratio * direction)

    def _norms(self, tensors: Iterable[tuple[Piece, torch.Tensor]]) -> dict[Place, torch.Tensor]:
        """Of whole parameters. Every rank asks for all of them, whatever it holds."""
        places = [place for unit in self.model.units for place in unit.places]
        index = {place: i for i, place in enumerate(places)}
        sums = torch.zeros(len(places), device=self.model.world.device)
        for piece, tensor in tensors:
            sums[index[piece.place]] += tensor.square().sum()
        if self.model.stage > 0:
            self.model.sum_over_ranks("norms of parameters", sums)
        return dict(zip(places, sums.sqrt(), strict=True))


@dataclass
class _Moments:
    """Of one piece."""

    steps: int
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor

    @staticmethod
    def zero(value: torch.Tensor) -> _Moments:
        """Before the first step."""
        return _Moments(0, torch.zeros_like(value), torch.zeros_like(value))

    def direction(self, value: nn.Parameter, group: dict[str, Any]) -> torch.Tensor:
        """Where the update goes, before it has its length."""
        assert value.grad is not None
        beta1, beta2 = group["betas"]
        self.steps += 1
        self.exp_avg.lerp_(value.grad, 1 - beta1)
        self.exp_avg_sq.mul_(beta2).addcmul_(value.grad, value.grad, value=1 - beta2)
        root = self.exp_avg_sq.sqrt() / math.sqrt(1 - beta2**self.steps)
        direction: torch.Tensor = self.exp_avg / (1 - beta1**self.steps) / (root + group["eps"])
        return direction.add(value, alpha=group["weight_decay"])
