"""The only autograd code: tells the passes when modules run and when autograd walks back through them.

docs/design.md, "When a unit's backward is done" and "When a backward ends", says why it is done this way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd import Variable

from aliquot.passes import Passes
from aliquot.sharded import ShardedModel, Unit
from aliquot.tensors import map_tensors


class Engine:
    """The autograd engine, as the passes see it."""

    def is_running(self) -> bool:
        """Whether a backward is under way in this thread."""
        return torch._C._current_graph_task_id() != -1

    def at_end(self, call: Callable[[], None]) -> None:
        """Calls at the end of the backward that is under way, if it does not raise."""
        Variable._execution_engine.queue_callback(call)


def install(model: ShardedModel) -> Passes:
    """Hooks the model's modules."""
    passes = Passes(model, Engine())
    for module in {model.root: None, **model.needs}:
        _hook(passes, module, model.needs.get(module, []))
    return passes


def _hook(passes: Passes, module: nn.Module, units: list[Unit]) -> None:
    arrivals = _Arrivals(passes, units)

    def pre_forward(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        passes.enter_forward(module)
        for unit in units:
            passes.gather(unit)
        if not (units and torch.is_grad_enabled()):
            return args, kwargs
        inputs: list[torch.Tensor] = []
        args, kwargs = map_tensors(_seen_by(inputs), (args, kwargs))
        if inputs:
            _when_all_have_gradients(inputs, lambda: passes.post_backward(units))
        else:
            arrivals.watch()
        return args, kwargs

    def post_forward(_: nn.Module, args: Any, output: Any) -> None:
        for unit in reversed(units):
            passes.give_back(unit)
        passes.leave_forward()
        if torch.is_grad_enabled():
            map_tensors(_before_backward(lambda: passes.pre_backward(units)), output)

    module.register_forward_pre_hook(pre_forward, with_kwargs=True)
    module.register_forward_hook(post_forward, always_call=True)


class _Arrivals:
    """For modules whose inputs get no gradient: their backward is done when all their parameters have theirs."""

    def __init__(self, passes: Passes, units: list[Unit]) -> None:
        self.passes = passes
        self.units = units
        self.params = {param for unit in units if unit.trainable for param in unit.params}
        self.watching = False

    def watch(self) -> None:
        """Registers the hooks, once."""
        if self.watching:
            return
        self.watching = True
        for param in self.params:
            param.register_post_accumulate_grad_hook(self._arrive)  # type: ignore[no-untyped-call]

    def _arrive(self, param: torch.Tensor) -> None:
        self.passes.enter_backward()
        self.passes.arrived.add(param)
        if self.params <= self.passes.arrived:
            self.passes.arrived -= self.params
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
        tensors[0].register_hook(lambda _: call())  # type: ignore[no-untyped-call]
    else:
        torch.autograd.graph.register_multi_grad_hook(tensors, lambda _: call(), mode="all")


def _before_backward(call: Callable[[], None]) -> Callable[[torch.Tensor], torch.Tensor]:
    def hook(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.requires_grad:
            tensor.register_hook(lambda _: call())  # type: ignore[no-untyped-call]
        return tensor

    return hook
