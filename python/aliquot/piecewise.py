"""Optimizers written with torch's operations: they step flat pieces of parameters, where the fp32 values lie."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from aliquot import _core
from aliquot.halves import Halves
from aliquot.places import Place
from aliquot.sharded_optimizer import ShardedOptimizer
from aliquot.states import State
from aliquot.unit import Unit


@dataclass(eq=False)
class Piece:
    """What this rank steps of a parameter, or a part of that."""

    place: Place
    begin: int
    """Of the parameter's elements, where it starts."""
    value: nn.Parameter
    """Flat and fp32; over the store's own memory, or, if that has it in halves, a copy while it is stepped. Its `grad`
    is there during `step_pieces`, clipped and unscaled."""
    halves: Halves | None = None

    def join(self) -> None:
        """Makes `value` usable."""
        if self.halves is not None:
            self.value.data = self.halves.joined()

    def split(self) -> None:
        """Keeps what was made of it."""
        if self.halves is not None:
            self.halves.split(self.value)
            self.value.data = _nothing_like(self.value)


def _nothing_like(value: torch.Tensor) -> torch.Tensor:
    """Of its shape, and one number large."""
    return torch.full((), torch.nan, device=value.device).expand(value.shape)


class PiecewiseOptimizer(ShardedOptimizer):
    """Steps pieces. The host waits for the gradients' norm."""

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
        self.pieces.append(list(self._pieces_of(group, self.model.units)))

    def take_unit(self, unit: Unit) -> None:
        """Steps what the groups have of it."""
        for group, pieces in zip(self.param_groups, self.pieces, strict=True):
            pieces += self._pieces_of(group, [unit])

    def _pieces_of(self, group: dict[str, Any], units: Iterable[Unit]) -> Iterator[Piece]:
        wanted = {self._place_of(param) for param in group["params"]}
        for unit in units:
            if unit.trainable:
                yield from (piece for piece in self._all_pieces_of(unit) if piece.place in wanted)

    def _all_pieces_of(self, unit: Unit) -> Iterator[Piece]:
        engine, tensor_at = self.model.engine, self.model.tensor_at
        if engine.master_form(unit.index) != "low16":
            for param, begin, numel, address in engine.values_to_step(unit.index):
                yield Piece(unit.places[param], begin, nn.Parameter(tensor_at(address, (numel,), torch.float32)))
            return
        roles = (engine.parts_to_load(unit.index, role) for role in ("param", "master"))
        for (param, begin, numel, high), (*_, low) in zip(*roles, strict=True):
            bits, more_bits = (tensor_at(address, (numel,), torch.bfloat16) for address in (high, low))
            value = nn.Parameter(torch.full((), torch.nan, device=bits.device).expand(numel))
            yield Piece(unit.places[param], begin, value, Halves(bits, more_bits.view(torch.int16)))

    def _update(self) -> _core.StepResult:
        engine, stream = self.model.engine, self.model.stream()
        result = engine.begin_update(self.max_grad_norm, stream)
        pieces = [piece for group in self.pieces for piece in group]
        try:
            if not result.skipped:
                self._take_gradients(pieces, result.grad_scale)
                with torch.no_grad(), joined(pieces):
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


@contextmanager
def joined(pieces: Iterable[Piece]) -> Iterator[None]:
    """Within it the values of all of them are there."""
    for piece in pieces:
        piece.join()
    try:
        yield
    finally:
        for piece in pieces:
            piece.split()
