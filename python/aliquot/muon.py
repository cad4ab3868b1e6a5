"""Muon over the shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aliquot._core import InvalidArgument
from aliquot.piecewise import Piece, PiecewiseOptimizer
from aliquot.places import Place
from aliquot.sharded_optimizer import Params
from aliquot.states import Scalars, State
from aliquot.unit import Unit

Coefficients = tuple[float, float, float]


class Muon(PiecewiseOptimizer):
    """Muon (Jordan, 2024, https://kellerjordan.github.io/posts/muon/) as `torch.optim.Muon` defines it.

    Its update of a matrix is the momentum made orthogonal, for which one rank needs the whole: ranks gather a unit's
    momentum in bf16, each orthogonalizes some of the matrices, and sends the result to the others. `params`: matrices
    only; step the rest with another optimizer, such as `TorchOptimizer(model, torch.optim.AdamW, params=rest)`.
    `max_grad_norm`, `max_skipped`: as for `AdamW`.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
        *,
        params: Params,
        max_grad_norm: float | None = None,
        max_skipped: int = 20,
    ) -> None:
        if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
            raise InvalidArgument(f"Muon: adjust_lr_fn is {adjust_lr_fn!r}")
        self._momentum: dict[Piece, Tensor] = {}
        self._owners: dict[Place, int] = {}
        self._settings: dict[Place, dict[str, Any]] = {}
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov,
            "ns_coefficients": ns_coefficients, "eps": eps, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn,
        }  # fmt: skip
        super().__init__(model, params, defaults, max_grad_norm, max_skipped)

    def _extend(self, group: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay", "momentum"):
            if not group[name] >= 0:
                raise InvalidArgument(f"Muon: {name} is {group[name]}")
        for place in map(self._place_of, group["params"]):
            if len(place.shape) != 2 or place.unit.dtype.is_complex:
                what = f"its shape is {tuple(place.shape)}, its dtype {place.unit.dtype}"
                raise InvalidArgument(f"Muon: {place.name} is no matrix of real numbers, {what}")
        self._settings |= {self._place_of(param): group for param in group["params"]}
        super()._extend(group)
        self._owners = self._assigned()

    def _assigned(self) -> dict[Place, int]:
        """Who orthogonalizes which matrix: of a unit's the most costly first, each to the rank with the least to do."""
        load = [0] * self.model.shards.world_size
        owners: dict[Place, int] = {}
        for unit in self.model.units:
            matrices = self._settings.keys() & set(unit.places)
            for place in sorted(matrices, key=lambda place: (-_cost(place), place.index)):
                owners[place] = load.index(min(load))
                load[owners[place]] += _cost(place)
        return owners

    state_names = frozenset(("momentum",))

    def states(self) -> Iterator[State]:
        """The momentum."""
        for piece, momentum in self._momentum.items():
            yield State("momentum", piece.place, piece.begin, momentum)

    def scalars(self) -> Scalars:
        """None."""
        return {}

    def prepare(self, states: Iterable[State], scalars: Scalars) -> Callable[[], None]:
        """See ShardedOptimizer."""
        loaded = {piece: found["momentum"] for piece, found in self._by_piece(states).items()}
        return lambda: setattr(self, "_momentum", loaded)

    def step_pieces(self) -> None:
        """One update."""
        stepped = [piece for pieces in self.pieces for piece in pieces if piece.value.grad is not None]
        for unit in self.model.units:
            matrices = [place for place in unit.places if place in self._owners]
            pieces = [piece for piece in stepped if piece.place.unit is unit]
            if matrices:
                whole = self._whole(unit, {piece: self._direction(piece) for piece in pieces})
                orthogonal = self._orthogonalized(matrices, whole)
                for piece in pieces:
                    _apply(piece, orthogonal[piece.place], self._settings[piece.place])

    def _direction(self, piece: Piece) -> Tensor:
        """The momentum, before it is made orthogonal."""
        group, gradient = self._settings[piece.place], piece.value.grad
        assert gradient is not None
        beta = group["momentum"]
        momentum = self._momentum.setdefault(piece, torch.zeros_like(gradient))
        momentum.lerp_(gradient, 1 - beta)
        return gradient.lerp(momentum, beta) if group["nesterov"] else momentum

    def _whole(self, unit: Unit, directions: dict[Piece, Tensor]) -> Tensor:
        """The flat unit of directions, in bf16, from what each rank has of it."""
        engine, shards = self.model.engine, self.model.shards
        sharded = self.model.stage > 0
        numel = engine.numel(unit.index) // (shards.world_size if sharded else 1)
        held = torch.zeros(numel, dtype=torch.bfloat16, device=self.model.world.device)
        first = shards.rank * numel if sharded else 0
        for piece, direction in directions.items():
            begin = engine.offset(unit.index, piece.place.index) + piece.begin - first
            held[begin : begin + direction.numel()] = direction
        return self.model.gather_from_group(f"momentum of {unit.name}", held) if sharded else held

    def _orthogonalized(self, matrices: list[Place], whole: Tensor) -> dict[Place, Tensor]:
        """Flat. All ranks work at once, and then tell one another."""
        results: dict[Place, Tensor] = {}
        for place in matrices:
            begin = self.model.engine.offset(place.unit.index, place.index)
            results[place] = whole[begin : begin + place.shape.numel()]
            if self._owners[place] == self.model.shards.rank:
                group = self._settings[place]
                matrix = results[place].view(place.shape)
                orthogonal = orthogonalize(matrix, group["ns_coefficients"], group["ns_steps"], group["eps"])
                results[place] = orthogonal.contiguous().flatten()
        for place, result in results.items():
            self.model.broadcast_in_group(self._owners[place], place.name, result)
        return results


def orthogonalize(matrix: Tensor, coefficients: Coefficients, steps: int, eps: float) -> Tensor:
    """About U V^T of the matrix U S V^T: `steps` of Newton-Schulz, x <- a x + (b x x^T + c (x x^T)^2) x."""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def _apply(piece: Piece, orthogonal: Tensor, group: dict[str, Any]) -> None:
    rows, columns = piece.place.shape
    adamw_like = group["adjust_lr_fn"] == "match_rms_adamw"
    ratio = 0.2 * math.sqrt(max(rows, columns)) if adamw_like else math.sqrt(max(1.0, rows / columns))
    part = orthogonal[piece.begin : piece.begin + piece.value.numel()]
    piece.value.mul_(1 - group["lr"] * group["weight_decay"])
    piece.value.add_(part, alpha=-group["lr"] * ratio)


def _cost(place: Place) -> int:
    """Of orthogonalizing: two thirds of the multiplications."""
    return place.shape.numel() * min(place.shape)
