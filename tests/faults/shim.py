"""The failing disk of shim.cpp, in processes that are started with it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KILL_BEFORE = -1
KILL_MIDWAY = -2
"""Half of a write is done; of other calls, all."""
DO_PART = -3
"""A write or a read of half the bytes."""
ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS)


@dataclass(frozen=True)
class Fault:
    """What happens at the call number `at` (from 1; 0: never) of those that change, or read, files under the folder."""

    at: int = 0
    action: int = 0
    reads: bool = False


NO_FAULT = Fault()


def build(folder: Path) -> Path:
    library = folder / "shim.so"
    source = Path(__file__).with_name("shim.cpp")
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, "-std=c++20", "-O1", "-fPIC", "-shared", source, "-o", library], check=True)
    return library


@contextlib.contextmanager
def fault(folder: Path, fault: Fault, journal: Path | None = None, never_synced: str = "") -> Iterator[None]:
    """While it lasts, calls under `folder` are counted and `fault` happens; `journal` gets a line for each that worked.

    The process must have been started with the shim. `never_synced`: how paths end whose fsync does nothing.
    """
    record = os.fsencode(journal) if journal else b""
    _plan(os.fsencode(folder.resolve()), fault, record, never_synced.encode())
    try:
        yield
    finally:
        _plan(b"", Fault(), b"", b"")


def _plan(folder: bytes, fault: Fault, record: bytes, never_synced: bytes) -> None:
    at = ctypes.c_long(fault.at)
    ctypes.CDLL(None).plan_fault(folder, fault.reads, at, fault.action, record, never_synced)


def counted_calls() -> int:
    """Since the present `fault` began."""
    return int(ctypes.CDLL(None).counted_calls())
