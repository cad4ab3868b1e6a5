"""A model of what is left when the power fails: all that was not synced may be lost, all that was removed is gone.

It is harsher than any file system: a new name is lost unless its folder was synced behind it, even if the file was;
removals last at once, though they come behind what is lost.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2


@dataclass(frozen=True)
class Named:
    """A change of names in one folder."""

    event: str
    paths: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """Which must be synced for it to last."""
        return self.paths[-1].parent

    def moved(self, move: Callable[[Path], Path]) -> Named:
        """The same where a folder above has got another name."""
        return Named(self.event, tuple(map(move, self.paths)))


class Disk:
    """Follows a journal of the shim."""

    def __init__(self) -> None:
        self.names: list[Named] = []
        self.ranges: dict[Path, list[tuple[int, int]]] = defaultdict(list)
        """Of files: offset and size of what was written and not synced."""

    def replay(self, journal: Path) -> None:
        """Knows from here on what was not synced. The power may have failed within the last line."""
        for line in journal.read_text().split("\n")[:-1]:
            event, *words = line.split("\t")
            getattr(self, event)(*words)

    def create(self, path: str) -> None:
        self.names.append(Named("create", (Path(path),)))

    mkdir = create

    def write(self, path: str, offset: str, size: str) -> None:
        self.ranges[Path(path)].append((int(offset), int(size)))

    def truncate(self, path: str) -> None:
        raise AssertionError(f"{path} is there already and is written in place")

    link = truncate

    def fsync(self, path: str) -> None:
        self.ranges.pop(Path(path), None)
        self.names = [named for named in self.names if named.folder != Path(path)]

    def rename(self, source: str, target: str) -> None:
        self._move({Path(source): Path(target)})
        self.names.append(Named("rename", (Path(source), Path(target))))

    def exchange(self, source: str, target: str) -> None:
        self._move({Path(source): Path(target), Path(target): Path(source)})
        self.names.append(Named("exchange", (Path(source), Path(target))))

    def remove(self, path: str) -> None:
        gone = Path(path)
        self.names = [named for named in self.names if gone not in named.paths]
        self.ranges.pop(gone, None)

    def _move(self, moves: dict[Path, Path]) -> None:
        def move(path: Path) -> Path:
            for source, target in moves.items():
                if path.is_relative_to(source) and path != source:
                    return target / path.relative_to(source)
            return path

        self.names = [named.moved(move) for named in self.names]
        self.ranges = defaultdict(list, {move(path): ranges for path, ranges in self.ranges.items()})

    def lose(self, chance: random.Random, probability: float) -> None:
        """Takes back, on the real disk, each unsynced change with this probability; the latest first."""
        for path, ranges in self.ranges.items():
            if path.is_file() and chance.random() < probability:
                _zero(path, ranges)
        for named in reversed(self.names):
            if chance.random() < probability:
                _take_back(named)


def _zero(path: Path, ranges: list[tuple[int, int]]) -> None:
    with path.open("r+b") as file:
        for offset, size in ranges:
            file.seek(offset)
            file.write(bytes(max(0, min(size, path.stat().st_size - offset))))


def _take_back(named: Named) -> None:
    *_, path = named.paths
    if not os.path.lexists(path):
        return
    if named.event == "rename":
        path.rename(named.paths[0])
    elif named.event == "exchange":
        ctypes.CDLL(None).renameat2(AT_FDCWD, os.fsencode(named.paths[0]), AT_FDCWD, os.fsencode(path), RENAME_EXCHANGE)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
