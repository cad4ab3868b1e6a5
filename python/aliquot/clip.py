"""Clipping, for loops that do it themselves."""

from __future__ import annotations

import math

import torch
from torch import nn

from aliquot.sharded import sharded
from aliquot.sharded_optimizer import require_reduced


def clip_grad_norm_(model: nn.Module, max_norm: float) -> torch.Tensor:
    """Scales the gradients in the store so that their global norm is at most `max_norm`; returns the norm before.

    Every rank calls it, between backward and step. `AdamW(max_grad_norm=)` does the same without a pass of its own.
    Gradients that are not finite are left alone, and the norm is NaN: the step will skip them.
    """
    state = sharded(model)
    require_reduced(state)
    report = state.engine.gradient_report(state.stream())
    if report.non_finite:
        return torch.tensor(math.nan)
    factor = max_norm / (report.norm + 1e-6)
    if factor < 1:
        state.engine.scale_gradients(factor, state.stream())
    return torch.tensor(report.norm)
