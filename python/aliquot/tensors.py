"""The tensors in what modules take and return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch


def map_tensors(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """Applies `change` to the tensors in nested tuples, lists, dicts and dataclasses."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(change, item) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(change, item) for item in value)
    if isinstance(value, dict):
        return _in_dict(change, value)
    if is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            map_tensors(change, getattr(value, item.name))
    return value


def is_opaque(value: Any) -> bool:
    """Whether `map_tensors` can't tell what is in `value`."""
    plain = (torch.Tensor, tuple, list, dict, set, frozenset, str, bytes, int, float, complex, type(None), torch.dtype)
    return not isinstance(value, plain) and not is_dataclass(value) and not hasattr(value, "__array__")


def _in_dict(change: Callable[[torch.Tensor], torch.Tensor], value: dict[Any, Any]) -> dict[Any, Any]:
    changed = {key: map_tensors(change, item) for key, item in value.items()}
    if type(value) is dict:
        return changed
    value.update(changed)
    return value
