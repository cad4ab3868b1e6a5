"""Muon over the shards."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aliquot._core import InvalidArgument
from aliquot.alike import alike
from aliquot.fused import LARGEST, impossible, is_between, require_possible
from aliquot.moments import Moments
from aliquot.orthogonal import Coefficients, orthogonalized
from aliquot.piecewise import Piece, PiecewiseOptimizer
from aliquot.places import Place
from aliquot.sharded_optimizer import Params
from aliquot.states import Scalars, State, steps_of
from aliquot.unit import Unit

ADAMW = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.0}
"""What a group with `use_muon=False` is stepped with, unless it says otherwise: as Jordan's `MuonWithAuxAdam`."""


class Muon(PiecewiseOptimizer):
    """Muon (Jordan, 2024, https://kellerjordan.github.io/posts/muon/) as `torch.optim.Muon` defines it.

    Its update of a matrix is the momentum made orthogonal, for which one rank needs the whole: ranks gather a unit's
    momentum in bf16, each orthogonalizes some of the matrices, and sends the result to the others. `params`: matrices.
    A group with `use_muon=False` may hold any parameters (embeddings, heads, biases), which AdamW steps. As
    `MuonWithAuxAdam` does: `params=[{"params": matrices}, {"params": rest, "use_muon": False, "lr": 3e-4}]`.
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
        self._moments: dict[Piece, Moments] = {}
        """Of what AdamW steps."""
        self._owners: dict[Place, int] = {}
        """Of the matrices."""
        self._settings: dict[Place, dict[str, Any]] = {}
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov,
            "ns_coefficients": ns_coefficients, "eps": eps, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn,
            "use_muon": True,
        }  # fmt: skip
        super().__init__(model, params, defaults, max_grad_norm, max_skipped)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See ShardedOptimizer."""
        super().add_param_group(param_group if param_group.get("use_muon", True) else ADAMW | param_group)

    def _extend(self, group: dict[str, Any]) -> None:
        _require_possible(len(self.pieces), group)
        for place in map(self._place_of, group["params"]):
            if group["use_muon"] and (len(place.shape) != 2 or place.unit.dtype.is_complex):
                what = f"its shape is {tuple(place.shape)}, its dtype {place.unit.dtype}"
                raise InvalidArgument(
                    f"Muon: {place.name} is no matrix of real numbers, {what}; give it to AdamW, in a group with "
                    "use_muon=False"
                )
        super()._extend(group)
        self._settings |= {self._place_of(param): group for param in group["params"]}
        self._owners = self._assigned()

    def require_settings(self, number: int, group: dict[str, Any]) -> None:
        """None that make a matrix of what is none, or the other way."""
        super().require_settings(number, group)
        _require_possible(number, group)
        if any((self._place_of(param) in self._owners) != group["use_muon"] for param in group["params"]):
            raise InvalidArgument(f"Muon: use_muon is {group['use_muon']} for a group that was made with the other")

    def _assigned(self) -> dict[Place, int]:
        """Who orthogonalizes which matrix: of a unit's the most costly first, each to the rank that has the least to do
        for the unit, which is what the others wait for; of several such ranks, to the one with the least of all.
        """  # fmt: skip
        in_all = [0] * self.model.shards.world_size
        owners: dict[Place, int] = {}
        for unit in self.model.units:
            in_unit = [0] * len(in_all)
            matrices = [place for place in unit.places if self._settings.get(place, {}).get("use_muon")]
            for place in sorted(matrices, key=lambda place: (-_cost(place), place.index)):
                _, _, rank = min(zip(in_unit, in_all, range(len(in_all)), strict=True))
                owners[place] = rank
                in_unit[rank] += _cost(place)
                in_all[rank] += _cost(place)
        return owners

    def states(self) -> Iterator[State]:
        """The momentum; of what AdamW steps both moments."""
        for piece, momentum in self._momentum.items():
            yield State("momentum", piece.place, piece.begin, momentum)
        for piece, moments in self._moments.items():
            yield State("exp_avg", piece.place, piece.begin, moments.exp_avg)
            yield State("exp_avg_sq", piece.place, piece.begin, moments.exp_avg_sq)

    def scalars(self) -> Scalars:
        """How often AdamW stepped each parameter that it steps."""
        return {piece.place.name: {"steps": moments.steps} for piece, moments in self._moments.items()}

    def prepare(self, states: Iterable[State], scalars: Scalars) -> Callable[[], None]:
        """See ShardedOptimizer."""
        loaded = self._by_piece(states)
        momentum = {piece: found["momentum"] for piece, found in loaded.items() if "momentum" in found}
        moments = {
            piece: Moments(found["exp_avg"], found["exp_avg_sq"], steps_of(scalars, piece.place))
            for piece, found in loaded.items()
            if {"exp_avg", "exp_avg_sq"} <= found.keys()
        }

        def put() -> None:
            self._momentum, self._moments = momentum, moments

        return put

    def step_pieces(self) -> None:
        """One update."""
        of_unit: dict[Unit, list[Piece]] = defaultdict(list)
        for piece in (piece for pieces in self.pieces for piece in pieces if piece.value.grad is not None):
            if piece.place in self._owners:
                of_unit[piece.place.unit].append(piece)
            else:
                self._step_aside(piece)
        for unit in self.model.units:
            matrices = [place for place in unit.places if place in self._owners]
            if matrices and unit.trainable:
                self._step_matrices(unit, matrices, of_unit[unit])

    def _step_matrices(self, unit: Unit, matrices: list[Place], pieces: list[Piece]) -> None:
        whole = self._whole(unit, self._directions(pieces))
        orthogonal = self._orthogonalized(matrices, whole)
        for same in alike(pieces, lambda piece: (id(self._settings[piece.place]), piece.place.shape)):
            _apply(same, orthogonal, self._settings[same[0].place])

    def _step_aside(self, piece: Piece) -> None:
        """By AdamW."""
        value, gradient = piece.value, piece.value.grad
        assert gradient is not None
        if piece not in self._moments:
            self._moments[piece] = Moments(torch.zeros_like(gradient), torch.zeros_like(gradient))
        self._moments[piece].step(value, gradient, self._settings[piece.place])

    def _directions(self, pieces: list[Piece]) -> dict[Piece, Tensor]:
        """The momentum, before it is made orthogonal."""
        directions: dict[Piece, Tensor] = {}
        for same in alike(pieces, lambda piece: id(self._settings[piece.place])):
            group = self._settings[same[0].place]
            gradients = [piece.value.grad for piece in same if piece.value.grad is not None]
            for piece, gradient in zip(same, gradients, strict=True):
                if piece not in self._momentum:
                    self._momentum[piece] = torch.zeros_like(gradient)
            momenta = [self._momentum[piece] for piece in same]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
            directions |= zip(same, ahead, strict=True)
        return directions

    def _whole(self, unit: Unit, directions: dict[Piece, Tensor]) -> Tensor:
        """The flat unit of directions, in bf16, from what each rank has of it."""
        engine, shards = self.model.engine, self.model.shards
        sharded = self.model.stage > 0
        numel = engine.numel(unit.index) // (shards.world_size if sharded else 1)
        held = torch.zeros(numel, dtype=torch.bfloat16, device=self.model.world.device)
        first = shards.rank * numel if sharded else 0
        begins = [engine.offset(unit.index, piece.place.index) + piece.begin - first for piece in directions]
        if directions:
            into = [held[begin : begin + piece.value.numel()] for begin, piece in zip(begins, directions, strict=True)]
            torch._foreach_copy_(into, list(directions.values()))
        return self.model.gather_from_group(f"momentum of {unit.name}", held) if sharded else held

    def _orthogonalized(self, matrices: list[Place], whole: Tensor) -> dict[Place, Tensor]:
        """Flat. All ranks work at once, and then tell one another."""
        begins = [self.model.engine.offset(place.unit.index, place.index) for place in matrices]
        results = {
            place: whole[begin : begin + place.shape.numel()] for place, begin in zip(matrices, begins, strict=True)
        }
        mine = [place for place in matrices if self._owners[place] == self.model.shards.rank]
        for same in alike(mine, lambda place: id(self._settings[place])):
            group, found = self._settings[same[0]], [results[place].view(place.shape) for place in same]
            made = orthogonalized(found, group["ns_coefficients"], group["ns_steps"], group["eps"])
            results |= {place: matrix.flatten() for place, matrix in zip(same, made, strict=True)}
        for place, result in results.items():
            self.model.broadcast_in_group(self._owners[place], place.name, result)
        return results


