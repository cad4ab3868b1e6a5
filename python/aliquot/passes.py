"""Where a model is in its forward and backward, and which of the engine's verbs that calls for."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import NoReturn, Protocol

import torch
from torch import nn

from aliquot import _core
from aliquot._core import Error
from aliquot.sharded import ShardedModel
from aliquot.tensors import TENSORS
from aliquot.unit import Unit

logger = logging.getLogger("aliquot")

Gradients = tuple[list[int], list[torch.Tensor | None]]
"""Addresses of contiguous gradients of a unit's dtype, 0 for none, and the tensors that must live as long."""


class Autograd(Protocol):
    """What a pass needs of the autograd engine."""

    def is_running(self) -> bool:
        """Whether a backward is under way in this thread."""

    def at_end(self, call: Callable[[], None]) -> None:
        """Calls at the end of the backward that is under way, if it does not raise."""

    def note_change(self, params: Iterable[torch.Tensor]) -> None:
        """Makes graphs that saved the parameters refuse to be walked: the values are others now."""


class Passes(_core.Passes):
    """What is rare, and the ends of backwards; what happens at each event is the core's."""

    def __init__(self, model: ShardedModel, autograd: Autograd) -> None:
        super().__init__(
            engine=model.engine,
            units=model.units,
            root=model.root,
            grad_mode=torch.is_grad_enabled,
            stream=None if model.device < 0 else partial(torch._C._cuda_getCurrentRawStream, model.device),
            guards_writes=model.stage == 3,
        )
        self.model = model
        self.autograd = autograd
        self.arrived: set[torch.Tensor] = set()
        """Parameters whose gradient came in this backward, of modules that are told by them."""

    def give_up_unfinished(self, module: nn.Module) -> None:
        """Before a forward within a backward, or the root's within another forward: if those were cut short."""
        if self.in_backward and not self.autograd.is_running():
            self.give_up("the backward before did not finish; the gradients since the last zero_grad are given up")
        if module is self.model.root and self.depth and not self.in_backward and not _calls_itself(module):
            self.give_up("the forward before did not finish; the gradients since the last zero_grad are given up")

    def land(self, unit: Unit, address: int) -> None:
        """The unit was gathered at another address than before."""
        self.model.land(unit, address)

    def begin_backward(self) -> None:
        """Before the first of our nodes of a backward."""
        self._require_one_communicator()
        self.in_backward = True
        self.autograd.at_end(self.finish_backward)

    def _require_one_communicator(self) -> None:
        """Refuses a backward through models sharded over other ranks too: who waits in the one does nothing for the
        other, so that ranks could wait for each other forever.
        """  # fmt: skip
        for other in self.model.world.passes:
            if other.in_backward and other.model.shards is not self.model.shards:
                raise Error(
                    f"rank {self.model.world.rank}: a backward of {type(self.model.root).__name__} comes within that "
                    f"of {type(other.model.root).__name__}, or behind one that did not finish, and they have not the "
                    "same replicas=. Walk back through one after the other, or shard both alike; after an error call "
                    "aliquot.reset_step"
                )

    def finish_backward(self) -> None:
        """At the end of the outermost backward: reduces what is left, and what no hook saw."""
        with self.backward_clock:
            left = self.left()
            _refuse_frozen(left)
            for unit, _ in left:
                self.require_seen(unit)
            if self.synchronize:
                self.reduce(left)
                self.model.accumulating = True
            else:
                self.model.engine.leave_backward(self.model.stream())
                for unit, _ in left:
                    unit.kept_gradients = True
            self.leave_backward()

    def leave_backward(self) -> None:
        """Closes what it opened."""
        self.arrived.clear()
        super().leave_backward()

    def complete_gradients(self, unit: Unit) -> Gradients:
        """Of autograd's gradients, if all parameters have one, what the engine takes."""
        grads = TENSORS.gradients(unit.params)
        return _addresses(grads, unit.dtype) if all(grad is not None for grad in grads) else ([], [])

    def reduce(self, left: list[tuple[Unit, list[torch.Tensor | None]]]) -> None:
        """Ends the micro-step with the gradients that are still on the tensors."""
        packed = [(unit.index, *_addresses(grads, unit.dtype)) for unit, grads in left]
        left_at = [(index, addresses) for index, addresses, _ in packed]
        self.model.engine.finish_backward(left_at, self.model.stream())
        for unit, _ in left:
            unit.drop_gradients()

    def refuse_unseen(self, unit: Unit) -> NoReturn:
        """The error for a backward that read a slot without gathering its unit again."""
        raise Error(
            f"rank {self.model.world.rank}: the backward of unit '{unit.name}' ran without its parameters "
            "gathered, so its gradients are wrong. Its module's outputs must be tensors, or tuples, lists, dicts "
            "or dataclasses of them, not changed in place; or put it into a larger unit with aliquot.shard(units=)"
        )

    def require_no_slots(self, units: list[Unit], output: object) -> None:
        """Refuses a forward whose backward could not be told to gather its units again."""
        shared = [unit for unit in units if unit.trainable and unit.overwritten]
        if shared:
            raise Error(
                f"rank {self.model.world.rank}: the module of unit '{shared[0].name}' returned a "
                f"{type(output).__name__}, in which no hook sees the tensors. Return tensors, or tuples, lists, dicts "
                "or dataclasses of them; or put it into a larger unit with aliquot.shard(model, units=)"
            )

    def end_step(self) -> None:
        """After the optimizer's step: no graph from before it will be walked."""
        self.model.accumulating = False
        self.model.world.control.advance()
        super().end_step()

    def require_between(self, what: str) -> None:
        """Refuses `what` within a forward or a backward."""
        if self.depth or self.in_backward:
            raise Error(f"rank {self.model.world.rank}: {what} within a forward or backward: do it between steps")

    def give_up(self, why: str) -> None:
        """Puts everything back after a pass that did not finish."""
        logger.warning("rank %d: %s", self.model.world.rank, why)
        self.model.engine.reset(self.model.stream())
        self.model.accumulating = self.model.scale_moved = False
        if self.model.scaler is not None:
            self.model.scaler.give_up()
        for unit in self.model.units:
            unit.expected = 0
            unit.drop_gradients()
            unit.open_in_backward = unit.held = False
            while unit.open_count > unit.private_copies:
                unit.close()
            unit.mark()
        self.leave_backward()
        self.autograd.note_change(
            param for unit in self.model.units if not unit.private_copies for param in unit.params
        )  # graphs from before are not to be walked
        self.depth = 0


