"""What of a model and its optimizers is in a checkpoint, and where this rank keeps its parts of it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from aliquot._core import Error
from aliquot.checkpoint.parts import Halves, Memory, Part, Plain
from aliquot.passes import require_finished
from aliquot.places import Place
from aliquot.scaler import GradScaler
from aliquot.sharded import ShardedModel
from aliquot.sharded_optimizer import ShardedOptimizer
from aliquot.states import QuantizedState, State
from aliquot.tensors import TENSORS
from aliquot.unit import Unit
from aliquot.values import names_of_tensors
from aliquot.words import dtype_in_store

if TYPE_CHECKING:
    from aliquot.checkpoint.manifest import Manifest

logger = logging.getLogger("aliquot")

Held = list[tuple[int, int, int, int]]
"""Parameter, begin, numel and address, as the engine gives them."""


def param_key(name: str) -> str:
    """Of a parameter's value: fp32 where there is a master, else in the dtype that it is computed with."""
    return f"param/{name}"


def state_key(optimizer: int, state: str, name: str) -> str:
    """Of an optimizer's state of a parameter."""
    return f"optimizer/{optimizer}/{state}/{name}"


def gradient_key(name: str) -> str:
    """Of a parameter's gradient, where a step has yet to use it."""
    return f"grad/{name}"


def buffer_key(name: str, rank: int = 0) -> str:
    """Of a buffer: rank 0's, or that of a rank where it differs."""
    return f"buffer@{rank}/{name}" if rank else f"buffer/{name}"


def places_of(model: ShardedModel) -> Iterator[Place]:
    """Of all parameters, tied ones once."""
    return (place for unit in model.units for place in unit.places)


def buffers_of(model: ShardedModel) -> dict[str, torch.Tensor]:
    """Those that a state dict holds, tied ones once, by their first name."""
    named = names_of_tensors(model.root)
    return {names[0]: tensor for tensor, names in named.items() if not isinstance(tensor, nn.Parameter)}


def tied_names(model: ShardedModel) -> dict[str, str]:
    """Further names of tied parameters and buffers, and the first of each."""
    return {other: first for first, *others in names_of_tensors(model.root).values() for other in others}


def params_to_save(model: ShardedModel) -> Iterator[Part]:
    """The share of every parameter that this rank saves."""
    for unit in model.units:
        yield from _params(model, unit, {role: _to_save(model, unit, role) for role in _roles(model, unit)})


def params_to_load(model: ShardedModel) -> Iterator[Part]:
    """The part of every parameter that this rank has to be given."""
    for unit in model.units:
        held = {role: model.engine.parts_to_load(unit.index, role) for role in _roles(model, unit)}
        yield from _params(model, unit, held)


def _to_save(model: ShardedModel, unit: Unit, role: str) -> Held:
    return model.engine.parts_to_save(unit.index, role) if model.in_first_replica else []


def _roles(model: ShardedModel, unit: Unit) -> tuple[str, ...]:
    """What holds a unit's values."""
    return {None: ("param",), "fp32": ("master",), "low16": ("param", "master")}[model.engine.master_form(unit.index)]


