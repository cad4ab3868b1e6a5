"""What a checkpoint holds, and the commit of it: without a manifest that verifies, a folder is no checkpoint.

A manifest may come from anywhere. So it is bounded before it is read, and checked as a whole before anything else is
done with it: names, shapes, ranges and sizes can be relied on afterwards.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator

from aliquot import _core
from aliquot._core import CheckpointError
from aliquot.checkpoint.dtypes import DTYPES
from aliquot.checkpoint.json_text import parse_json

BASE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")

Item = TypeVar("Item")
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Checksum = Annotated[int, Field(ge=0, lt=1 << 32)]
Name = Annotated[str, Field(max_length=4096)]
List = Annotated[list[Item], FailFast()]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class File(_Strict):
    """A shard file."""

    bytes: Count
    crcs: List[Checksum]
    """CRC32C of each chunk, header included."""


class Piece(_Strict):
    """Elements [begin, end) of a flattened tensor: where they are."""

    begin: Count
    end: Count
    file: Name
    offset: Count
    """Bytes from the file's start."""


class Tensor(_Strict):
    """A whole tensor, in pieces that cover it in order."""

    dtype: Name
    shape: Annotated[List[Count], Field(max_length=64)]
    pieces: List[Piece]

    @property
    def numel(self) -> int:
        """Of the whole."""
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype].itemsize


class OptimizerState(_Strict):
    """What an optimizer has beside tensors. Values are as `plain` makes them."""

    kind: Name
    groups: List[dict[Name, Any]]
    """Hyperparameters, and `params`: names."""
    scalars: dict[Name, dict[Name, Any]]
    """By parameter, then by state."""
    skipped_in_a_row: Count


class RankState(_Strict):
    """What each rank has of its own."""

    rng: Any
    loader: Any


class Manifest(_Strict):
    """All of a checkpoint but the bytes of tensors."""

    format: Literal["aliquot-checkpoint"] = "aliquot-checkpoint"
    version: Literal[1] = 1
    aliquot: Name
    step: Count
    world_size: Annotated[int, Field(ge=1, lt=1 << 20)]
    stage: Annotated[int, Field(ge=0, le=3)]
    transport: Name
    configuration: Name
    """A digest of parameters, units, stage and precision."""
    files: Annotated[dict[Name, File], Field(max_length=1 << 20)]
    tensors: Annotated[dict[Name, Tensor], Field(max_length=1 << 20)]
    tied: dict[Name, Name]
    """Further names of parameters and buffers, and the first name of each."""
    gradients: List[Name]
    """Names of the parameters that have one that no step has used yet."""
    step_counts: Annotated[List[Count], Field(min_length=3, max_length=3)]
    """Steps, skipped steps, how many of those in a row."""
    optimizers: List[OptimizerState]
    schedulers: List[Any]
    scaler: Any
    ranks: List[RankState]
    extra: Any

    @model_validator(mode="after")
    def _hold_together(self) -> Manifest:
        if len(self.ranks) != self.world_size:
            raise ValueError(f"it has states of {len(self.ranks)} ranks, and {self.world_size} saved it")
        for name, file in self.files.items():
            _require_file(name, file)
        used: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for key, tensor in self.tensors.items():
            _require_whole(key, tensor)
            for piece in tensor.pieces:
                end = piece.offset + (piece.end - piece.begin) * tensor.width
                used[piece.file].append((piece.offset, end, key))
        for name, ranges in used.items():
            _require_apart(name, self.files.get(name), ranges)
        for other, first in self.tied.items():
            if not {f"param/{first}", f"buffer/{first}"} & self.tensors.keys():
                raise ValueError(f"{other} is tied to {first}, which is not there")
        return self

    def text(self) -> bytes:
        """As it is written."""
        content = self.model_dump(mode="python")
        return _canonical(content | {"checksum": checksum(content)})


def _require_file(name: str, file: File) -> None:
    if not BASE_NAME.fullmatch(name):
        raise ValueError(f"the file name {name!r:.200} is no plain name")
    if len(file.crcs) != -(-file.bytes // _core.chunk_bytes):
        raise ValueError(f"file {name}: {len(file.crcs)} checksums for {file.bytes} bytes")


def _require_whole(key: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise ValueError(f"tensor {key}: its dtype is {tensor.dtype!r:.100}")
    if tensor.numel * tensor.width >= 1 << 63:
        raise ValueError(f"tensor {key}: its shape is {tensor.shape}")
    reached = 0
    for piece in tensor.pieces:
        if piece.begin != reached or piece.end <= piece.begin:
            raise ValueError(f"tensor {key}: elements [{piece.begin}, {piece.end}) come behind {reached}")
        reached = piece.end
    if reached != tensor.numel:
        raise ValueError(f"tensor {key}: its pieces have {reached} of {tensor.numel} elements")


def _require_apart(name: str, file: File | None, ranges: list[tuple[int, int, str]]) -> None:
    if file is None:
        raise ValueError(f"tensor {ranges[0][2]} is in file {name!r:.200}, which is not listed")
    ranges.sort()
    for (_, end, key), (begin, _, other) in pairwise(ranges):
        if begin < end:
            raise ValueError(f"file {name}: {other} begins within {key}")
    if ranges[-1][1] > file.bytes:
        raise ValueError(f"file {name}: {ranges[-1][2]} ends at byte {ranges[-1][1]}, and the file at {file.bytes}")


def parse(text: bytes) -> Manifest:
    """Reads what `Manifest.text` wrote. Raises CheckpointError for anything else."""
    content = parse_json(text)
    if not isinstance(content, dict):
        raise CheckpointError(f"it is a {type(content).__name__} and not an object")
    found = content.pop("checksum", None)
    if type(found) is not int or found != checksum(content):
        raise CheckpointError("its checksum is wrong: it was changed or damaged")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{where + ': ' if where else ''}{first['msg']:.500}") from None
    if text != _canonical(content | {"checksum": found}):
        raise CheckpointError("it says the same in other characters than were written: it was changed or damaged")
    return manifest


def checksum(content: dict[str, Any]) -> int:
    """CRC32C of the canonical text."""
    return _core.crc32c(_canonical(content))


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
