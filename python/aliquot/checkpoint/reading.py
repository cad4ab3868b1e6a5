"""Ranges of a checkpoint's tensors, read into new memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from torch import Tensor

from aliquot import _core
from aliquot._core import PageCache
from aliquot.checkpoint.catalog import Checkpoint
from aliquot.checkpoint.copies import pageable
from aliquot.checkpoint.dtypes import DTYPES


class Reading:
    """Collects what is wanted, then reads each file once."""

    def __init__(self, checkpoint: Checkpoint, lend: Callable[[int], Tensor] = pageable) -> None:
        self.checkpoint = checkpoint
        self._lend = lend
        """Gives so many bytes of memory, as long as the reading is used."""
        self._ranges: dict[str, list[tuple[int, int, int, str]]] = defaultdict(list)
        """By file: offset, bytes, address, tensor."""

    def want(self, key: str, begin: int, end: int) -> Tensor:
        """Where elements [begin, end) of the flattened tensor will be, for good."""
        return self._want(key, begin, end, pageable)

    def borrow(self, key: str, begin: int, end: int) -> Tensor:
        """The same for who only copies them to elsewhere."""
        return self._want(key, begin, end, self._lend)

    def _want(self, key: str, begin: int, end: int, take: Callable[[int], Tensor]) -> Tensor:
        tensor = self.checkpoint.manifest.tensors[key]
        values = take((end - begin) * tensor.width).view(DTYPES[tensor.dtype])
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
