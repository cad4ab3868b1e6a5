"""The only autograd code: tells the passes when modules run and when autograd walks back through them.

docs/design.md, "When a unit's backward is done" and "When a backward ends", says why it is done this way.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import nn
from torch.autograd import Variable
from torch.compiler import is_dynamo_compiling

from aliquot._core import Error, ModuleHooks, closed_version
from aliquot.passes import Passes
from aliquot.sharded import ShardedModel
from aliquot.tensors import is_opaque, map_tensors
from aliquot.unit import Unit

OURS = -1
"""The key of a hook among those of a tensor; torch gives out those from 0."""


class Engine:
    """The autograd engine, as the passes see it."""

    def is_running(self) -> bool:
        """Whether a backward is under way in this thread."""
        return torch._C._current_graph_task_id() != -1

    def at_end(self, call: Callable[[], None]) -> None:
        """Calls at the end of the backward that is under way, if it does not raise."""
        Variable._execution_engine.queue_callback(call)

    def note_change(self, params: Iterable[torch.Tensor]) -> None:
        """Makes graphs that saved the parameters refuse to be walked: the values are others now."""
        torch.autograd.graph.increment_version(list(params))


def install(model: ShardedModel) -> Passes:
    """Hooks the model's modules."""
    autograd = Engine()
    passes = Passes(model, autograd)
    model.world.passes.add(passes)
    for unit in model.units:
        unit.overwritten = model.engine.uses_slots and not unit.encloses_units
    for module in {model.root: None, **model.needs}:
        hooks = _ModuleHooks(passes, module, model.needs.get(module, []))
        module.register_forward_pre_hook(hooks.pre_forward, with_kwargs=True, prepend=True)
        module.register_forward_hook(hooks.post_forward, always_call=True)
    model.root.register_load_state_dict_pre_hook(_LoadHook(model))  # type: ignore[no-untyped-call]
    return passes


class Unpicklable:
    """Hooks stay with the module that they were made for."""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise Error(
            "a sharded model can't be copied or pickled: each rank holds a part of it. Build the copy anew and give it "
            "the values of aliquot.full_state_dict(model), or save those"
        )


def call_untraced(call: Callable[..., Any], *args: Any) -> Any:
    """Calls it, out of sight of torch.compile, which would trace the hooks of modules as if they computed something."""
    return _call_disabled(call, *args) if is_dynamo_compiling() else call(*args)


@torch._disable_dynamo  # type: ignore[attr-defined]
def _call_disabled(call: Callable[..., Any], *args: Any) -> Any:
    return call(*args)


class _LoadHook(Unpicklable):
    """Refuses what `load_state_dict` can't do to a sharded model."""

    def __init__(self, model: ShardedModel) -> None:
        self.model = model

    def __call__(
        self, module: nn.Module, state_dict: object, prefix: str, metadata: dict[str, Any], *_: object
    ) -> None:
        assigns = metadata.get("assign_to_params_buffers", False)
        if self.model.stage == 3 or assigns:
            raise Error(
                "load_state_dict can't write to parameters in the store"
                + (" by assignment" if assigns else ": they are sharded")
                + ". Use aliquot.load_full_state_dict(model, state_dict)"
            )


