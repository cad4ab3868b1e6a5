"""Torch's tensors: a unit's parameters, and those in what modules take and return."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import fields, is_dataclass
from operator import is_, setitem
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
    """What `map_tensors` does in subclasses of containers, and in dataclasses: a copy, where anything changes."""
    if isinstance(value, list | tuple):
        items = [map_tensors(change, item) for item in value]
        return value if all(map(is_, items, value)) else _with_items(value, items)
    if isinstance(value, dict):
        return _with(value, {key: map_tensors(change, item) for key, item in value.items()}, dict.__getitem__, setitem)
    if is_dataclass(value) and not isinstance(value, type):
        named = {item.name: map_tensors(change, getattr(value, item.name)) for item in fields(value)}
        return _with(value, named, getattr, object.__setattr__)
    return value


def _with_items(value: Any, items: list[Any]) -> Any:
    if isinstance(value, tuple):
        return tuple.__new__(type(value), items)
    copied = copy(value)
    copied[:] = items
    return copied


def _with(
    value: Any, items: dict[Any, Any], get: Callable[[Any, Any], Any], put: Callable[[Any, Any, Any], None]
) -> Any:
    """Only what became another object is put: classes of dicts may refuse any change."""
    changed = {key: item for key, item in items.items() if get(value, key) is not item}
    copied = copy(value) if changed else value
    for key, item in changed.items():
        put(copied, key, item)
    return copied


map_tensors = Walk(torch.Tensor, _in_other)
"""`map_tensors(change, value)` applies `change` to the tensors in nested tuples, lists, dicts and dataclasses. What
holds one that became another object is copied; the given value is left as it was."""


def is_opaque(value: Any) -> bool:
    """Whether `map_tensors` can't tell what is in `value`."""
    plain = (torch.Tensor, tuple, list, dict, set, frozenset, str, bytes, int, float, complex, type(None), torch.dtype)
    return not isinstance(value, plain) and not is_dataclass(value) and not hasattr(value, "__array__")
