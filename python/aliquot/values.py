"""Reading and writing full parameters between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress

import torch
from torch import nn

from aliquot._core import CheckpointError, Error, InvalidArgument
from aliquot.places import Place, places_of
from aliquot.sharded import ShardedModel, sharded
from aliquot.unit import Unit
from aliquot.words import dtype_in_store, from_words, in_words, numel_in_store, to_words

Write = Callable[[Place, torch.Tensor], None]

LENGTH = 1024
"""Bytes of a message between ranks."""


@contextmanager
def writing(model: ShardedModel) -> Iterator[Write]:
    """Within it, every rank writes the same parameters in the same order; rank 0's values count. Collective."""

    def write(place: Place, value: torch.Tensor) -> None:
        same = _in_store(value.detach(), place)
        if same.numel():
            model.broadcast(place.name, same)
            model.engine.write(place.unit.index, place.index, same.data_ptr(), model.stream())

    model.engine.begin_write()
    try:
        yield write
    finally:
        model.engine.end_write(model.stream())


def _in_store(value: torch.Tensor, place: Place) -> torch.Tensor:
    """A copy of the parameter's value as the engine takes it: contiguous fp32 numbers, or words."""
    device = place.model.world.device
    if in_words(place.unit.dtype):
        return to_words(value.to(device, place.unit.dtype))
    return value.to(device, torch.float32, copy=True).contiguous()


def read_unit(model: ShardedModel, unit: Unit) -> list[torch.Tensor]:
    """Private copies of the unit's full parameters. Collective on two-sided transports."""
    stored = dtype_in_store(unit.dtype)
    flat = torch.empty(model.engine.numel(unit.index), dtype=stored, device=model.world.device)
    model.engine.read(unit.index, flat.data_ptr(), model.stream())
    offsets = [model.engine.offset(unit.index, place.index) for place in unit.places]
    return [
        from_words(flat[start : start + numel_in_store(place.shape, unit.dtype)], place.shape, unit.dtype)
        for start, place in zip(offsets, unit.places, strict=True)
    ]


@contextmanager
def gathered(what: nn.Module | Iterable[nn.Parameter], write: bool = False) -> Iterator[None]:
    """Within it, parameters hold their full values, as ordinary tensors private to this rank.

    `what`: a sharded model, or some of its parameters (whole units are gathered). `write`: what rank 0 wrote is kept,
    on every rank; without it a change is dropped and is an Error at the end, where torch can tell (not through
    `param.data`). Every rank enters it, with the same parameters.
    """
    model, units = _units_of(what)
    model.require_bound()
    kept = [(unit, [_open(param, value) for param, value in _read(model, unit)]) for unit in units]
    before = [_state(unit) for unit in units]
    try:
        yield
        written = [(unit, [param.detach() for param in unit.params]) for unit in units]
        after = [_state(unit) for unit in units]
    except Exception as error:
        if write:
            with suppress(Error):  # peers that are gone need no telling, and the user's own error counts
                first_problem(model, "gathered", f"rank {model.world.rank} raised {error!r}")
        raise
    finally:
        for unit, places in kept:
            for param, data in zip(unit.params, places, strict=True):
                param.data = data
            unit.private_copies -= 1
            unit.close()
    if write:
        problem = first_problem(model, "gathered")
        if problem:
            raise Error(f"{problem} under aliquot.gathered(model, write=True): nothing was written, on any rank")
        with writing(model) as put:
            for unit, values in written:
                for place, value in zip(unit.places, values, strict=True):
                    put(place, value)
        model.note_change()
    elif before != after:
        raise Error(
            "parameters were changed under aliquot.gathered(model), which only reads: the changes are dropped. Write "
            "under aliquot.gathered(model, write=True)"
        )


def _state(unit: Unit) -> list[tuple[int, int]]:
    """Changes when a parameter is written to, or given other memory."""
    return [(param._version, param.data_ptr()) for param in unit.params]


def _read(model: ShardedModel, unit: Unit) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    values = read_unit(model, unit)
    unit.private_copies += 1
    unit.open()
    return zip(unit.params, values, strict=True)


