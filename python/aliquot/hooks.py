"""The only autograd code: calls the engine's verbs when modules run and when autograd walks back.

docs/design.md, "When a unit's backward is done" and "When a backward ends", says why it is done this way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd import Variable

from aliquot._core import Error
from aliquot.sharded import ShardedModel, Unit, autograd_grads, drop_autograd_grads

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("aliquot")


@dataclass(eq=False)
class Passes:
    """Where a model is: how deep in its forward, and whether in a backward."""

    model: ShardedModel
    depth: int = 0
    training: bool = False
    """Whether this forward builds a graph."""
    in_backward: bool = False
    synchronize: bool = True
    """Whether the backward reduces; no under no_sync."""
    arrivals: list[_Arrivals] = field(default_factory=list)

    # Forward

    def enter_forward(self, module: nn.Module) -> None:
        """Before the forward of a module with units of its own, perhaps inside another such forward."""
        if self.in_backward and torch._C._current_graph_task_id() == -1:
            self.give_up("the backward before did not finish; the gradients since the last zero_grad are given up")
        if module is self.model.root and self.depth and not self.in_backward:
            self.give_up("the forward before did not finish; the gradients since the last zero_grad are given up")
        if self.depth == 0:
            self.training = torch.is_grad_enabled()
        self.depth += 1

    def leave_forward(self) -> None:
        """After it, also if it raised."""
        self.depth = max(0, self.depth - 1)
        if self.depth == 0 and not self.in_backward:
            self.model.engine.finish_forward()

    def gather(self, unit: Unit) -> None:
        """Makes the unit's parameters usable for one call of a forward."""
        if self.training and not self.in_backward and unit.trainable:
            unit.expected += 1
        self.model.land(unit, self.model.engine.pre_forward(unit.index))
        if self.training:
            self.model.engine.expect_backward(unit.index)
        unit.open()

    def give_back(self, unit: Unit) -> None:
        """Undoes `gather`."""
        if unit.open_count:
            unit.close()
            self.model.engine.post_forward(unit.index)

    # Backward

    def enter_backward(self) -> None:
        """Before the first of our nodes of a backward."""
        if not self.in_backward:
            self.in_backward = True
            Variable._execution_engine.queue_callback(self.finish_backward)

    def pre_backward(self, units: list[Unit]) -> None:
        """The gradient of a forward's output is there: what the forward saved is about to be used."""
        self.enter_backward()
        for unit in units:
            if address := self.model.engine.pre_backward(unit.index):
                self.model.land(unit, address)
                unit.open()

    def post_backward(self, units: list[Unit]) -> None:
        """The gradients of a forward's inputs are there: what it saved has been used."""
        self.enter_backward()
        for unit in units:
            last = unit.expected == 1
            unit.expected = max(0, unit.expected - 1)
            self._release(unit, autograd_grads(unit.params) if last and self.synchronize else [])

    def _release(self, unit: Unit, grads: list[torch.Tensor | None]) -> None:
        complete = bool(grads) and unit.trainable and all(grad is not None for grad in grads)
        addresses, kept = _addresses(grads) if complete else ([], [])
        if unit.open_count:
            unit.close()
        taken = self.model.engine.post_backward(unit.index, addresses)
        del kept
        if complete and taken:
            drop_autograd_grads(unit.params)

    def finish_backward(self) -> None:
        """At the end of the outermost backward: reduces what is left, and what no hook saw."""
        left = [(unit, autograd_grads(unit.params)) for unit in self.model.units]
        left = [(unit, grads) for unit, grads in left if any(grad is not None for grad in grads)]
        _refuse_frozen(left)
        if self.synchronize:
            self.reduce(left)
        else:
            self.model.engine.leave_backward()
            self.model.unreduced = bool(left) or self.model.unreduced
        self._close_all()
        self.in_backward = False

    def reduce(self, left: list[tuple[Unit, list[torch.Tensor | None]]]) -> None:
        """Ends the micro-step with the gradients that are still on the tensors."""
        packed = [(unit.index, *_addresses(grads)) for unit, grads in left]
        self.model.engine.finish_backward([(index, addresses) for index, addresses, _ in packed])
        for unit, _ in left:
            drop_autograd_grads(unit.params)
        self.model.unreduced = False

    def _close_all(self) -> None:
        for arrivals in self.arrivals:
            arrivals.arrived.clear()
        for unit in self.model.units:
            unit.open_count = 0
            unit.close()

    def give_up(self, why: str) -> None:
        """Puts everything back after a pass that did not finish."""
        logger.warning("rank %d: %s", self.model.world.rank, why)
        self.model.engine.reset()
        for unit in self.model.units:
            unit.expected = 0
            drop_autograd_grads(unit.params)
        self._close_all()
        self.depth = 0
        self.in_backward = False
        self.model.unreduced = False