def _calls_itself(module: nn.Module) -> bool:
    """Whether the call of `module` that is under way comes from within another one, or that one was cut short."""
    frame: FrameType | None = sys._getframe()
    calls = 0
    while frame is not None:
        calls += frame.f_code.co_name == "_call_impl" and frame.f_locals.get("self") is module
        frame = frame.f_back
    return calls > 1


def _addresses(grads: list[torch.Tensor | None], dtype: torch.dtype) -> Gradients:
    kept = [None if grad is None else _plain(grad, dtype) for grad in grads]
    return [0 if grad is None else grad.data_ptr() for grad in kept], kept


def _plain(grad: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    lazy = grad.is_conj() or grad.is_neg()
    if grad.dtype == dtype and grad.layout == torch.strided and grad.is_contiguous() and not lazy:
        return grad
    return grad.detach().to_dense().to(dtype).resolve_conj().resolve_neg().contiguous()


def _refuse_frozen(left: list[tuple[Unit, list[torch.Tensor | None]]]) -> None:
    for unit, grads in left:
        if not unit.trainable:
            next(place for place, grad in zip(unit.places, grads, strict=True) if grad is not None).refuse_unfrozen()


@contextmanager
def unsynchronized(passes: Passes) -> Iterator[None]:
    """Backwards inside leave their gradients unreduced, on the tensors."""
    before, passes.synchronize = passes.synchronize, False
    try:
        yield
    finally:
        passes.synchronize = before


def require_finished(passes: Passes) -> None:
    """Refuses to go on behind a backward that raised."""
    if passes.in_backward:
        raise Error(
            f"rank {passes.model.world.rank}: the last backward did not finish, so gradients are missing. Call "
            "aliquot.reset_step(model) on every rank and repeat the step"
        )
