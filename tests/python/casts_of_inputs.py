"""Inputs of a 16-bit model that is not sharded, cast as FSDP2 and Aliquot cast them."""

from __future__ import annotations

from typing import Any

import torch
from aliquot.casts import to_dtype
from aliquot.tensors import map_tensors
from torch import nn


def cast_inputs(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts floating-point inputs of the model."""

    def cast(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return map_tensors(to_dtype(dtype), (args, kwargs))

    model.register_forward_pre_hook(cast, with_kwargs=True)
