"""What a parameter is while its unit is not gathered: right, or an error that names the call to use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from aliquot._core import Error

if TYPE_CHECKING:
    from aliquot.places import Place

_METADATA_PROPERTIES = [
    "shape",
    "dtype",
    "device",
    "layout",
    "is_leaf",
    "requires_grad",
    "grad_fn",
    "ndim",
    "itemsize",
    "nbytes",
    "names",
    "output_nr",
    "_version",
    "is_sparse",
    "is_sparse_csr",
    "is_quantized",
    "is_meta",
    "is_cuda",
    "is_cpu",
    "is_mkldnn",
    "is_xla",
    "is_xpu",
    "is_mps",
    "is_nested",
    "retains_grad",
    "_backward_hooks",
    "_post_accumulate_grad_hooks",
]
_METADATA_METHODS = [
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "stride",
    "storage_offset",
    "element_size",
    "is_floating_point",
    "is_complex",
    "is_signed",
    "is_contiguous",
    "is_inference",
    "get_device",
    "requires_grad_",
    "register_hook",
    "register_post_accumulate_grad_hook",
    "__len__",
    "__hash__",
    "retain_grad",
    "_is_view",
    "type",
]


def _metadata() -> frozenset[Callable[..., Any]]:
    properties = [getattr(torch.Tensor, name, None) for name in _METADATA_PROPERTIES]
    found = [getattr(prop, accessor, None) for prop in properties for accessor in ("__get__", "__set__")]
    found += [getattr(torch.Tensor, name, None) for name in _METADATA_METHODS]
    found += [torch.is_floating_point, torch.is_complex, torch.numel]
    return frozenset(function for function in found if function is not None)


METADATA = _metadata()
"""What may be asked of a parameter or gradient whose values are elsewhere."""


REBINDING = frozenset(
    [torch.Tensor.data.__set__, torch.Tensor.set_, torch.Tensor.resize_, torch.Tensor.resize_as_]  # type: ignore[attr-defined]
)
"""What would give a parameter memory of its own."""


FREEZING = frozenset([torch.Tensor.requires_grad_, torch.Tensor.requires_grad.__set__])  # type: ignore[attr-defined]
"""What may unfreeze a parameter."""


def _arguments(args: Iterable[Any], kwargs: Mapping[str, Any]) -> Iterable[Any]:
    for arg in (*args, *kwargs.values()):
        yield from _arguments(arg, {}) if isinstance(arg, list | tuple) else (arg,)


class ShardedParameter(nn.Parameter):
    """A parameter whose unit is not gathered. It has its full shape; its values may be used where this rank holds
    all of them (stages 0 to 2).
    """  # fmt: skip

    _aliquot: Place

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        return _call_if_held(func, args, kwargs or {})

    @property
    def grad(self) -> torch.Tensor | None:
        """The gradient in the store: the reduced tensor at stages 0 and 1, else a stand-in that refuses to be used."""
        return self._aliquot.gradient()

    @grad.setter
    def grad(self, value: torch.Tensor | None) -> None:
        self._aliquot.set_gradient(value)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return self._aliquot.description()

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise Error(
            f"{self._aliquot.name} belongs to a sharded model, and copy.deepcopy would copy its hooks and not its "
            "values. Build the copy anew and give it the values of aliquot.full_state_dict(model), or read parameters "
            "under aliquot.gathered(model)"
        )

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise Error(
            f"{self._aliquot.name} belongs to a sharded model and can't be pickled: this rank holds a part of it. Save "
            "aliquot.full_state_dict(model)"
        )


class StoredGradient(torch.Tensor):
    """Stands for a gradient that is in the store, sharded: it exists, and any use of it is an error."""

    _aliquot: Place

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        return _call_if_held(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"gradient of {self._aliquot.description()}"

    @classmethod
    def of(cls, place: Place) -> StoredGradient:
        """The stand-in for the gradient of the parameter at `place`."""
        nowhere = torch.full((), torch.nan, device=place.model.world.device).to(place.gradient_dtype)
        stand_in = nowhere.expand(place.shape).as_subclass(cls)
        stand_in._aliquot = place
        return stand_in


def _call_if_held(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Calls `func` if this rank holds all the values that it may use."""
    if func in REBINDING and isinstance(args[0], ShardedParameter):
        args[0]._aliquot.refuse_rebinding(func)
    if func in FREEZING and isinstance(args[0], ShardedParameter) and all((*args[1:], *kwargs.values())):
        args[0]._aliquot.unfreeze()
    if func not in METADATA:
        for arg in _arguments(args, kwargs):
            if isinstance(arg, StoredGradient):
                arg._aliquot.refuse_gradient(func)
            if isinstance(arg, ShardedParameter) and not arg._aliquot.readable:
                arg._aliquot.refuse_values(func)
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def refuse(place: Place, func: Callable[..., Any], what: str, remedy: str) -> NoReturn:
    """Raises the error for a use of `func` on values or gradients that this rank doesn't hold."""
    operation = getattr(func, "__qualname__", None) or getattr(func, "__name__", repr(func))
    raise Error(f"rank {place.rank}: {operation} on {what} {place.name}: {remedy}")