def _addresses(grads: list[torch.Tensor | None]) -> tuple[list[int], list[torch.Tensor | None]]:
    """Addresses of contiguous fp32 gradients, 0 for none, and the tensors that must live as long."""
    kept = [None if grad is None else grad.detach().to_dense().to(torch.float32).contiguous() for grad in grads]
    return [0 if grad is None else grad.data_ptr() for grad in kept], kept


def _refuse_frozen(left: list[tuple[Unit, list[torch.Tensor | None]]]) -> None:
    for unit, grads in left:
        if not unit.trainable:
            name = next(place.name for place, grad in zip(unit.places, grads, strict=True) if grad is not None)
            raise Error(
                f"{name} was frozen when the model was sharded and has a gradient now: it has no place for one. Set "
                "requires_grad before aliquot.shard"
            )


def install(model: ShardedModel) -> Passes:
    """Hooks the model's modules."""
    passes = Passes(model)
    for module in {model.root: None, **model.needs}:
        _hook(passes, module, model.needs.get(module, []))
    return passes


def _hook(passes: Passes, module: nn.Module, units: list[Unit]) -> None:
    trainable = [unit for unit in units if unit.trainable]
    arrivals = _Arrivals(passes, units, trainable)

    def pre_forward(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:  # noqa: ANN401
        passes.enter_forward(module)
        for unit in units:
            passes.gather(unit)
        if not (units and torch.is_grad_enabled()):
            return args, kwargs
        inputs: list[torch.Tensor] = []
        args, kwargs = _map(_seen_by(inputs), (args, kwargs))
        if inputs:
            _when_all_have_gradients(inputs, lambda: passes.post_backward(units))
        else:
            arrivals.watch()
        return args, kwargs

    def post_forward(_: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401
        for unit in reversed(units):
            passes.give_back(unit)
        passes.leave_forward()
        if torch.is_grad_enabled():
            _map(_before_backward(lambda: passes.pre_backward(units)), output)

    module.register_forward_pre_hook(pre_forward, with_kwargs=True)
    module.register_forward_hook(post_forward, always_call=True)


class _Arrivals:
    """For modules whose inputs get no gradient: their backward is done when all their parameters have theirs."""

    def __init__(self, passes: Passes, units: list[Unit], trainable: list[Unit]) -> None:
        self.passes = passes
        self.units = units
        self.params = [param for unit in trainable for param in unit.params]
        self.arrived: set[torch.Tensor] = set()
        self.watching = False

    def watch(self) -> None:
        """Registers the hooks, once."""
        if self.watching:
            return
        self.watching = True
        self.passes.arrivals.append(self)
        for param in self.params:
            param.register_post_accumulate_grad_hook(self._arrive)

    def _arrive(self, param: torch.Tensor) -> None:
        self.passes.enter_backward()
        self.arrived.add(param)
        if len(self.arrived) == len(self.params):
            self.arrived.clear()
            self.passes.post_backward(self.units)


def _seen_by(inputs: list[torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Replaces inputs that need gradients by views of them, whose hooks run before those of the tensors' makers."""

    def see(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.requires_grad:
            return tensor
        inputs.append(tensor.view_as(tensor))
        return inputs[-1]

    return see


def _when_all_have_gradients(tensors: list[torch.Tensor], call: Callable[[], None]) -> None:
    if len(tensors) == 1:
        tensors[0].register_hook(lambda _: call())
    else:
        torch.autograd.graph.register_multi_grad_hook(tensors, lambda _: call(), mode="all")


def _before_backward(call: Callable[[], None]) -> Callable[[torch.Tensor], torch.Tensor]:
    def hook(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.requires_grad:
            tensor.register_hook(lambda _: call())
        return tensor

    return hook


def _map(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:  # noqa: ANN401
    """Applies `change` to the tensors in nested tuples, lists, dicts and dataclasses."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(change, item) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_map(change, item) for item in value)
    if isinstance(value, dict):
        return _map_dict(change, value)
    if is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            _map(change, getattr(value, item.name))
    return value


def _map_dict(change: Callable[[torch.Tensor], torch.Tensor], value: dict[Any, Any]) -> dict[Any, Any]:
    changed = {key: _map(change, item) for key, item in value.items()}
    if type(value) is dict:
        return changed
    value.update(changed)
    return value


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
            f"rank {passes.model.world.rank}: the last backward did not finish, so the gradients are not complete. Call "
            "aliquot.reset_step(model) on every rank and repeat the step"
        )
