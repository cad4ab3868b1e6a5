"""Real text that every machine has: the source of the running Python's own standard library, or any file or folder."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor

NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
NOT_SOURCE = {"encodings", "pydoc_data"}  # tables of characters, and the manual


def standard_library() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(
        path for path in root.rglob("*.py") if (NOT_THE_LIBRARY | NOT_SOURCE).isdisjoint(path.relative_to(root).parts)
    )


def language_reference() -> Tensor:
    """The chapters of Python's manual that `help()` shows: English with examples, some 700 kB as uint8."""
    return torch.frombuffer(bytearray("\n".join(topics.values()).encode()), dtype=torch.uint8)


def files_of(path: Path) -> list[Path]:
    return sorted(child for child in path.rglob("*") if child.is_file()) if path.is_dir() else [path]


def read_bytes(paths: Iterable[Path], limit: int) -> Tensor:
    """The files' bytes one after another, at most `limit` of them, as uint8."""
    text = bytearray()
    for path in paths:
        if len(text) >= limit:
            break
        text += path.read_bytes()
    return torch.frombuffer(text, dtype=torch.uint8)[:limit]


def split(text: Tensor, validation_part: float = 0.05) -> tuple[Tensor, Tensor]:
    """Training and validation text. The end is held out, so validation reads files that training never sees."""
    cut = int(len(text) * (1 - validation_part))
    return text[:cut], text[cut:]


class Windows:
    """Random windows of a text, without end; the seed decides which."""

    def __init__(self, text: Tensor, batch: int, context: int, seed: int) -> None:
        if len(text) <= context:
            raise ValueError(f"the text has {len(text)} bytes; a context of {context} needs more: give a longer --data")
        self._text, self._batch, self._context = text, batch, context
        self._chance = torch.Generator().manual_seed(seed)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets (the inputs moved on by one byte), each int64 [batch, context]."""
        starts = torch.randint(len(self._text) - self._context, (self._batch, 1), generator=self._chance)
        windows = self._text[starts + torch.arange(self._context + 1)].long()
        return windows[:, :-1], windows[:, 1:]
