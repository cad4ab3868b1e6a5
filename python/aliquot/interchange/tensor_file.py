"""A safetensors file (https://huggingface.co/docs/safetensors) that is written one tensor after the other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

from torch import Tensor

from aliquot._core import CheckpointError
from aliquot.checkpoint.dtypes import word_of
from aliquot.checkpoint.parts import as_bytes
from aliquot.interchange.entry import Entry

METADATA = "__metadata__"
"""What the format calls strings that are no tensors."""


class TensorFile:
    """A new file. Behind the `with` that it is used in, every tensor has been put there, and is on the disk.

    Tensors of larger elements lie first, as the format's own writer lays them, so that each is aligned to its elements.
    """

    def __init__(
        self, path: Path, entries: Iterable[Entry], metadata: Mapping[str, str] | None = None, mode: int = 0o666
    ) -> None:
        self.entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
        self.header = _header(self.entries, metadata or {})
        self.offsets: dict[str, int] = {}
        """From the start of the file."""
        self.bytes = len(self.header)
        for entry in self.entries:
            self.offsets[entry.name] = self.bytes
            self.bytes += entry.bytes
        self._missing = {entry.name: entry for entry in self.entries}
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)

    def __enter__(self) -> TensorFile:
        os.posix_fallocate(self._descriptor, 0, self.bytes)
        self._write(memoryview(self.header), 0)
        return self

    def put(self, name: str, value: Tensor) -> Tensor:
        """Writes the tensor, cast to its dtype in the file; returns what was written."""
        entry = self._missing.pop(name)
        if tuple(value.shape) != entry.shape:
            raise CheckpointError(f"{name} has the shape {tuple(value.shape)}, and {entry.shape} was announced")
        held = value.detach().to("cpu", entry.dtype).resolve_conj().resolve_neg().contiguous()
        if held.numel():
            self._write(memoryview(as_bytes(held)).cast("B"), self.offsets[name])
        return held

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self._missing:
                    raise CheckpointError(f"{self._path}: {next(iter(self._missing))} was not given")
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def _write(self, data: memoryview, offset: int) -> None:
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written


def _header(entries: Iterable[Entry], metadata: Mapping[str, str]) -> bytes:
    content: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    reached = 0
    for entry in entries:
        if entry.name == METADATA:
            raise CheckpointError(f"a tensor can't be named {METADATA} in a safetensors file")
        content[entry.name] = {
            "dtype": word_of(entry.dtype, entry.name),
            "shape": list(entry.shape),
            "data_offsets": [reached, reached + entry.bytes],
        }
        reached += entry.bytes
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
