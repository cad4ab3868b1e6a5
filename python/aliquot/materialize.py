"""The values that a model starts with, one parameter after the other, also for models on the meta device."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from aliquot._core import InvalidArgument
from aliquot.words import in_words

logger = logging.getLogger("aliquot")

Initializer = partial[object]
"""A call without arguments; a module that is bound to it is what `_init_weights` takes."""


def initial_values(model: nn.Module, device: torch.device) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    """Each parameter with its value. Those on the meta device are made by `_init_weights(module)` of the innermost
    module around theirs that has it, as models of Transformers do, or else by their module's `reset_parameters`; in the
    order of `model.modules()`; one module's values are alive at a time.
    """  # fmt: skip
    held = [(param, param.detach()) for param in model.parameters() if not param.is_meta]
    made = [(module, _initializer(model, name)) for name, module in model.named_modules() if _has_meta(module)]
    if any(initialize.args for _, initialize in made):
        logger.warning(
            "the model on the meta device is initialized one module at a time: what its _init_weights does to the "
            "children of a module is lost. Give it values with aliquot.load_full_state_dict(model, state_dict), or "
            "build it on the CPU to train from scratch"
        )
    return _values(held, made, device)


def _values(
    held: list[tuple[nn.Parameter, torch.Tensor]], made: list[tuple[nn.Module, Initializer]], device: torch.device
) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    held.reverse()
    while held:
        yield held.pop()
    for module, initialize in made:
        yield from _made(module, initialize, device)


def _has_meta(module: nn.Module) -> bool:
    tensors = (*module._parameters.values(), *module._buffers.values())
    return any(tensor is not None and tensor.is_meta for tensor in tensors)


def _initializer(model: nn.Module, name: str) -> Initializer:
    """What fills the tensors of the module of that name."""
    module = model.get_submodule(name)
    path = name.split(".") if name else []
    around = (model.get_submodule(".".join(path[:depth])) for depth in range(len(path), -1, -1))
    for outer in around:
        own = getattr(outer, "_init_weights", None)
        if callable(own) and len(inspect.signature(own).parameters) == 1:
            return partial(own, module)
    if callable(own := getattr(module, "reset_parameters", None)):
        return partial(own)
    raise InvalidArgument(
        f"module '{name}' ({type(module).__name__}) has tensors on the meta device and no reset_parameters() that "
        "could fill them. Give it one, or build the model on the CPU"
    )


def _made(module: nn.Module, initialize: Initializer, device: torch.device) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Runs `initialize` on stand-ins for the module's own parameters; buffers stay with the module."""
    mine = {name: param for name, param in module._parameters.items() if param is not None}
    try:
        for name, param in mine.items():
            module._parameters[name] = nn.Parameter(
                torch.full(param.shape, torch.nan, device=device).to(_made_in(param)), param.requires_grad
            )
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
        with torch.no_grad():
            initialize()
        return [(param, _value(module, name)) for name, param in mine.items()]
    finally:
        module._parameters.update(mine)


def _made_in(param: torch.Tensor) -> torch.dtype:
    """fp32 for what trains in fewer bits, so that masters start with all of theirs."""
    return param.dtype if in_words(param.dtype) else torch.float32


def _value(module: nn.Module, name: str) -> torch.Tensor:
    made = module._parameters[name]
    assert made is not None
    if made.is_floating_point() and made.isnan().any():
        raise InvalidArgument(
            f"{name} of a {type(module).__name__} was on the meta device, and what initializes that module leaves it "
            "as it was. Fill it in its reset_parameters(), or build the model on the CPU"
        )
    return made.detach()
