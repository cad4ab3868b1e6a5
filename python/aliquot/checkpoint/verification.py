"""Looks at every byte of a checkpoint."""

from __future__ import annotations

import os
import stat
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import local

from aliquot import _core
from aliquot.checkpoint.catalog import Checkpoint
from aliquot.checkpoint.manifest import File, Manifest

THREADS = 8


@dataclass(frozen=True)
class Damage:
    """What is wrong with a file, and where."""

    file: str
    problem: str
    chunk: int | None
    """Which of its 4 MiB; None: the whole file."""
    tensors: list[str]
    """Which have bytes there."""


def damages(checkpoint: Checkpoint, note: Callable[[int], object]) -> Iterator[Damage]:
    """All there are. `note` is told how many bytes were looked at since it was told last."""
    extents = _extents(checkpoint.manifest)
    for name, file in checkpoint.manifest.files.items():
        mine = extents[name]
        try:
            descriptor = _opened(checkpoint.path / name)
        except OSError as error:
            yield Damage(name, error.strerror or str(error), None, [key for _, _, key in mine])
            continue
        try:
            yield from _damages(descriptor, name, file, mine, note)
        finally:
            os.close(descriptor)


Extents = list[tuple[int, int, str]]
"""First and last byte of what a file has of each tensor, in order."""


def _extents(manifest: Manifest) -> dict[str, Extents]:
    found: dict[str, Extents] = defaultdict(list)
    for key, tensor in manifest.tensors.items():
        for piece in tensor.pieces:
            end = piece.offset + (piece.end - piece.begin) * tensor.width
            found[piece.file].append((piece.offset, end - 1, key))
    for extents in found.values():
        extents.sort()
    return found


def _opened(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is no plain file")
    return descriptor


def _damages(
    descriptor: int, name: str, file: File, extents: Extents, note: Callable[[int], object]
) -> Iterator[Damage]:
    size = os.fstat(descriptor).st_size
    if size != file.bytes:
        yield Damage(name, f"it has {size} bytes, and the manifest says {file.bytes}", None, [])
    with ThreadPoolExecutor(THREADS) as pool:
        problems = pool.map(partial(_problem, descriptor, file, local()), range(len(file.crcs)))
        for chunk, problem in enumerate(problems):
            begin, end = _bounds(file, chunk)
            if problem:
                yield Damage(name, problem, chunk, _between(extents, begin, end))
            note(end - begin)


def _bounds(file: File, chunk: int) -> tuple[int, int]:
    begin = chunk * _core.chunk_bytes
    return begin, min(begin + _core.chunk_bytes, file.bytes)


def _problem(descriptor: int, file: File, mine: local, chunk: int) -> str:
    """Of one chunk; empty if it is right. `mine`: what each thread keeps."""
    begin, end = _bounds(file, chunk)
    if not hasattr(mine, "buffer"):
        mine.buffer = memoryview(bytearray(_core.chunk_bytes))
    try:
        data = mine.buffer[: _read(descriptor, mine.buffer[: end - begin], begin)]
    except OSError as error:
        return error.strerror or str(error)
    if len(data) < end - begin:
        return "the file ends in it or before it"
    return "" if _core.crc32c(data) == file.crcs[chunk] else "its checksum is wrong"


def _read(descriptor: int, into: memoryview, offset: int) -> int:
    """As many bytes as there are."""
    count = 0
    while count < len(into) and (more := os.preadv(descriptor, [into[count:]], offset + count)):
        count += more
    return count


def _between(extents: Extents, begin: int, end: int) -> list[str]:
    """They don't overlap, so that their ends are in order too."""
    first = bisect_left(extents, begin, key=lambda extent: extent[1])
    last = bisect_right(extents, end - 1, key=lambda extent: extent[0])
    return [key for _, _, key in extents[first:last]]