def _open(param: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    before = param.data
    param.data = value
    return before


def _units_of(what: nn.Module | Iterable[nn.Parameter]) -> tuple[ShardedModel, list[Unit]]:
    if isinstance(what, nn.Module):
        model = sharded(what)
        return model, model.units
    places = places_of("gathered", what)
    if not places:
        raise InvalidArgument("gathered takes a sharded model, or parameters of one")
    return places[0].model, sorted({place.unit for place in places}, key=lambda unit: unit.index)


def full_state_dict(model: nn.Module, all_ranks: bool = False) -> dict[str, torch.Tensor]:
    """Full parameters and buffers by name, as `state_dict` of the unsharded model gives them, on the CPU.

    On rank 0, and empty elsewhere unless `all_ranks`. Every rank calls it.
    """
    state = sharded(model)
    state.require_bound()
    keep = all_ranks or state.world.rank == 0
    values: dict[nn.Parameter, torch.Tensor] = {}
    for unit in state.units:
        read = read_unit(state, unit)
        if keep:
            values.update(zip(unit.params, (value.to("cpu", copy=True) for value in read), strict=True))
    if not keep:
        return {}
    return {
        name: values[tensor] if isinstance(tensor, nn.Parameter) else tensor.detach().to("cpu", copy=True)
        for name, tensor in _entries(model)
    }


def full_values(model: ShardedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and full values of parameters, and then of buffers; tied ones once. One unit is in memory at a time.

    Every rank goes through all of it. Collective on two-sided transports.
    """
    names = names_of_tensors(model.root)
    for unit in model.units:
        yield from zip((names[param][0] for param in unit.params), read_unit(model, unit), strict=True)
    yield from ((of[0], buffer.detach()) for buffer, of in names.items() if not isinstance(buffer, nn.Parameter))


def load_full_state_dict(model: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Takes parameters and buffers from a full state dict; rank 0's counts, other ranks' may be empty.

    Every rank calls it. Names and shapes must match; nothing is changed if they don't. Of tied parameters one name is
    enough. A mapping that reads each tensor when it is asked for it needs memory for one at a time
    (`aliquot.load_pretrained` reads files so).
    """
    state, call = sharded(model), "load_full_state_dict"
    state.require_bound()
    problem = ""
    if state.world.rank == 0:
        problem = mismatch(model, state_dict.keys(), lambda name: state_dict[name].shape)
    if problem := first_problem(state, call, problem):
        raise InvalidArgument(f"{call}: {problem}")
    overwrite(state, call, state_dict)


def overwrite(model: ShardedModel, call: str, given: Mapping[str, torch.Tensor]) -> None:
    """Reads rank 0's tensors one after the other into parameters and buffers, which they match. Collective.

    Where one can't be read, all ranks raise the same CheckpointError; those before it have new values then.
    """

    def read(names: list[str], like: torch.Tensor) -> torch.Tensor:
        value, problem = like, ""
        if model.world.rank == 0:
            try:
                value = given[next(name for name in names if name in given)]
                if value.shape != like.shape:
                    raise ValueError(f"it has shape {tuple(value.shape)} now")
            except Exception as error:
                problem = f"{call}: {names[0]} can't be read, and part of the model has new values: {error}"
        if problem := first_problem(model, call, problem):
            raise CheckpointError(problem)
        return value

    names = names_of_tensors(model.root)
    with writing(model) as write:
        for unit in model.units:
            for place, param in zip(unit.places, unit.params, strict=True):
                write(place, read(names[param], torch.zeros(()).expand(place.shape)))
    model.note_change()
    for buffer in (tensor for tensor in names if not isinstance(tensor, nn.Parameter)):
        same = read(names[buffer], buffer).detach().to(buffer, copy=True).contiguous()
        model.broadcast(names[buffer][0], same)
        buffer.copy_(same)


def mismatch(model: nn.Module, given: Set[str], shape_of: Callable[[str], Sequence[int]]) -> str:
    """What names and shapes of a full state dict have against the model; empty if they are its own."""
    wanted = {name: tensor.shape for name, tensor in _entries(model)}
    unknown = given - wanted.keys()
    missing = {name for names in names_of_tensors(model).values() if not given & set(names) for name in names}
    if missing or unknown:
        return f"missing {sorted(missing)[:5]}, unknown {sorted(unknown)[:5]}"
    for name in given:
        shape = tuple(shape_of(name))
        if shape != tuple(wanted[name]):
            return f"{name} has shape {shape}, the model's is {tuple(wanted[name])}"
    return ""


def names_of_tensors(model: nn.Module) -> dict[torch.Tensor, list[str]]:
    """The names of each parameter and buffer, of which tied ones have several."""
    names: dict[torch.Tensor, list[str]] = {}
    for name, tensor in _entries(model):
        names.setdefault(tensor, []).append(name)
    return names


def first_problem(model: ShardedModel, operation: str, problem: str = "") -> str:
    """What the first rank that has a problem says of it, on every rank."""
    texts = model.world.communicator.all_gather(operation, problem.encode()[:LENGTH].ljust(LENGTH))
    said = (texts[i : i + LENGTH].rstrip().decode(errors="replace") for i in range(0, len(texts), LENGTH))
    return next(filter(None, said), "")


def _entries(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and persistent buffers, by the names and in the order of `state_dict`."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        buffers = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
        for name, tensor in {**module._parameters, **buffers}.items():
            if tensor is not None:
                yield (f"{prefix}.{name}" if prefix else name), tensor