class _ModuleHooks(Unpicklable, ModuleHooks):
    """What is rare of what comes before and after the forward and the backward of a module that needs `units`."""

    def __init__(self, passes: Passes, module: nn.Module, units: list[Unit]) -> None:
        super().__init__(
            passes=passes,
            units=units,
            walk=map_tensors,
            input_dtype=passes.model.input_dtype(module),
            saved_hooks=torch._C._autograd._top_saved_tensors_default_hooks,
            on_outputs=_carrier(self.pre_backward),
            on_inputs=_carrier(self.post_backward),
            beside=_add_beside,
        )
        self.passes = passes
        self.units = units
        self.arrivals = _Arrivals(passes, units)

    def pre_forward(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if is_dynamo_compiling():
            opened: tuple[Any, Any] | None = _call_disabled(self.open, module, args, kwargs)
            return opened
        return self.open(module, args, kwargs)

    def post_forward(self, _: nn.Module, args: Any, output: Any) -> None:
        if is_dynamo_compiling():
            _call_disabled(self.close, output)
        else:
            self.close(output)

    def watch_params(self) -> None:
        """The parameters tell when their backward is over."""
        self.arrivals.watch()

    def ignore_params(self) -> None:
        """Something else tells it."""
        self.arrivals.ignore()

    def watch_all(self, views: list[torch.Tensor]) -> None:
        """The last of several inputs tells it. If one gets no gradient, the end of the backward does the work.

        What a hook holds, its tensor's node holds, where gc can't look: it must not be the tensors.
        """
        arrived, count = 0, len(views)

        def arrive(gradient: torch.Tensor) -> None:
            nonlocal arrived
            arrived += 1
            if arrived % count == 0:
                self.post_backward(gradient)

        for view in views:
            view.register_hook(arrive)  # type: ignore[no-untyped-call]

    def require_clear(self, output: object) -> None:
        """Refuses outputs in which tensors can't be seen, where that matters."""
        if is_opaque(output):
            self.passes.require_no_slots(self.units, output)

    def check_saved(self, hooks: tuple[Callable[..., Any], Callable[..., Any]]) -> None:
        """Torch compares no versions of what is saved under `saved_tensors_hooks` (non-reentrant checkpoints are made
        of them), so what those hooks give back is checked here.
        """  # fmt: skip
        pack, unpack = hooks

        def checked(packed: object) -> torch.Tensor:
            tensor: torch.Tensor = unpack(packed)
            if not tensor.is_inference() and tensor._version >= closed_version:
                raise Error(
                    "a backward reads a parameter whose unit is not gathered: a tensor computed from it left its "
                    "module by another way than the return value, under a checkpoint or saved_tensors_hooks. Return it "
                    "from the module; or put both into a larger unit with aliquot.shard(model, units=)"
                )
            return tensor

        torch._C._autograd._push_saved_tensors_default_hooks(pack, checked)

    def leave_saved(self) -> None:
        """Undoes `check_saved`."""
        torch._C._autograd._pop_saved_tensors_default_hooks()


class _Arrivals:
    """For modules whose inputs get no gradient: their backward is done when all their parameters have theirs."""

    def __init__(self, passes: Passes, units: list[Unit]) -> None:
        self.passes = passes
        self.units = units
        self.watched: dict[torch.Tensor, Any] = {}
        """The parameters, with the handles of the hooks on them."""

    @property
    def params(self) -> list[nn.Parameter]:
        """Of the units that train by now."""
        return [param for unit in self.units if unit.trainable for param in unit.params]

    def watch(self) -> None:
        """Registers the hooks, once. Torch holds them where gc can't look, so they must not hold the model."""
        this = weakref.ref(self)
        for param in self.params:
            if param.requires_grad and param not in self.watched:
                handle = param.register_post_accumulate_grad_hook(lambda param: _arrive(this, param))  # type: ignore[no-untyped-call]
                self.watched[param] = handle

    def ignore(self) -> None:
        """Takes the hooks away: of this call the parameters do not tell when it is over, since frozen ones beside them
        are read for the inputs' gradients; nor do they of several calls.
        """  # fmt: skip
        for handle in self.watched.values():
            handle.remove()
        self.watched.clear()

    def arrive(self, param: torch.Tensor) -> None:
        """The gradient of `param` is there."""
        self.passes.enter_backward()
        self.passes.arrived.add(param)
        wanted = {param for param in self.params if param.requires_grad}
        if wanted <= self.passes.arrived:
            self.passes.arrived -= wanted
            if self._comes_last(param):
                self.passes.post_backward(self.units)

    def _comes_last(self, param: torch.Tensor) -> bool:
        """No hook of the user's is still to see the gradient; else it stays for it, until the backward ends."""
        hooks = param._post_accumulate_grad_hooks
        return bool(next(reversed(hooks)) == self.watched[param].id)


def _arrive(arrivals: weakref.ref[_Arrivals], param: torch.Tensor) -> None:
    found = arrivals()
    if found is not None:
        found.arrive(param)


def _carrier(hook: Callable[[torch.Tensor], None]) -> torch.Tensor:
    """A tensor in whose name `hook` is put on autograd's nodes."""
    carrier = torch.empty(0)
    carrier._backward_hooks = OrderedDict({OURS: hook})
    return carrier


def _add_beside(tensor: torch.Tensor, carrier: torch.Tensor) -> None:
    """Where that can't be. Once for a leaf, which lives on: a parameter that its module returns."""
    assert carrier._backward_hooks is not None
    hook = carrier._backward_hooks[OURS]
    if tensor.grad_fn is not None:
        tensor.register_hook(hook)  # type: ignore[no-untyped-call]
    elif OURS not in (tensor._backward_hooks or {}):
        handle = tensor.register_hook(hook)  # type: ignore[no-untyped-call]
        hooks: Any = tensor._backward_hooks
        hooks[OURS] = hooks.pop(handle.id)
