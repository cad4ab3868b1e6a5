"""Ranges of a checkpoint's tensors, read into new memory."""

from __future__ import annotations

from collections import defaultdict

import torch

from aliquot import _core
from aliquot._core import PageCache
from aliquot.checkpoint.catalog import Checkpoint
from aliquot.checkpoint.dtypes import DTYPES


class Reading:
    """Collects what is wanted, then reads each file once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._ranges: dict[str, list[tuple[int, int, int, str]]] = defaultdict(list)
        """By file: offset, bytes, address, tensor."""

    def want(self, key: str, begin: int, end: int) -> torch.Tensor:
        """Where elements [begin, end) of the flattened tensor will be."""
        tensor = self.checkpoint.manifest.tensors[key]
        values = torch.empty(end - begin, dtype=DTYPES[tensor.dtype], device="cpu")
        for piece in tensor.pieces:
            first, last = max(begin, piece.begin), min(end, piece.end)
            if first < last:
                offset = piece.offset + (first - piece.begin) * tensor.width
                address = values.data_ptr() + (first - begin) * tensor.width
                self._ranges[piece.file].append((offset, (last - first) * tensor.width, address, key))
        return values

    def run(self, threads: int = _core.usual_file_threads, cache: PageCache = PageCache.keep) -> None:
        """Reads each file with so many threads. Raises CheckpointError where a checksum is wrong.

        `cache`: whether the kernel keeps what was read, for others or for the next call.
        """
        for name, ranges in self._ranges.items():
            file = self.checkpoint.manifest.files[name]
            _core.read_ranges(str(self.checkpoint.path / name), file.bytes, file.crcs, ranges, threads, cache)
