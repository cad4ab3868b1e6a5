"""Clipping, for loops that do it themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real

import torch
from torch import nn

from aliquot._core import InvalidArgument
from aliquot.norms import clip, clip_factor, norm_of, require_alike, square_sums
from aliquot.places import places_of
from aliquot.sharded import ShardedModel, sharded
from aliquot.sharded_optimizer import require_reduced


def clip_grad_norm_(what: nn.Module | nn.Parameter | Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scales gradients in the store so that their norm is at most `max_norm`; returns the norm before.

    `what`: a sharded model, or some of its parameters, whose gradients alone are measured and scaled: those of a group,
    or of a part of the model. `max_norm=math.inf` measures them. Every rank calls it, with the same parameters, between
    backward and step. `AdamW(max_grad_norm=)` clips by the norm of all without a pass of its own. Gradients that are
    not finite are left alone, and the norm is NaN: the step will skip them.
    """
    if not (isinstance(max_norm, Real | torch.Tensor) and max_norm >= 0):
        raise InvalidArgument(f"max_norm is {max_norm!r}; it is a number from 0 on, or math.inf, which clips nothing")
    max_norm = float(max_norm)
    if isinstance(what, nn.Module):
        return torch.tensor(_clip_all(sharded(what), max_norm))
    places = places_of("clip_grad_norm_", [what] if isinstance(what, nn.Parameter) else what)
    if not places:
        return torch.tensor(0.0)
    model = places[0].model
    require_reduced(model)
    require_alike(model, [places], [max_norm])
    norm = norm_of(places, square_sums(model))
    clip(places, norm, max_norm)
    return torch.tensor(norm)


def _clip_all(model: ShardedModel, max_norm: float) -> float:
    require_reduced(model)
    report = model.engine.gradient_report(model.stream())
    if report.non_finite:
        return math.nan
    factor = clip_factor(report.norm, max_norm)
    if factor < 1:
        model.engine.scale_gradients(factor, model.stream())
    return report.norm
