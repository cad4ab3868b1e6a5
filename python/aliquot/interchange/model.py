"""`aliquot.save_pretrained`, `load_pretrained`, `save_dcp`, `load_dcp`: sharded models out of and into folders.

Rank 0 reads and writes the files. In memory is one tensor at a time, or one unit where all ranks give their part of it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from aliquot._core import CheckpointError
from aliquot.checkpoint.contents import tied_names
from aliquot.checkpoint.verdict import problem_of
from aliquot.interchange import dcp_reading, hugging_face_writing
from aliquot.interchange.entry import ROUNDED, Entry, Named, Source, require_rounded
from aliquot.interchange.new_folder import new_folder
from aliquot.sharded import ShardedModel, sharded
from aliquot.values import first_problem, full_values, mismatch, names_of_tensors, overwrite

Directory = str | os.PathLike[str]


def save_pretrained(
    model: nn.Module, directory: Directory, *, max_shard_size: int | str = "5GB", dtype: torch.dtype | None = None
) -> None:
    """Writes the full parameters and buffers as a new folder that `from_pretrained` of Transformers reads.

    safetensors files of at most `max_shard_size` bytes each, with an index if there are several; and the model's
    configuration, if it has one of Transformers'. `dtype`: what floating-point values are cast to; None keeps the
    dtypes that the model computes with. Of tied parameters the first name is written.

    Every rank calls it. The folder is there as a whole or, with the same CheckpointError on every rank, not at all.
    """
    require_rounded(dtype)
    limit = hugging_face_writing.size_of(max_shard_size)
    state = sharded(model)
    entries = [entry.cast_to(dtype) for entry in entries_of(state)]

    def fill(folder: Path, values: Named) -> None:
        hugging_face_writing.write(folder, entries, values, tied_names(state), limit)
        _write_configuration(model, folder, entries)

    _export(state, "save_pretrained", Path(directory), fill)


def load_pretrained(
    model: nn.Module, directory: Directory, *, rename: Callable[[str], str | None] | None = None
) -> None:
    """Takes parameters and buffers from a folder that `save_pretrained`, also that of Transformers, wrote, or from one
    safetensors file.

    Names, shapes and kinds of numbers must match; nothing is changed if they don't. Of tied parameters one name is
    enough. `rename`: gives a tensor of the files its name in the model, or None to leave it out. A model on the meta
    device is sharded first: `load_pretrained(aliquot.shard(model), directory)`.

    Every rank calls it; only rank 0 reads. What fails raises the same CheckpointError on every rank.
    """  # fmt: skip
    from aliquot.interchange import hugging_face_reading  # where safetensors is needed

    def read() -> Source:
        source = hugging_face_reading.read(Path(directory))
        return source if rename is None else source.renamed(rename)

    _import(model, "load_pretrained", read)


def save_dcp(model: nn.Module, directory: Directory, *, prefix: str = "", dtype: torch.dtype | None = None) -> None:
    """Writes the full parameters and buffers as a new folder that `torch.distributed.checkpoint.load` reads.

    `prefix`: comes before every name, such as "model.". `dtype` as for `save_pretrained`. Every rank calls it.
    """
    require_rounded(dtype)
    state = sharded(model)
    entries = [replace(entry.cast_to(dtype), name=prefix + entry.name) for entry in entries_of(state)]

    def fill(folder: Path, values: Named) -> None:
        from aliquot.interchange import dcp_writing  # which takes most of a second

        dcp_writing.write(folder, entries, map(partial(_prefixed, prefix), values))

    _export(state, "save_dcp", Path(directory), fill)


def _prefixed(prefix: str, named: tuple[str, torch.Tensor]) -> tuple[str, torch.Tensor]:
    return prefix + named[0], named[1]


def load_dcp(model: nn.Module, directory: Directory, *, prefix: str = "") -> None:
    """Takes parameters and buffers from a folder that `torch.distributed.checkpoint.save` wrote, however sharded.

    Of what is there, the tensors whose names begin with `prefix` are taken, without it. Nothing is unpickled. Else as
    `load_pretrained`.
    """

    def bare(name: str) -> str | None:
        return name[len(prefix) :] if name.startswith(prefix) else None

    _import(model, "load_dcp", lambda: dcp_reading.read(Path(directory)).renamed(bare))


def entries_of(model: ShardedModel) -> Iterator[Entry]:
    """In the order of `full_values`."""
    names = names_of_tensors(model.root)
    for unit in model.units:
        for place, param in zip(unit.places, unit.params, strict=True):
            yield Entry(names[param][0], unit.dtype, tuple(place.shape))
    for buffer, of in names.items():
        if not isinstance(buffer, nn.Parameter):
            yield Entry(of[0], buffer.dtype, tuple(buffer.shape))


def _export(model: ShardedModel, call: str, path: Path, fill: Callable[[Path, Named], None]) -> None:
    model.require_bound()
    values, problem = full_values(model), ""
    if model.world.rank == 0:
        try:
            with new_folder(path) as draft:
                fill(draft, values)
        except Exception as error:
            problem = problem_of(model.world, error)
    deque(values, maxlen=0)  # whatever happened to rank 0, the others need its part of what comes
    if problem := first_problem(model, call, problem):
        raise CheckpointError(f"{call}: {problem}")


def _import(model: nn.Module, call: str, read: Callable[[], Source]) -> None:
    state = sharded(model)
    state.require_bound()
    source: Source | None = None
    problem = ""
    if state.world.rank == 0:
        try:
            source = read()
            problem = mismatch(model, source.keys(), lambda name: source.entries[name].shape) or _other(model, source)
        except Exception as error:
            problem = problem_of(state.world, error)
    if problem := first_problem(state, call, problem):
        raise CheckpointError(f"{call}: {problem}")
    overwrite(state, call, source or {})


def _other(model: nn.Module, source: Source) -> str:
    """What is of another kind of numbers: floating-point numbers are rounded, others are not made of them."""
    for tensor, names in names_of_tensors(model).items():
        for entry in (source.entries[name] for name in names if name in source):
            if entry.dtype != tensor.dtype and not {entry.dtype, tensor.dtype} <= ROUNDED:
                return f"{entry.name} is {entry.dtype}, and {tensor.dtype} in the model"
    return ""


def _write_configuration(model: nn.Module, folder: Path, entries: Iterable[Entry]) -> None:
    """As `save_pretrained` of Transformers does."""
    config, generation = (getattr(model, name, None) for name in ("config", "generation_config"))
    if config is not None and hasattr(config, "save_pretrained"):
        config = deepcopy(config)
        config.architectures = [type(model).__name__]
        config.dtype = next((entry.dtype for entry in entries if entry.dtype in ROUNDED), None)
        config.save_pretrained(folder)
    if generation is not None and hasattr(generation, "save_pretrained"):
        generation.save_pretrained(folder)
