"""Writes the tensors of a checkpoint into another number of files.

Loading never needs it, for any number of ranks reads any number of files. It helps where files are moved or kept: one
large file, or many small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aliquot import _core
from aliquot.checkpoint import folder
from aliquot.checkpoint.catalog import Checkpoint
from aliquot.checkpoint.dtypes import DTYPES
from aliquot.checkpoint.manifest import File, Manifest, Piece, Tensor, parse
from aliquot.checkpoint.parts import as_bytes
from aliquot.checkpoint.whole import read_range
from aliquot.interchange.entry import Entry
from aliquot.interchange.tensor_file import TensorFile


def reshard(checkpoint: Checkpoint, directory: Path, files: int, note: Callable[[int], object]) -> Manifest:
    """Makes it a checkpoint of `directory`, in so many files, or fewer if it has so few elements; one of the same step
    is replaced. Its content stays the same to the bit, and so does what it says of the ranks that saved it.
    Returns its manifest.

    One piece of a tensor is in memory at a time. `note` is told how many bytes were written since it was told last.
    """  # fmt: skip
    step = checkpoint.manifest.step
    draft = folder.draft(directory, step, folder.new_token())
    try:
        folder.make(draft)
        text = _manifest(checkpoint.manifest, dict(_write(checkpoint, draft, files, note))).text()
        manifest = parse(text)
        folder.write(draft / folder.MANIFEST, text)
        folder.publish(draft, folder.committed(directory, step))
        return manifest
    finally:
        with suppress(OSError):
            folder.discard(draft)  # what was not finished, or what was replaced


@dataclass(frozen=True)
class Cut:
    """Elements [begin, end) of a flattened tensor."""

    key: str
    begin: int
    end: int


def cuts(tensors: Mapping[str, Tensor], files: int) -> Iterator[list[Cut]]:
    """For each file what it gets, one tensor after the other: as many bytes as any other file, but for an element."""
    total = sum(tensor.numel * tensor.width for tensor in tensors.values())
    parts: list[list[Cut]] = [[] for _ in range(files)]
    reached = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: -item[1].width):
        begin = 0
        while begin < tensor.numel:
            file = reached * files // total
            room = -(-total * (file + 1) // files) - reached
            end = min(tensor.numel, begin + -(-room // tensor.width))
            parts[file].append(Cut(key, begin, end))
            reached += (end - begin) * tensor.width
            begin = end
    return filter(None, parts)


def _write(
    checkpoint: Checkpoint, draft: Path, files: int, note: Callable[[int], object]
) -> Iterator[tuple[str, tuple[File, list[tuple[Cut, int]]]]]:
    """Name and description of each file; of each cut in it, where it is."""
    for number, part in enumerate(cuts(checkpoint.manifest.tensors, files)):
        name = f"part_{number:05d}.safetensors"
        sums = Checksums()
        entries = [_entry(checkpoint.manifest.tensors[cut.key], cut) for cut in part]
        with TensorFile(draft / name, entries, mode=0o600) as file:
            sums.add(memoryview(file.header))
            for cut, entry in zip(part, entries, strict=True):
                _move(checkpoint, cut, entry, file, sums)
                note(entry.bytes)
        yield name, (File(bytes=file.bytes, crcs=sums.crcs), [(cut, file.offsets[cut.key]) for cut in part])


def _move(checkpoint: Checkpoint, cut: Cut, entry: Entry, file: TensorFile, sums: Checksums) -> None:
    held = file.put(cut.key, read_range(checkpoint, cut.key, cut.begin, cut.end).view(entry.shape))
    sums.add(memoryview(as_bytes(held)).cast("B"))


def _entry(tensor: Tensor, cut: Cut) -> Entry:
    count = cut.end - cut.begin
    return Entry(cut.key, DTYPES[tensor.dtype], tuple(tensor.shape) if count == tensor.numel else (count,))


class Checksums:
    """CRC32C of each chunk of what is added."""

    def __init__(self) -> None:
        self.crcs: list[int] = []
        self._filled = _core.chunk_bytes

    def add(self, data: memoryview) -> None:
        """What comes next in the file."""
        while data:
            if self._filled == _core.chunk_bytes:
                self.crcs.append(0)
                self._filled = 0
            part = data[: _core.chunk_bytes - self._filled]
            self.crcs[-1] = _core.crc32c(part, self.crcs[-1])
            self._filled += len(part)
            data = data[len(part) :]


def _manifest(manifest: Manifest, written: Mapping[str, tuple[File, list[tuple[Cut, int]]]]) -> Manifest:
    pieces: dict[str, list[Piece]] = {key: [] for key in manifest.tensors}
    for name, (_, placed) in written.items():
        for cut, offset in placed:
            pieces[cut.key].append(Piece(begin=cut.begin, end=cut.end, file=name, offset=offset))
    tensors = {key: tensor.model_copy(update={"pieces": pieces[key]}) for key, tensor in manifest.tensors.items()}
    new: dict[str, Any] = {"files": {name: file for name, (file, _) in written.items()}, "tensors": tensors}
    return manifest.model_copy(update=new)
