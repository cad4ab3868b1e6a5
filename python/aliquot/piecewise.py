"""Optimizers written with torch's operations: they step flat pieces of parameters, where the fp32 values lie."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from aliquot import _core
from aliquot.places import Place
from aliquot.sharded_optimizer import ShardedOptimizer
from aliquot.states import State


@dataclass(eq=False)
class Piece:
    """What this rank steps of a parameter, or a part of that."""

    place: Place
    begin: int
    """Of the parameter's elements, where it starts."""
    value: nn.Parameter
    """Flat and fp32; over the store's own memory. Its `grad` is there during `step_pieces`, clipped and unscaled."""


class PiecewiseOptimizer(ShardedOptimizer):
    """Steps pieces. The host waits for the gradients' norm, and 16-bit models need `Precision(master="fp32")`."""

    def _description(self, groups: list[dict[str, Any]]) -> Iterator[str]:
        yield from super()._description(groups)
        if self.model.replicas > 1:  # each steps for itself, and must come to the same bits
            capability = torch.backends.cpu.get_cpu_capability()
            yield f"torch on {capability} with {torch.get_num_threads()} threads"

    def _begin(self) -> None:
        self.pieces: list[list[Piece]] = []
        """By group."""
        for group in self.param_groups:
            self._extend(group)

    def _extend(self, group: dict[str, Any]) -> None:
        self.pieces.append(list(self._pieces_of(group)))

    def _pieces_of(self, group: dict[str, Any]) -> Iterator[Piece]:
        wanted = {self._place_of(param) for param in group["params"]}
        for unit in self.model.units:
            for param, begin, numel, address in self.model.engine.values_to_step(unit.index):
                if (place := unit.places[param]) in wanted:
                    value = self.model.tensor_at(address, (numel,), torch.float32)
                    yield Piece(place, begin, nn.Parameter(value))

    def _update(self) -> _core.StepResult:
        engine, stream = self.model.engine, self.model.stream()
        result = engine.begin_update(self.max_grad_norm, stream)
        pieces = [piece for group in self.pieces for piece in group]
        try:
            if not result.skipped:
                self._take_gradients(pieces, result.grad_scale)
                with torch.no_grad():
                    self.step_pieces()
        finally:
            for piece in pieces:
                piece.value.grad = None
            engine.end_update(stream)
        return result

    def _take_gradients(self, pieces: Iterable[Piece], scale: float) -> None:
        values = {(piece.place, piece.begin): piece.value for piece in pieces}
        for unit in self.model.units:
            dtype = self.model.gradient_dtype(unit)
            for param, begin, numel, address in self.model.engine.gradients_to_step(unit.index):
                if address and (value := values.get((unit.places[param], begin))) is not None:
                    value.grad = self.model.tensor_at(address, (numel,), dtype).float() * scale

    def _pieces_by_start(self) -> dict[tuple[Place, int], Piece]:
        return {(piece.place, piece.begin): piece for pieces in self.pieces for piece in pieces}

    def _by_piece(self, states: Iterable[State]) -> dict[Piece, dict[str, torch.Tensor]]:
        """A checkpoint's states of each piece, on its device."""
        pieces = self._pieces_by_start()
        found: dict[Piece, dict[str, torch.Tensor]] = {}
        for state in states:
            piece = pieces[state.place, state.begin]
            found.setdefault(piece, {})[state.name] = state.value.to(piece.value.device)
        return found

    @abstractmethod
    def step_pieces(self) -> None:
        """Updates the values of pieces that have a gradient. What has none on this rank has none on any."""
