"""The values that a model starts with, one parameter after the other, also for models on the meta device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from aliquot._core import InvalidArgument
from aliquot.words import in_words


def initial_values(model: nn.Module, device: torch.device) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    """Each parameter with its value. Those on the meta device are made by their module's `reset_parameters`, in the
    order of `model.modules()`; one module's values are alive at a time.
    """  # fmt: skip
    held = [(param, param.detach()) for param in model.parameters() if not param.is_meta]
    made = [module for module in model.modules() if _has_meta(module)]
    for module in made:
        _require_reset(model, module)
    return _values(held, made, device)


def _values(
    held: list[tuple[nn.Parameter, torch.Tensor]], made: list[nn.Module], device: torch.device
) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    held.reverse()
    while held:
        yield held.pop()
    for module in made:
        yield from _reset(module, device)


def _has_meta(module: nn.Module) -> bool:
    tensors = (*module._parameters.values(), *module._buffers.values())
    return any(tensor is not None and tensor.is_meta for tensor in tensors)


def _require_reset(model: nn.Module, module: nn.Module) -> None:
    if not callable(getattr(module, "reset_parameters", None)):
        name = next(name for name, other in model.named_modules() if other is module)
        raise InvalidArgument(
            f"module '{name}' ({type(module).__name__}) has tensors on the meta device and no reset_parameters() that "
            "could fill them. Give it one, or build the model on the CPU"
        )


def _reset(module: nn.Module, device: torch.device) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Runs `reset_parameters` on stand-ins for the module's own parameters; buffers stay with the module."""
    mine = {name: param for name, param in module._parameters.items() if param is not None}
    try:
        for name, param in mine.items():
            module._parameters[name] = nn.Parameter(
                torch.empty(param.shape, dtype=_made_in(param), device=device), requires_grad=param.requires_grad
            )
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
        module.reset_parameters()  # type: ignore[operator]
        return [(param, _value(module, name)) for name, param in mine.items()]
    finally:
        module._parameters.update(mine)


def _made_in(param: torch.Tensor) -> torch.dtype:
    """fp32 for what trains in fewer bits, so that masters start with all of theirs."""
    return param.dtype if in_words(param.dtype) else torch.float32


def _value(module: nn.Module, name: str) -> torch.Tensor:
    made = module._parameters[name]
    assert made is not None
    return made.detach()
