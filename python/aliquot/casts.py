"""What is cast on the way into modules that are kept in fp32, and on the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from aliquot.precision import Precision
from aliquot.tensors import map_tensors


def to_dtype(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Casts floating-point tensors."""
    return lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor


def keep(model: nn.Module, precision: Precision) -> None:
    """Makes what `precision` keeps in fp32 compute in it, and hand on what the modules around it compute with."""
    for module in precision.kept_in(model):
        for inner in module.modules():
            for name, buffer in inner._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    inner._buffers[name] = buffer.float()
        casts = _Casts(precision.computes_in)
        module.register_forward_pre_hook(casts.enter, with_kwargs=True)
        module.register_forward_hook(casts.leave, always_call=True)


def cast_outputs(model: nn.Module, precision: Precision) -> None:
    """Makes the model return what `precision` says. Behind all other hooks, so that they see what the forward gave."""
    dtype = precision.outputs_in
    if dtype is not None:
        cast = to_dtype(dtype)
        model.register_forward_hook(lambda module, args, output: map_tensors(cast, output))


class _Casts:
    """Around the calls of one module that is kept in fp32."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        """What it gives; None: what it was given."""
        self.given: list[torch.dtype] = []
        """For each call under way, innermost last."""

    def enter(self, _: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        seen: list[torch.dtype] = []

        def widen(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            seen.append(tensor.dtype)
            return tensor.float()

        args, kwargs = map_tensors(widen, (args, kwargs))
        self.given.append(self.dtype or (seen[0] if seen else torch.float32))
        return args, kwargs

    def leave(self, _: nn.Module, args: Any, output: Any) -> Any:
        return map_tensors(to_dtype(self.given.pop()), output) if self.given else output
