"""A sharded model: its units, where each parameter lies, and the engine that holds them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.utils
import torch.utils.dlpack
from torch import nn

from aliquot import _core
from aliquot._core import Error, InvalidArgument
from aliquot.guard import ShardedParameter
from aliquot.places import Place
from aliquot.precision import NAMES, Precision
from aliquot.replicas import ReplicaGroup
from aliquot.unit import Unit
from aliquot.units import Group, Plan
from aliquot.words import dtype_in_store, from_words, in_words, numel_in_store
from aliquot.world import World

if TYPE_CHECKING:
    from aliquot.passes import Passes
    from aliquot.scaler import GradScaler
    from aliquot.sharded_optimizer import ShardedOptimizer


class ShardedModel:
    """What `aliquot.shard` made of a module. Found again by `sharded(module)`."""

    def __init__(
        self, root: nn.Module, plan: Plan, world: World, replica: ReplicaGroup, engine: _core.Engine, stage: int,
        precision: Precision,
    ) -> None:  # fmt: skip
        self.root = root
        self.world = world
        self.shards = replica.shards
        """The ranks over which it is sharded, which hold it whole among them."""
        self.replicas = replica.count
        """How many such groups there are in the world."""
        self.engine = engine
        self.stage = stage
        self.precision = precision
        self.device = world.gpu
        self.kept_fp32 = {module for kept in precision.kept_in(root) for module in kept.modules()}
        """Modules that compute in fp32 inside a 16-bit model."""
        self.units = [
            Unit(i, group.name, tuple(group.params), group.dtype, group.trainable, group.encloses_units)
            for i, group in enumerate(plan.groups)
        ]
        of_group = dict(zip(plan.groups, self.units, strict=True))
        self.needs = {module: [of_group[group] for group in groups] for module, groups in plan.needs.items()}
        self.fused: weakref.ref[object] | None = None
        """The optimizer whose states and groups the engine has."""
        self.optimizers: weakref.WeakSet[ShardedOptimizer] = weakref.WeakSet()
        self.scaler: GradScaler | None = None
        """Sets the engine's loss scale."""
        self.scale_moved = False
        """Whether it did since the gradients in the store were made."""
        self.accumulating = False
        """Whether the store has gradients of a backward that no step has used."""
        self.capturing = False
        """Whether a step is being captured into a graph: what it gives to streams is not done yet."""
        self.passes: Passes
        """Set when the hooks are installed."""
        for group, unit in of_group.items():
            self._place(group, unit)

    def _place(self, group: Group, unit: Unit) -> None:
        for index, (name, param) in enumerate(zip(group.names, group.params, strict=True)):
            holder = self.root.get_submodule(name.rpartition(".")[0])
            place = Place(self, unit, index, name, param.shape, holder)
            unit.places.append(place)
            _detach_values(param, unit.dtype, self.world.device)
            param.__dict__["_aliquot"] = place
            param.__class__ = ShardedParameter

    def unfreeze(self, unit: Unit) -> None:
        """Makes place for the unit's gradients, fp32 values and states. Every rank calls it, between steps."""
        self.passes.require_between(f"unfreezing unit '{unit.name}'")
        if in_words(unit.dtype) and unit.dtype != torch.complex64:
            raise Error(f"unit '{unit.name}' is {unit.dtype}, which stays frozen: what is to train is fp32 or bf16")
        self.engine.unfreeze(unit.index)
        unit.trainable = True
        for optimizer in self.optimizers:
            optimizer.take_unit(unit)

    def input_dtype(self, module: nn.Module) -> torch.dtype | None:
        """What a hooked module casts floating-point inputs to; None: it does not, or was told not to."""
        return None if module in self.kept_fp32 or not self.precision.casts_inputs else self.precision.computes_in

    def note_change(self) -> None:
        """The parameters have other values now: graphs that saved them must not be walked any more."""
        self.passes.autograd.note_change(param for unit in self.units for param in unit.params)

    @property
    def in_first_replica(self) -> bool:
        """Whether this rank's shards are those that a checkpoint takes."""
        return self.world.rank < self.shards.world_size

    def require_bound(self) -> None:
        """Refuses to go on where parameters were replaced."""
        for unit in self.units:
            for place in unit.places:
                place.require_bound()

    def require_no_copies(self, what: str) -> None:
        """Refuses `what` within aliquot.gathered, where the store is not what the parameters show."""
        if any(unit.private_copies for unit in self.units):
            raise Error(f"within aliquot.gathered the parameters are private copies: {what} outside of it")

    def holds_gradients(self) -> bool:
        """Whether there are gradients in the store."""
        return any(
            self.engine.has_gradient(unit.index, place.index)
            for unit in self.units
            if unit.trainable
            for place in unit.places
        )

    def gradient_dtype(self, unit: Unit) -> torch.dtype:
        """Of the numbers that the unit's gradients are in the store."""
        halves = dtype_in_store(unit.dtype) != torch.float32
        return torch.bfloat16 if halves and self.precision.grad == "bf16" else torch.float32

    def view(self, address: int, place: Place) -> torch.Tensor:
        """The tensor of the parameter at `place` in the flat unit at `address`."""
        return self.view_as(address, place, place.unit.dtype)

    def view_as(self, address: int, place: Place, dtype: torch.dtype) -> torch.Tensor:
        """The same in a flat unit of `dtype`."""
        if place.shape.numel() == 0:
            return torch.empty(place.shape, dtype=dtype, device=self.world.device)
        stored = dtype_in_store(dtype)
        start = address + stored.itemsize * self.engine.offset(place.unit.index, place.index)
        if not in_words(dtype):
            return self.tensor_at(start, place.shape, dtype)
        words = self.tensor_at(start, [numel_in_store(place.shape, dtype)], stored)
        return from_words(words, place.shape, dtype)

    def tensor_at(self, address: int, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor over memory of the engine."""
        name = "uint8" if dtype is torch.uint8 else NAMES[dtype]
        return torch.utils.dlpack.from_dlpack(_core.view(address, list(shape), self.engine, name, self.device))

    def stream(self) -> int:
        """The handle of the stream that torch works on now; 0 on a CPU."""
        return 0 if self.device < 0 else int(torch._C._cuda_getCurrentRawStream(self.device))

    def broadcast(self, what: str, tensor: torch.Tensor) -> None:
        """Overwrites a contiguous tensor on the model's device with rank 0's. Collective."""
        size = tensor.numel() * tensor.element_size()
        self.world.communicator.broadcast(what, tensor.data_ptr(), size, 0, self.stream())

    def broadcast_in_group(self, place: int, what: str, tensor: torch.Tensor) -> None:
        """The same among the ranks over which the model is sharded, from the one that has this place there."""
        size = tensor.numel() * tensor.element_size()
        self.shards.broadcast(what, tensor.data_ptr(), size, place, self.stream())

    def sum_over_ranks(self, what: str, tensor: torch.Tensor) -> None:
        """Overwrites a contiguous fp32 tensor on the model's device with the sum of all ranks'. Collective."""
        self.world.communicator.all_reduce(what, tensor.data_ptr(), tensor.numel(), self.stream())

    def gather_from_group(self, what: str, part: torch.Tensor) -> torch.Tensor:
        """A contiguous tensor on the model's device, of one length on all ranks over which the model is sharded, joined
        in rank order. Collective.
        """
        whole = part.new_empty(self.shards.world_size * part.numel())
        size = part.numel() * part.element_size()
        self.shards.all_gather_into(what, part.data_ptr(), size, whole.data_ptr(), self.stream())
        return whole

    def land(self, unit: Unit, address: int) -> None:
        """Points the unit's parameters to where it was gathered. Does nothing where they point there already."""
        if unit.private_copies or address in (0, unit.address):
            return
        if unit.address:
            self.passes.autograd.note_change(unit.params)  # graphs may point to where it lay before
        unit.address = address
        unit.open()
        with torch.inference_mode(False):
            for place, param in zip(unit.places, unit.params, strict=True):
                param.data = self.view(address, place)
        unit.close()


def _detach_values(param: nn.Parameter, dtype: torch.dtype, device: torch.device) -> None:
    """Frees the values, also of a parameter on the meta device; it stays the same object, of the same shape."""
    nowhere = torch.full((), torch.nan, device=device).to(dtype).expand(param.shape)
    param.grad = None
    if param.is_meta:
        stand_in = nn.Parameter(nowhere, requires_grad=param.requires_grad)
        torch.utils.swap_tensors(param, stand_in)  # type: ignore[no-untyped-call]
    else:
        param.data = nowhere


def remember(model: ShardedModel) -> None:
    """Lets `sharded` find the model by its root module."""
    model.root.__dict__["_aliquot"] = model


def sharded(module: nn.Module) -> ShardedModel:
    """The sharded model whose root is `module`."""
    if not isinstance(module, nn.Module):
        raise InvalidArgument(f"this takes the model that aliquot.shard returned, not a {type(module).__name__}")
    found = module.__dict__.get("_aliquot")
    if not isinstance(found, ShardedModel):
        raise InvalidArgument(f"this {type(module).__name__} is not sharded: call aliquot.shard(model) on it first")
    return found
