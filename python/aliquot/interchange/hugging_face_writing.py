"""Writes folders as `from_pretrained` of Transformers reads them: safetensors files, and an index of several."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from aliquot._core import InvalidArgument
from aliquot.interchange.entry import Entry, Named
from aliquot.interchange.tensor_file import TensorFile

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([kKMGT]?)(i?)B")


def size_of(text: int | str) -> int:
    """Bytes: a number, or such as "5GB" (10^9) and "5GiB" (2^30)."""
    match = SIZE.fullmatch(text) if isinstance(text, str) else None
    if match:
        power = " KMGT".index(match[2].upper() or " ")
        text = int(float(match[1]) * (1024 if match[3] else 1000) ** power)
    if not isinstance(text, int) or text < 1:
        raise InvalidArgument(f'a size is {text!r}; it is a number of bytes, or such as "5GB" or "500MiB"')
    return text


def write(
    folder: Path, entries: Iterable[Entry], values: Named, tied: Mapping[str, str], max_shard_size: int | str
) -> None:
    """Fills the folder. `values` come in the order of `entries`, and are cast to their dtypes.

    Of tied names only the first is a tensor; the others stand in the files' metadata, as safetensors itself does it.
    """
    files = list(_cut(entries, size_of(max_shard_size)))
    names = [_file_name(number, len(files)) for number in range(len(files))]
    metadata = {"format": "pt", **tied}
    for name, part in zip(names, files, strict=True):
        with TensorFile(folder / name, part, metadata) as file:
            for _ in part:
                file.put(*next(values))
    if len(files) > 1:
        _write_index(folder / INDEX, dict(zip(names, files, strict=True)))


def _cut(entries: Iterable[Entry], limit: int) -> Iterator[list[Entry]]:
    """Files of at most `limit` bytes each; a larger tensor has one of its own."""
    part: list[Entry] = []
    size = 0
    for entry in entries:
        if part and size + entry.bytes > limit:
            yield part
            part, size = [], 0
        part.append(entry)
        size += entry.bytes
    yield part


def _file_name(number: int, count: int) -> str:
    return SINGLE if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _write_index(path: Path, files: Mapping[str, Sequence[Entry]]) -> None:
    size = sum(entry.bytes for part in files.values() for entry in part)
    where = {entry.name: name for name, part in files.items() for entry in part}
    text = json.dumps({"metadata": {"total_size": size}, "weight_map": where}, indent=2, sort_keys=True)
    path.write_text(text + "\n")
