"""`aliquot.shard`: from a module to a sharded module."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from aliquot import _core, gpu
from aliquot._core import InvalidArgument
from aliquot.agreement import require_agreement
from aliquot.casts import cast_outputs, keep
from aliquot.hooks import install
from aliquot.materialize import initial_values
from aliquot.outside import serve_outside
from aliquot.precision import NAMES, Precision, precision_of
from aliquot.replicas import Replicas, group_count, replica_group
from aliquot.sharded import ShardedModel, remember
from aliquot.units import Plan, Units, plan_units
from aliquot.values import writing
from aliquot.words import dtype_in_store, numel_in_store
from aliquot.world import init


def shard(
    model: nn.Module,
    stage: int = 3,
    units: Units = None,
    precision: Literal["fp32", "bf16", "fp16"] | Precision | None = None,
    *,
    replicas: Replicas = 1,
    slots: int = 2,
    prefetch_bytes: int = 1 << 30,
) -> nn.Module:
    """Partitions `model` over the ranks and returns it; it trains as before, with `aliquot.AdamW`.

    `stage`: what is sharded: 0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too (ZeRO,
    https://arxiv.org/abs/1910.02054). `units`: what is gathered together: None finds repeated blocks and large layers;
    else module classes, or modules. `slots`: how many full units may be gathered at a time where gathering copies.
    `prefetch_bytes`: how much is gathered ahead of its use there.
    `replicas`: in how many groups of neighbouring ranks the model is held, sharded inside each group alone (hybrid
    sharding, HSDP); gradients are averaged over all ranks as ever. `"hosts"`: each host is a group, so that only
    gradient shards cross between hosts, once in a backward.
    `precision`: what parameters are computed with, and floating-point inputs of the model cast to; None leaves both
    as they are. Sums and masters are fp32 always (see `Precision`); fp16 wants a loss scale (see `GradScaler`).

    Every rank calls it with the same model; the values are those of rank 0. A model on the meta device is filled by its
    own `_init_weights(module)`, or its modules' `reset_parameters`, one module at a time, on the device. Parameters and
    buffers come to lie on `aliquot.init().device`, whatever device they were on. Frozen parameters are sharded, have no
    gradient and no optimizer state, and may be integers or bytes.
    """
    _check(model, stage)
    chosen = precision_of(precision)
    chosen.require_kept(model)
    world = init()
    count = group_count(world, replicas)
    plan = plan_units(model, units, chosen)
    require_agreement(world, "shard different models", _description(plan, stage, chosen, count))
    group = replica_group(world, count)
    values = initial_values(model, world.device)
    engine = _core.Engine(
        _specs(plan), group.shards, stage=stage, slots=slots, ahead_bytes=prefetch_bytes,
        poison="poison" in os.environ.get("ALIQUOT_DEBUG", "").split(","),
        device=world.gpu, fp32_master=chosen.keeps_fp32_masters(group.dtype for group in plan.groups),
        gradients=chosen.grad,
        transient=gpu.transient_memory(world.device) if world.device.type == "cuda" else None,
        replicas=group.counterparts,
    )  # fmt: skip
    sharded = ShardedModel(model, plan, world, group, engine, stage, chosen)
    _fill(sharded, values)
    _broadcast_buffers(sharded)
    remember(sharded)
    keep(model, chosen)
    sharded.passes = install(sharded)
    cast_outputs(model, chosen)
    serve_outside(sharded)
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
        if type(param) is not nn.Parameter:
            raise InvalidArgument(
                f"{name} is a {type(param).__name__}, whose behaviour it would lose in the store. Call aliquot.shard "
                "before parameters are wrapped, run a lazy module once before it, or keep quantized values as plain "
                "integer parameters or as buffers"
            )


def _specs(plan: Plan) -> list[_core.UnitSpec]:
    return [
        _core.UnitSpec(
            name=group.name,
            params=[
                _core.ParamSpec(name, numel_in_store(param.shape, group.dtype))
                for name, param in zip(group.names, group.params, strict=True)
            ],
            dtype=NAMES[dtype_in_store(group.dtype)],
            trainable=group.trainable,
            encloses_units=group.encloses_units,
        )
        for group in plan.groups
    ]


def _description(plan: Plan, stage: int, precision: Precision, replicas: int) -> Iterator[str]:
    yield f"{replicas} replicas"
    yield f"stage {stage}, master {precision.master}, grad {precision.grad}"
    yield f"casts inputs: {precision.casts_inputs}, outputs: {precision.output}"
    for group in plan.groups:
        for name, param in zip(group.names, group.params, strict=True):
            yield f"unit {group.name}: {name} {tuple(param.shape)} {group.dtype} trainable={group.trainable}"


def _fill(model: ShardedModel, values: Iterator[tuple[nn.Parameter, torch.Tensor]]) -> None:
    with writing(model) as write:
        for param, value in values:
            write(param.__dict__["_aliquot"], value)
    if model.stage < 3:
        for unit in model.units:
            model.land(unit, model.engine.pre_forward(unit.index, model.stream()))
            model.engine.post_forward(unit.index, model.stream())


def _broadcast_buffers(model: ShardedModel) -> None:
    moved: dict[torch.Tensor, torch.Tensor] = {}  # so that what is in two modules stays one
    for module in model.root.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = moved.setdefault(buffer, _writable(buffer.to(model.world.device)))
    for name, buffer in model.root.named_buffers():
        if buffer.numel():
            same = buffer.detach().contiguous()
            model.broadcast(name, same)
            buffer.copy_(same)


def _writable(buffer: torch.Tensor) -> torch.Tensor:
    """A copy if elements share memory, as `expand` has it."""
    shares = any(stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True))
    return buffer.clone(memory_format=torch.contiguous_format) if shares else buffer
