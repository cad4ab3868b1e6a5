"""What numbers a model is trained in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from aliquot._core import InvalidArgument

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
"""The core's names of dtypes."""

TRAINED = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""What parameters may be computed with."""


@dataclass(frozen=True)
class Precision:
    """The dtype that parameters are computed with, and where their fp32 values are kept.

    Gradients come in the parameters' dtype, and autograd adds in it what it accumulates under no_sync. Sums over ranks
    and reduced micro-steps are taken in fp32, the norm in fp64; optimizer states are fp32.
    """

    params: Literal["fp32", "bf16"] | None = None
    """None: the dtype that each parameter came in."""
    master: Literal["split", "fp32"] = "split"
    """The fp32 master weight of a bf16 parameter: the parameter and 16 more bits, which together are it exactly, or a
    plain fp32 copy."""

    gradients: Literal["fp32", "bf16"] = "fp32"
    """What the gradients of bf16 parameters are kept in, once summed in fp32. bf16 takes half the memory, and rounds
    the sum of each micro-step."""

    def dtype_of(self, name: str, param: torch.Tensor) -> torch.dtype:
        """What `param` is trained in."""
        wanted = self.casts_inputs or param.dtype
        if not param.is_floating_point() or wanted not in TRAINED.values():
            raise InvalidArgument(
                f"{name} is {param.dtype}; this version trains fp32 and bf16: convert it, or pass "
                'aliquot.shard(model, precision="bf16")'
            )
        return wanted

    @property
    def casts_inputs(self) -> torch.dtype | None:
        """What the root casts floating-point inputs to."""
        return None if self.params is None else TRAINED[self.params]


def precision_of(value: str | Precision | None) -> Precision:
    """What `aliquot.shard(precision=)` means."""
    if isinstance(value, Precision):
        return value
    match value:
        case None | "fp32" | "bf16":
            return Precision(value)
    raise InvalidArgument(f'precision is {value!r}; it is "fp32", "bf16", an aliquot.Precision, or None')
