"""`aliquot.shard`: from a module to a sharded module."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import nn

from aliquot import _core
from aliquot._core import InvalidArgument
from aliquot.agreement import require_agreement
from aliquot.hooks import install
from aliquot.materialize import initial_values
from aliquot.sharded import ShardedModel, remember
from aliquot.units import Plan, Units, plan_units
from aliquot.values import writing
from aliquot.world import World, init


def shard(
    model: nn.Module, stage: int = 3, units: Units = None, *, slots: int = 2, prefetch_bytes: int = 64 << 20
) -> nn.Module:
    """Partitions `model` over the ranks and returns it; it trains as before, with `aliquot.AdamW`.

    `stage`: what is sharded: 0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too (ZeRO,
    https://arxiv.org/abs/1910.02054). `units`: what is gathered together: None finds repeated blocks and large layers;
    else module classes, or modules. `slots`: how many full units may be gathered at a time where gathering copies.
    `prefetch_bytes`: how much is gathered ahead of its use there.

    Every rank calls it with the same model; the values are those of rank 0. A model on the meta device is filled
    by its modules' `reset_parameters`, one module at a time. Parameters are fp32, on the CPU. Frozen parameters are
    sharded, and have no gradient and no optimizer state.
    """
    _check(model, stage)
    world = init()
    plan = plan_units(model, units)
    require_agreement(world.communicator, _description(plan, stage))
    engine = _core.Engine(
        _specs(plan), world.communicator, stage=stage, slots=slots, ahead_bytes=prefetch_bytes,
        poison="poison" in os.environ.get("ALIQUOT_DEBUG", "").split(","),
    )  # fmt: skip
    values = initial_values(model)
    sharded = ShardedModel(model, plan, world, engine, stage)
    _fill(sharded, values)
    _broadcast_buffers(model, world)
    remember(sharded)
    sharded.passes = install(sharded)
    return model


def _check(model: nn.Module, stage: int) -> None:
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"shard takes an nn.Module, not a {type(model).__name__}")
    if "_aliquot" in model.__dict__:
        raise InvalidArgument("the model is sharded already")
    if stage not in (0, 1, 2, 3):
        raise InvalidArgument(f"stage is {stage!r}; it is 0, 1, 2 or 3")
    for name, param in model.named_parameters():
        if "_aliquot" in param.__dict__:
            raise InvalidArgument(f"{name} belongs to another sharded model already")
        if param.dtype != torch.float32:
            raise InvalidArgument(f"{name} is {param.dtype}; this version shards torch.float32: call model.float()")
        if param.device.type not in ("cpu", "meta"):
            raise InvalidArgument(f"{name} is on {param.device}; this version trains on CPUs: call model.cpu()")


def _specs(plan: Plan) -> list[_core.UnitSpec]:
    return [
        _core.UnitSpec(
            name=group.name,
            params=[
                _core.ParamSpec(name, param.numel()) for name, param in zip(group.names, group.params, strict=True)
            ],
            trainable=group.trainable,
            encloses_units=group.encloses_units,
        )
        for group in plan.groups
    ]


def _description(plan: Plan, stage: int) -> Iterator[str]:
    yield f"aliquot {_core.__version__}, stage {stage}"
    for group in plan.groups:
        for name, param in zip(group.names, group.params, strict=True):
            yield f"unit {group.name}: {name} {tuple(param.shape)} {param.dtype} trainable={group.trainable}"


def _fill(model: ShardedModel, values: Iterator[tuple[nn.Parameter, torch.Tensor]]) -> None:
    with writing(model) as write:
        for param, value in values:
            write(param.__dict__["_aliquot"], value)
    if model.stage < 3:
        for unit in model.units:
            model.land(unit, model.engine.pre_forward(unit.index))
            model.engine.post_forward(unit.index)


def _broadcast_buffers(model: nn.Module, world: World) -> None:
    for name, buffer in model.named_buffers():
        if buffer.numel():
            same = buffer.detach().contiguous()
            world.communicator.broadcast(name, same.data_ptr(), same.numel() * same.element_size(), root=0)
            buffer.copy_(same)
