"""How numbers and tables look."""

from __future__ import annotations

from collections.abc import Sequence


def size_text(count: int) -> str:
    """Bytes, in three digits."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB" if size < 1000 else f"{size:.0f} TB"


def printable(text: str) -> str:
    """The same, unable to command a terminal: names in checkpoints may come from anywhere."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lines of aligned columns; the first row is their titles."""
    rows = [list(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
