"""Torch's tensors: a unit's parameters, and those in what modules take and return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn

from aliquot._core import Tensors, Walk
from aliquot.guard import ShardedParameter

TENSORS = Tensors(
    ordinary=nn.Parameter,
    guarded=ShardedParameter,
    set_versions=torch._C._autograd._unsafe_set_version_counter,
    grad=torch.Tensor.grad,
    plainly=torch._C.DisableTorchFunctionSubclass,
    strided=torch.strided,
)


def _in_other(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """What `map_tensors` does in subclasses of containers, and in dataclasses."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(change, item) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(change, item) for item in value)
    if isinstance(value, dict):
        _change_items(change, value)
    elif is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            map_tensors(change, getattr(value, item.name))
    return value


def _change_items(change: Callable[[torch.Tensor], torch.Tensor], items: dict[Any, Any]) -> None:
    """One by one, and only what became another object: classes of dicts may refuse `update`, or any change."""
    for key, item in list(items.items()):
        changed = map_tensors(change, item)
        if changed is not item:
            items[key] = changed


map_tensors = Walk(torch.Tensor, _in_other)
"""`map_tensors(change, value)` applies `change` to the tensors in nested tuples, lists, dicts and dataclasses."""


def is_opaque(value: Any) -> bool:
    """Whether `map_tensors` can't tell what is in `value`."""
    plain = (torch.Tensor, tuple, list, dict, set, frozenset, str, bytes, int, float, complex, type(None), torch.dtype)
    return not isinstance(value, plain) and not is_dataclass(value) and not hasattr(value, "__array__")
