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


def build(folder: Path) -> Path:
    library = folder / "shim.so"
    source = Path(__file__).with_name("shim.cpp")
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, "-std=c++20", "-O1", "-fPIC", "-shared", source, "-o", library], check=True)
    return library


@contextlib.contextmanager
def fault(folder: Path, fault: Fault, journal: Path | None = None) -> Iterator[None]:
    """While it lasts, calls under `folder` are counted and `fault` happens; `journal` gets a line for each that worked.

    The process must have been started with the shim.
    """
    shim = ctypes.CDLL(None)
    shim.plan_fault(
        os.fsencode(folder.resolve()),
        fault.reads,
        ctypes.c_long(fault.at),
        fault.action,
        os.fsencode(journal) if journal else b"",
    )
    try:
        yield
    finally:
        shim.plan_fault(b"", False, ctypes.c_long(0), 0, b"")


def counted_calls() -> int:
    """Since the present `fault` began."""
    return int(ctypes.CDLL(None).counted_calls())
