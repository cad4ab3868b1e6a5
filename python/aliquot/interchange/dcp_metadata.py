"""What the `.metadata` file of a torch.distributed.checkpoint folder says of tensors.

The file is a pickle. It is read as data (`pickle_data.py`), and everything in it checked before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from aliquot._core import CheckpointError
from aliquot.checkpoint import folder
from aliquot.interchange.entry import Entry
from aliquot.interchange.pickle_data import Call, Global, Pairs, read_pickle
from aliquot.interchange.torch_file import DTYPES_BY_NAME

NAME = ".metadata"
MAX_BYTES = 64 << 20
MAX_SIZE = 1 << 62
MAX_COMPARISONS = 1 << 20
"""Of chunks with one another, to see that they don't overlap."""
BASE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")

HERE = "torch.distributed.checkpoint.metadata."
FILES = "torch.distributed.checkpoint.filesystem."
ALLOWED = {
    *DTYPES_BY_NAME,
    *(HERE + name for name in ("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata")),
    *(HERE + name for name in ("TensorProperties", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
    FILES + "_StorageInfo", "torch.Size", "torch.serialization._get_layout", "collections.OrderedDict",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    "builtins.getattr",  # by which some versions of Python 3.11 pickle an enumeration's members
}  # fmt: skip
"""What such a pickle names. Nothing of it is called."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor, and where its bytes are."""

    begin: Shape
    size: Shape
    file: str
    offset: int
    length: int


def read_metadata(directory: Path) -> dict[str, tuple[Entry, list[Chunk]]]:
    """The tensors, and the chunks that cover each. Other objects, which are pickles, are passed over."""
    path = directory / NAME
    try:
        return dict(_tensors(read_pickle(folder.read(path, MAX_BYTES), ALLOWED)))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except (CheckpointError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: {error!s:.300}") from None


def _tensors(value: Any) -> Iterator[tuple[str, tuple[Entry, list[Chunk]]]]:
    metadata = _fields(value, HERE + "Metadata")
    stored = {_index(key): _stored(info) for key, info in _pairs(metadata["storage_data"])}
    for name, described in _pairs(metadata["state_dict_metadata"]):
        if not isinstance(name, str):
            raise ValueError("a tensor has no name")
        if not (isinstance(described, Call) and described.of == HERE + "BytesStorageMetadata"):
            yield name, _tensor(name, _fields(described, HERE + "TensorStorageMetadata"), stored)


def _tensor(
    name: str, fields: dict[str, Any], stored: dict[tuple[str, Shape | None], tuple[str, int, int]]
) -> tuple[Entry, list[Chunk]]:
    properties = fields["properties"]
    entry = Entry(name, _dtype(name, properties), _shape(fields["size"]))
    chunks = []
    for chunk in fields["chunks"]:
        of_chunk = _fields(chunk, HERE + "ChunkStorageMetadata")
        begin, size = _shape(of_chunk["offsets"]), _shape(of_chunk["sizes"])
        if (name, begin) not in stored:
            raise ValueError(f"{name}: there is nothing stored of what begins at {begin}")
        chunks.append(Chunk(begin, size, *stored[name, begin]))
    _require_cover(entry, chunks)
    return entry, chunks


def _dtype(name: str, properties: Any) -> torch.dtype:
    """A TensorProperties keeps a tuple whose first item is the dtype."""
    if isinstance(properties, Call) and properties.of == HERE + "TensorProperties":
        state = properties.state
        first = state[0] if isinstance(state, tuple) and state else None
        if isinstance(first, Global) and (dtype := DTYPES_BY_NAME.get(first.name)) is not None:
            return dtype
    raise ValueError(f"{name}: its dtype is not to be read")


def _require_cover(entry: Entry, chunks: list[Chunk]) -> None:
    """Every element is in one chunk, and in no second one."""
    rank = len(entry.shape)
    for chunk in chunks:
        inside = len(chunk.begin) == len(chunk.size) == rank and all(
            begin + size <= whole for begin, size, whole in zip(chunk.begin, chunk.size, entry.shape, strict=True)
        )
        if not inside:
            raise ValueError(f"{entry.name}: the chunk at {chunk.begin} of size {chunk.size} is not in {entry.shape}")
    if sum(prod(chunk.size) for chunk in chunks) != entry.numel:
        raise ValueError(f"{entry.name}: its chunks are not {entry.numel} elements")
    if _overlap(chunks, rank):
        raise ValueError(f"{entry.name}: its chunks overlap")


def _overlap(chunks: list[Chunk], rank: int) -> bool:
    """Looks along the dimension that they were cut in most often, and compares those that meet there."""
    boxes = [chunk for chunk in chunks if prod(chunk.size)]
    along = max(range(rank), key=lambda d: len({box.begin[d] for box in boxes}), default=None)
    if along is None:
        return len(boxes) > 1
    boxes.sort(key=lambda box: box.begin[along])
    comparisons = 0
    for number, box in enumerate(boxes):
        end = box.begin[along] + box.size[along]
        for other in boxes[number + 1 :]:
            if other.begin[along] >= end:
                break
            comparisons += 1
            if comparisons > MAX_COMPARISONS:
                raise ValueError("it is in more chunks than can be compared")
            if _meet(box, other):
                return True
    return False


def _meet(one: Chunk, other: Chunk) -> bool:
    return all(
        a < b + bs and b < a + as_ for a, as_, b, bs in zip(one.begin, one.size, other.begin, other.size, strict=True)
    )


def _fields(value: Any, kind: str) -> dict[str, Any]:
    """The attributes of an object of a dataclass."""
    if not isinstance(value, Call) or value.of != kind:
        found = value.of if isinstance(value, Call) else type(value).__name__
        raise ValueError(f"there is a {found!s:.100} where a {kind.rpartition('.')[2]} should be")
    return {name: item for name, item in _pairs(value.state) if isinstance(name, str)}


def _pairs(value: Any) -> Pairs:
    if not isinstance(value, Pairs):
        raise ValueError(f"there is a {type(value).__name__} where a dict should be")
    return value


def _shape(value: Any) -> Shape:
    match value:
        case Call(of="torch.Size", args=(tuple(numbers),)) if _are_counts(numbers) and prod(numbers) < MAX_SIZE:
            return numbers
    raise ValueError("there is a shape that is none")


def _are_counts(numbers: tuple[Any, ...]) -> bool:
    return len(numbers) <= 64 and all(type(number) is int and 0 <= number < MAX_SIZE for number in numbers)


def _index(value: Any) -> tuple[str, Shape | None]:
    fields = _fields(value, HERE + "MetadataIndex")
    offset = fields.get("offset")
    if not isinstance(fields["fqn"], str):
        raise ValueError("something stored has no name")
    return fields["fqn"], None if offset is None else _shape(offset)


def _stored(value: Any) -> tuple[str, int, int]:
    fields = _fields(value, FILES + "_StorageInfo")
    file, offset, length = fields["relative_path"], fields["offset"], fields["length"]
    if not isinstance(file, str) or not BASE_NAME.fullmatch(file):
        raise ValueError(f"something is said to be in {_shown(file)}, which is no plain name of a file")
    if not _are_counts((offset, length)):
        raise ValueError(f"something is said to be at {_shown(offset)}, of length {_shown(length)}")
    if fields.get("transform_descriptors"):
        raise ValueError(f"{file} is compressed or changed by an extension of torch's, which is not read here")
    return file, offset, length


def _shown(value: Any) -> str:
    """For an error. Tuples that share their items may take more to print than there is."""
    return f"{value!r:.200}" if isinstance(value, str | int) else f"a {type(value).__name__}"
