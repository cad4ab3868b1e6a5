"""Where a model is in its forward and backward, and which of the engine's verbs that calls for."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Protocol

import torch
from torch import nn

from aliquot._core import Clock, Error
from aliquot.sharded import ShardedModel
from aliquot.tensors import TENSORS
from aliquot.unit import Unit

logger = logging.getLogger("aliquot")


class Autograd(Protocol):
    """What a pass needs of the autograd engine."""

    def is_running(self) -> bool:
        """Whether a backward is under way in this thread."""

    def at_end(self, call: Callable[[], None]) -> None:
        """Calls at the end of the backward that is under way, if it does not raise."""

    def builds_graph(self) -> bool:
        """Whether the backward that is under way will itself be walked back (`create_graph=True`)."""

    def note_change(self, params: Iterable[torch.Tensor]) -> None:
        """Makes graphs that saved the parameters refuse to be walked: the values are others now."""


@dataclass(eq=False)
class Passes:
    """Where a model is: how deep in its forward, and whether in a backward."""

    model: ShardedModel
    autograd: Autograd
    depth: int = 0
    in_backward: bool = False
    synchronize: bool = True
    """Whether the backward reduces; no under no_sync."""
    forward_clock: Clock = field(default_factory=Clock)
    backward_clock: Clock = field(default_factory=Clock)
    """The host's time in the hooks of either direction."""
    arrived: set[torch.Tensor] = field(default_factory=set)
    """Parameters whose gradient came in this backward, of modules that are told by them."""

    # Forward

    def enter_forward(self, module: nn.Module) -> None:
        """Before the forward of a module with units of its own, perhaps inside another such forward."""
        if self.in_backward and not self.autograd.is_running():
            self.give_up("the backward before did not finish; the gradients since the last zero_grad are given up")
        if module is self.model.root and self.depth and not self.in_backward and not _calls_itself(module):
            self.give_up("the forward before did not finish; the gradients since the last zero_grad are given up")
        self.depth += 1

    def leave_forward(self) -> None:
        """After it, also if it raised."""
        self.depth = max(0, self.depth - 1)
        if self.depth == 0 and not self.in_backward:
            self.model.engine.finish_forward()

    def is_private(self, unit: Unit) -> bool:
        """Whether a forward that builds no graph needs no gather: aliquot.gathered has given this rank a copy."""
        return unit.private > 0 and not torch.is_grad_enabled()

    def gather(self, unit: Unit) -> None:
        """Makes the unit's parameters usable for one call of a forward."""
        if self.in_backward:
            self._make_room(unit)
        elif torch.is_grad_enabled() and unit.trainable:
            unit.expected += 1
        self.model.land(unit, self.model.engine.pre_forward(unit.index, self.model.stream()))
        if torch.is_grad_enabled():
            self.model.engine.expect_backward(unit.index)
        unit.open()

    def give_back(self, unit: Unit) -> None:
        """Undoes `gather`."""
        if unit.open_count == 0:
            return
        written = unit.close()
        if self.model.stage < 3 or unit.private:
            written = None
        if written is not None:
            self.model.engine.forget(unit.index)
        self.model.engine.post_forward(unit.index, self.model.stream())
        if written is not None:
            unit.refuse_write(written)

    # Backward

    def enter_backward(self) -> None:
        """Before the first of our nodes of a backward."""
        if not self.in_backward:
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

    def pre_backward(self, units: list[Unit]) -> None:
        """The gradient of a forward's output is there: what the forward saved is about to be used."""
        with self.backward_clock:
            self.enter_backward()
            for unit in units:
                self._gather_again(unit)

    def _gather_again(self, unit: Unit) -> None:
        self._make_room(unit)
        if address := self.model.engine.pre_backward(unit.index, self.model.stream()):
            self.model.land(unit, address)
            unit.open()
            unit.open_in_backward = unit.seen_in_backward = True
        if self.autograd.builds_graph():
            self._hold(unit)

    def _make_room(self, unit: Unit) -> None:
        """Gives back a unit whose end no hook saw: its inputs were changed in place, or handed on."""
        other = self.model.engine.in_the_way(unit.index)
        if other is not None:
            tenant = self.model.units[other]
            if tenant.open_in_backward and tenant.open_count == 1 + tenant.private:
                self._release(tenant, [], [])

    def _hold(self, unit: Unit) -> None:
        if self.model.engine.uses_slots and not unit.held:
            self.model.engine.hold(unit.index)
            unit.held = True

    def post_backward(self, units: list[Unit]) -> None:
        """The gradients of a forward's inputs are there: what it saved has been used."""
        with self.backward_clock:
            self.enter_backward()
            for unit in units:
                self._require_seen(unit)
                if unit.expected == 1 and self.synchronize and unit.trainable:
                    self._release(unit, *_complete_gradients(unit))
                else:
                    self._release(unit, [], [])
                unit.expected = max(0, unit.expected - 1)

    def _release(self, unit: Unit, addresses: list[int], kept: list[torch.Tensor | None]) -> None:
        self._close(unit)
        taken = self.model.engine.post_backward(unit.index, addresses, self.model.stream())
        if addresses and taken:
            unit.drop_gradients()

    def finish_backward(self) -> None:
        """At the end of the outermost backward: reduces what is left, and what no hook saw."""
        with self.backward_clock:
            self._finish_backward()

    def _finish_backward(self) -> None:
        left = [(unit, grads) for unit in self.model.units if (grads := TENSORS.gradients(unit.params))]
        _refuse_frozen(left)
        for unit, _ in left:
            self._require_seen(unit)
        if self.synchronize:
            self.reduce(left)
            self.model.accumulating = True
        else:
            self.model.engine.leave_backward(self.model.stream())
            for unit, _ in left:
                unit.kept_gradients = True
        self._leave_backward()

    def reduce(self, left: list[tuple[Unit, list[torch.Tensor | None]]]) -> None:
        """Ends the micro-step with the gradients that are still on the tensors."""
        packed = [(unit.index, *_addresses(grads, unit.dtype)) for unit, grads in left]
        left_at = [(index, addresses) for index, addresses, _ in packed]
        self.model.engine.finish_backward(left_at, self.model.stream())
        for unit, _ in left:
            unit.drop_gradients()

    def _require_seen(self, unit: Unit) -> None:
        """Refuses a backward that read a slot without gathering its unit again."""
        gathered = unit.seen_in_backward or unit.held or unit.private or unit.kept_gradients
        if unit.overwritten and not gathered:
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

    def _close(self, unit: Unit) -> None:
        if unit.open_in_backward:
            unit.open_in_backward = False
            unit.close()

    def _leave_backward(self) -> None:
        self.arrived.clear()
        for unit in self.model.units:
            self._close(unit)
            unit.seen_in_backward = False
        self.in_backward = False

    def end_step(self) -> None:
        """After the optimizer's step: no graph from before it will be walked."""
        self.model.accumulating = False
        self.model.world.control.advance()
        for unit in self.model.units:
            unit.expected = 0
            unit.held = False
            unit.mark()

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
            while unit.open_count > unit.private:
                unit.close()
            unit.mark()
        self._leave_backward()
        self.autograd.note_change(
            param for unit in self.model.units if not unit.private for param in unit.params
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


def _addresses(grads: list[torch.Tensor | None], dtype: torch.dtype) -> tuple[list[int], list[torch.Tensor | None]]:
    """Addresses of contiguous gradients of `dtype`, 0 for none, and the tensors that must live as long."""
    kept = [None if grad is None else _plain(grad, dtype) for grad in grads]
    return [0 if grad is None else grad.data_ptr() for grad in kept], kept


def _complete_gradients(unit: Unit) -> tuple[list[int], list[torch.Tensor | None]]:
    """As `_addresses`, of gradients that autograd left on all parameters; empty if it has not yet."""
    if not unit.dtype.is_complex and (addresses := TENSORS.gradient_addresses(unit.params, unit.dtype)):
        return addresses, []
    grads = TENSORS.gradients(unit.params)
    return _addresses(grads, unit.dtype) if all(grad is not None for grad in grads) else ([], [])


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
