"""Reads the tensors of a torch.distributed.checkpoint folder. Nothing is unpickled."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from aliquot.interchange.dcp_metadata import Chunk, read_metadata
from aliquot.interchange.entry import Entry, Source
from aliquot.interchange.torch_file import read_tensor


def read(folder: Path) -> Source:
    """The tensors by their names, whole, whatever they were cut into. Only the metadata is read yet."""
    tensors = read_metadata(folder)
    return Source({name: entry for name, (entry, _) in tensors.items()}, lambda name: _whole(folder, *tensors[name]))


def _whole(folder: Path, entry: Entry, chunks: list[Chunk]) -> Tensor:
    if len(chunks) == 1:
        return _part(folder, entry, chunks[0])
    whole = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
    for chunk in chunks:
        box = tuple(slice(begin, begin + size) for begin, size in zip(chunk.begin, chunk.size, strict=True))
        whole[box] = _part(folder, entry, chunk)
    return whole


def _part(folder: Path, entry: Entry, chunk: Chunk) -> Tensor:
    return read_tensor(folder / chunk.file, chunk.offset, chunk.length, entry.dtype, chunk.size)
