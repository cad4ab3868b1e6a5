"""A dense tensor as `torch.save` wrote it into part of a file, read without unpickling anything."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aliquot._core import CheckpointError
from aliquot.checkpoint.parts import as_bytes
from aliquot.interchange.pickle_data import Call, Global, read_pickle

MAX_OVERHEAD = 1 << 20
"""Bytes that are no tensor's."""
BLOCK = 1 << 20
STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.storage.UntypedStorage": None,
}
"""And the dtypes that they have, where they have one."""
DTYPES_BY_NAME = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
REBUILT = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
ALLOWED = {*STORAGES, *DTYPES_BY_NAME, *REBUILT, "collections.OrderedDict"}
"""What the pickle of a dense tensor names."""


class Slice(io.RawIOBase):
    """Bytes [offset, offset + length) of an open file, as a file."""

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self._descriptor, self._offset, self._length, self._at = descriptor, offset, length, 0

    def readable(self) -> bool:
        """See io.IOBase."""
        return True

    def seekable(self) -> bool:
        """See io.IOBase."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See io.IOBase."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError("it points in front of its own beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        room = memoryview(buffer)[: max(0, self._length - self._at)]
        count = os.preadv(self._descriptor, [room], self._offset + self._at) if room else 0
        self._at += count
        return count


def read_tensor(path: Path, offset: int, length: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The tensor in these bytes of the file, which must be of this dtype and shape."""
    expected = torch.Size(shape).numel() * dtype.itemsize
    if not expected <= length <= expected + MAX_OVERHEAD:
        raise CheckpointError(f"{path}: {length} bytes are said to hold a tensor of {expected}")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size < offset + length:
                raise EOFError("the file ends before that")
            with zipfile.ZipFile(io.BufferedReader(Slice(descriptor, offset, length))) as archive:
                return _Archive(archive).tensor(dtype, shape)
        finally:
            os.close(descriptor)
    except (zipfile.BadZipFile, OSError, EOFError, KeyError, ValueError, RuntimeError, NotImplementedError) as error:
        reason = f"{error!s:.300}".partition("\n")[0]
        raise CheckpointError(f"{path}: bytes {offset} to {offset + length}: {reason}") from None


class _Archive:
    """What `torch.save` writes: a zip file of a pickle and the bytes of storages."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._root = next((name for name in archive.namelist() if name.endswith("/data.pkl")), "").removesuffix(
            "data.pkl"
        )

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        storage, held, start, size, stride = _described(read_pickle(self._small("data.pkl"), ALLOWED))
        if held != dtype or size != shape:
            raise CheckpointError(f"it is a tensor of {held} and {size}, not of {dtype} and {shape}")
        if self._root + "byteorder" in self._archive.namelist() and self._small("byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        flat = torch.empty(torch.Size(shape).numel(), dtype=dtype, device="cpu")
        if flat.numel():
            self._fill(flat, "data/" + storage)
        return torch.as_strided(flat, size, stride, start) if flat.numel() else flat.view(shape)

    def _small(self, name: str) -> bytes:
        if self._archive.getinfo(self._root + name).file_size > MAX_OVERHEAD:
            raise ValueError(f"its {name} is too large")
        return self._archive.read(self._root + name)

    def _fill(self, flat: Tensor, name: str) -> None:
        """Checks the archive's own checksum by the way."""
        held = memoryview(as_bytes(flat)).cast("B")
        info = self._archive.getinfo(self._root + name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != len(held):
            raise ValueError(f"its {name} has {info.file_size} bytes, the tensor {len(held)}")
        with self._archive.open(info) as file:
            while held:
                block = file.read(min(len(held), BLOCK))
                if not block:
                    raise EOFError(f"its {name} ends too early")
                held[: len(block)] = block
                held = held[len(block) :]


def _described(value: Any) -> tuple[str, torch.dtype | None, int, tuple[int, ...], tuple[int, ...]]:
    """Name and dtype of the storage, and start, size and stride of the tensor in it."""
    match value:
        case Call(
            of=function, args=(Call(of="persistent", args=(held,)), int(start), tuple(size), tuple(stride), *more)
        ):
            match held:
                case ("storage", Global(name=kind), str(storage), *_) if function in REBUILT and kind in STORAGES:
                    if all(type(number) is int and number >= 0 for number in (start, *size, *stride)):
                        return storage, STORAGES[kind] or _dtype(more), start, size, stride
    raise ValueError("it is no dense tensor")


def _dtype(more: list[Any]) -> torch.dtype | None:
    """Of a tensor whose storage has none."""
    return next((DTYPES_BY_NAME.get(item.name) for item in more if isinstance(item, Global)), None)