def _params(model: ShardedModel, unit: Unit, held: dict[str, Held]) -> Iterator[Part]:
    dtype = unit.dtype if "master" not in held else torch.float32
    for parts in zip(*held.values(), strict=True):
        index, first, numel, _ = parts[0]
        place = unit.places[index]
        stored = dtype_in_store(dtype)
        begin = first * stored.itemsize // dtype.itemsize
        end = min((first + numel) * stored.itemsize // dtype.itemsize, place.shape.numel())
        if len(parts) == 2:
            memory: Memory = Halves(*(model.tensor_at(address, (numel,), torch.bfloat16) for *_, address in parts))
        else:
            words = model.tensor_at(parts[0][3], (numel,), stored)
            memory = Plain(words.view(dtype)[: end - begin])
        if end > begin:
            yield Part(param_key(place.name), dtype, place.shape, begin, end, memory)


def states_to_save(number: int, optimizer: ShardedOptimizer) -> Iterator[Part]:
    """The same of an optimizer's states. `number`: which of the optimizers it is."""
    model = optimizer.model
    shares = {
        unit.places[index]: (begin, begin + numel)
        for unit in model.units
        for index, begin, numel, _ in _to_save(model, unit, "param")
    }
    for state in optimizer.states():
        first, last = shares.get(state.place, (0, 0))
        begin, end = max(first, state.begin), min(last, state.begin + state.value.numel())
        if begin < end:
            key = state_key(number, state.name, state.place.name)
            dtype, memory = state.value.dtype, _state_memory(state, begin, end)
            yield Part(key, dtype, state_shape(state.place), begin, end, memory)


def _state_memory(state: State | QuantizedState, begin: int, end: int) -> Memory:
    if isinstance(state, QuantizedState):
        return state.value
    return Plain(state.value[begin - state.begin : end - state.begin].contiguous())


def gradients_to_save(model: ShardedModel) -> Iterator[Part]:
    """The same of gradients that no step has used yet."""
    for unit in model.units if model.accumulating else ():
        if model.engine.holds_gradients(unit.index):
            for part in _to_save(model, unit, "grad"):
                yield _gradient(model, unit, part)


def gradients_to_load(model: ShardedModel, unit: Unit) -> Iterator[Part]:
    """The part of a unit's gradients that this rank has to be given."""
    return (_gradient(model, unit, part) for part in model.engine.parts_to_load(unit.index, "grad"))


def _gradient(model: ShardedModel, unit: Unit, held: tuple[int, int, int, int]) -> Part:
    index, begin, numel, address = held
    place, dtype = unit.places[index], model.gradient_dtype(unit)
    memory = Plain(model.tensor_at(address, (numel,), dtype))
    return Part(gradient_key(place.name), dtype, state_shape(place), begin, begin + numel, memory)


def names_with_gradients(model: ShardedModel) -> list[str]:
    """Of parameters that have one that no step has used yet, as far as this rank knows."""
    return [
        place.name
        for place in (places_of(model) if model.accumulating else ())
        if model.engine.has_gradient(place.unit.index, place.index)
    ]


def pieces_to_load(optimizer: ShardedOptimizer) -> Iterator[tuple[Place, int, int]]:
    """Of the parameters that it steps now: place, begin and numel of what this rank has to be given."""
    model, places = optimizer.model, set(optimizer.places())
    for unit in model.units:
        if not unit.trainable:
            continue
        for index, begin, numel, _ in model.engine.parts_to_load(unit.index, "param"):
            if unit.places[index] in places:
                yield unit.places[index], begin, numel


def note_frozen(optimizers: Iterable[ShardedOptimizer], manifest: Manifest) -> None:
    """Says of which parameters states are left behind: what can't be stepped has none."""
    left = [
        place.name
        for number, optimizer in enumerate(optimizers)
        for place in optimizer.places()
        if not place.unit.trainable and place.name in manifest.optimizers[number].scalars
    ]
    if left:
        logger.warning(
            "%s and %d more parameters were trained when they were saved and are frozen here: their states are not "
            "loaded, and begin anew when they are unfrozen. To go on with them, call requires_grad_(True) before "
            "load_checkpoint", left[0], len(left) - 1,
        )  # fmt: skip


def state_shape(place: Place) -> torch.Size:
    """Of states: the parameter's, and behind it the two parts of complex numbers."""
    return torch.Size((*place.shape, 2)) if place.unit.dtype.is_complex else place.shape


def buffer_parts(buffers: dict[str, torch.Tensor], rank: int) -> Iterator[Part]:
    """Buffers on the host, which are all there."""
    for name, buffer in buffers.items():
        if buffer.numel():
            key = buffer_key(name, rank)
            yield Part(key, buffer.dtype, buffer.shape, 0, buffer.numel(), Plain(buffer.view(-1)))


def configuration_digest(model: ShardedModel) -> str:
    """Of what `aliquot.shard` was told and found."""
    lines = [f"stage {model.stage}, {model.precision.param}, {model.precision.master}, {model.precision.grad}"]
    for unit in model.units:
        lines += (
            f"{unit.name}: {place.name} {tuple(place.shape)} {unit.dtype} {unit.trainable}" for place in unit.places
        )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def require_between_steps(model: ShardedModel, verb: str) -> None:
    """Refuses to save or load where values or gradients are elsewhere than in the store."""
    model.require_bound()
    require_finished(model.passes)
    model.require_no_copies(verb)


def require_reduced(model: ShardedModel) -> None:
    """Refuses to save while gradients are on each rank alone."""
    for unit in model.units:
        if TENSORS.gradients(unit.params):
            raise Error(
                f"gradients of unit '{unit.name}' were not reduced (aliquot.no_sync), so that no checkpoint can hold "
                "them: save behind a backward that reduces, or behind the step"
            )


def require_scale(model: ShardedModel, scaler: GradScaler | None) -> None:
    """Refuses to save gradients without the scale that they have."""
    if model.accumulating and model.scaler not in (None, scaler):
        raise Error("there are scaled gradients that no step has used yet: give save_checkpoint the scaler= too")


def optimizers_of(
    model: ShardedModel, given: ShardedOptimizer | Iterable[ShardedOptimizer] | None
) -> list[ShardedOptimizer]:
    """One, several or none, of this model."""
    optimizers = [] if given is None else [given] if isinstance(given, torch.optim.Optimizer) else list(given)
    for optimizer in optimizers:
        if not isinstance(optimizer, ShardedOptimizer) or optimizer.model is not model:
            raise Error(
                f"opt is a {type(optimizer).__name__} that was not made for this model: give it that of "
                "aliquot.AdamW(model), or another of Aliquot's optimizers"
            )
    return optimizers
