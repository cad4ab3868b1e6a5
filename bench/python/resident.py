"""Resident memory of this process, from Linux's /proc. Bytes."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc/self")


def reset_peak() -> None:
    """The high-water mark of RSS starts again from what is resident now."""
    (PROC / "clear_refs").write_text("5")


def peak_rss() -> int:
    """High-water mark. A page that several processes map counts in full in each of them."""
    return _field("status", "VmHWM:")


def pss() -> int:
    """Resident now, every page divided by the number of processes that map it: the sum over the ranks is the truth."""
    return _field("smaps_rollup", "Pss:")


def _field(file: str, name: str) -> int:
    for line in (PROC / file).read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/{file} has no line {name!r}: resident memory can't be read on this system")
