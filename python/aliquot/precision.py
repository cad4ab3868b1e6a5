"""What numbers a model is trained in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from aliquot._core import InvalidArgument

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
"""The core's names of dtypes."""

TRAINED = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What parameters may be computed with."""


@dataclass(frozen=True)
class Precision:
    """The dtype that parameters are computed with, and where their fp32 values are kept.

    Gradients come in the parameters' dtype, and autograd adds in it what it accumulates under no_sync. Sums over ranks
    and reduced micro-steps are taken in fp32, the norm in fp64; optimizer states are fp32.
    """

    param: Literal["fp32", "bf16", "fp16"] | None = None
    """What parameters are gathered as and computed with (FSDP2's `param_dtype`). None: the dtype that each came in."""
    compute: Literal["fp32", "bf16", "fp16"] | None = None
    """The same as `param`, or None, which means that: modules compute with the parameters as they are gathered."""
    reduce: Literal["fp32"] = "fp32"
    """What sums over ranks are taken in (`reduce_dtype`). 16-bit gradients travel in 16 bits on GPUs all the same."""
    master: Literal["split", "fp32"] | None = None
    """The fp32 master weight of a 16-bit parameter. "split", for bf16: the parameter and 16 more bits, which together
    are it exactly. "fp32": a plain copy. None: "split" where no parameter is fp16, else "fp32"."""
    grad: Literal["fp32", "bf16"] = "fp32"
    """What the gradients of 16-bit parameters are kept in, once summed in fp32. bf16, on GPUs, takes half the memory,
    and rounds the sum of each micro-step."""
    output: Literal["fp32", "bf16", "fp16"] | None = None
    """What floating-point outputs of the model are cast to (`output_dtype`). None: they stay as they are."""

    keep_fp32: Sequence[type[nn.Module] | nn.Module] = ()
    """Module classes, or modules of the model, whose parameters and buffers are fp32 and that compute in it, with all
    that is in them. What goes in is cast to fp32, and what comes out to `param`, or to the dtype of what went in."""
    casts_inputs: bool = True
    """Whether floating-point inputs of the model, and of modules that are units, are cast to `param`
    (`cast_forward_inputs`)."""

    def __post_init__(self) -> None:
        _require("param", self.param, (None, *TRAINED))
        _require("compute", self.compute, (None, *TRAINED))
        _require("reduce", self.reduce, TRAINED)
        _require("master", self.master, (None, "split", "fp32"))
        _require("grad", self.grad, ("fp32", "bf16"))
        _require("output", self.output, (None, *TRAINED))
        self._require_possible()
        if not isinstance(self.keep_fp32, Sequence):
            raise InvalidArgument(
                f"Precision: keep_fp32 is {self.keep_fp32!r:.200}; it is a list of module classes, or of modules"
            )
        if self.param is not None:
            self.keeps_fp32_masters([TRAINED[self.param]])

    def _require_possible(self) -> None:
        if self.compute not in (None, self.param):
            raise InvalidArgument(
                f'Precision: compute is "{self.compute}" and param {self.param!r}: modules compute with the parameters '
                f'as they are gathered. Precision(param="{self.compute}", master="fp32") gathers and computes in '
                f"{self.compute} and steps fp32 masters; keep_fp32= leaves modules in fp32; torch.autocast computes "
                "in 16 bits what it chooses, with fp32 parameters"
            )
        if self.reduce != "fp32":
            raise InvalidArgument(
                f'Precision: reduce is "{self.reduce}", but sums over ranks are taken in fp32: leave it out. 16-bit '
                'gradients travel in 16 bits on GPUs all the same, and Precision(grad="bf16") keeps their sums in bf16'
            )

    def keeps_fp32_masters(self, dtypes: Iterable[torch.dtype]) -> bool:
        """Whether masters are plain copies, for parameters of these dtypes."""
        fp16 = torch.float16 in dtypes
        if fp16 and self.master == "split":
            raise InvalidArgument('only bf16 is the upper half of fp32: fp16 takes Precision(master="fp32"), or None')
        return fp16 or self.master == "fp32"

    def dtype_of(self, name: str, param: torch.Tensor, kept: bool = False) -> torch.dtype:
        """What `param` is trained in; `kept`: it is in a module of `keep_fp32`."""
        wanted = torch.float32 if kept else self.computes_in or param.dtype
        if not param.is_floating_point() or wanted not in TRAINED.values():
            raise InvalidArgument(
                f"{name} is {param.dtype}; this version trains fp32, bf16 and fp16: convert it, or pass "
                'aliquot.shard(model, precision="bf16")'
            )
        return wanted

    @property
    def computes_in(self) -> torch.dtype | None:
        """The dtype of all parameters but those that are kept; None: each has its own."""
        return None if self.param is None else TRAINED[self.param]

    @property
    def outputs_in(self) -> torch.dtype | None:
        """The dtype of the model's outputs; None: as they are."""
        return None if self.output is None else TRAINED[self.output]

    def kept_in(self, model: nn.Module) -> Iterator[nn.Module]:
        """The outermost modules that are kept in fp32."""
        classes = tuple(kept for kept in self.keep_fp32 if isinstance(kept, type))
        pending = [model]
        while pending:
            module = pending.pop()
            if isinstance(module, classes) or module in self.keep_fp32:
                yield module
            else:
                pending += module.children()

    def require_kept(self, model: nn.Module) -> None:
        """Refuses to keep a module of another model, or nothing at all."""
        inside = set(model.modules())
        others = [kept for kept in self.keep_fp32 if isinstance(kept, nn.Module) and kept not in inside]
        if others or (self.keep_fp32 and next(self.kept_in(model), None) is None):
            raise InvalidArgument(f"Precision: keep_fp32 holds {others or self.keep_fp32!r:.200}: not in the model")


def _require(field: str, value: str | None, choices: Iterable[str | None]) -> None:
    if value not in (known := list(choices)):
        raise InvalidArgument(f"Precision: {field} is {value!r}; it is one of {known}")


def precision_of(value: str | Precision | None) -> Precision:
    """What `aliquot.shard(precision=)` means."""
    if isinstance(value, Precision):
        return value
    match value:
        case None | "fp32" | "bf16" | "fp16":
            return Precision(value)
    raise InvalidArgument(f'precision is {value!r}; it is "fp32", "bf16", "fp16", an aliquot.Precision, or None')