def _require_possible(number: int, group: dict[str, Any]) -> None:
    require_possible("Muon", number, group)
    coefficients, steps = group["ns_coefficients"], group["ns_steps"]
    if not isinstance(coefficients, tuple | list) or len(coefficients) != 3 or not all(map(_is_finite, coefficients)):
        raise impossible("Muon", number, group, "ns_coefficients", "three finite numbers")
    if not isinstance(steps, int) or steps < 0:
        raise impossible("Muon", number, group, "ns_steps", "an int that is not negative")


def _is_finite(value: Any) -> bool:
    return is_between(-LARGEST, value, LARGEST)


def _apply(pieces: list[Piece], orthogonal: dict[Place, Tensor], group: dict[str, Any]) -> None:
    """To pieces of matrices of one shape."""
    rows, columns = pieces[0].place.shape
    adamw_like = group["adjust_lr_fn"] == "match_rms_adamw"
    ratio = 0.2 * math.sqrt(max(rows, columns)) if adamw_like else math.sqrt(max(1.0, rows / columns))
    values: list[Tensor] = [piece.value for piece in pieces]
    parts = [orthogonal[piece.place][piece.begin : piece.begin + piece.value.numel()] for piece in pieces]
    torch._foreach_mul_(values, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(values, parts, alpha=-group["lr"] * ratio)


def _cost(place: Place) -> int:
    """Of orthogonalizing: two thirds of the multiplications."""
    return place.shape.numel() * min(place.shape)
