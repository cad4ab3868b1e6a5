"""Reads folders as `save_pretrained` of Transformers writes them.

They may come from anywhere. An index names files of its own folder and nothing else; safetensors checks that headers
keep inside their files. Links are followed, for the cache of Hugging Face's hub consists of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from aliquot._core import CheckpointError
from aliquot.checkpoint.dtypes import DTYPES
from aliquot.checkpoint.json_text import parse_json
from aliquot.interchange.entry import Entry, Source
from aliquot.interchange.hugging_face_writing import INDEX, SINGLE

MAX_INDEX_BYTES = 64 << 20
BASE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]{0,199}\.safetensors")


def read(path: Path) -> Source:
    """The tensors of such a folder, or of one safetensors file. Only headers are read yet."""
    if path.is_file():
        return _joined({path.name: _File(path)})
    if (path / INDEX).exists():
        return _indexed(path)
    if (path / SINGLE).exists():
        return _joined({SINGLE: _File(path / SINGLE)})
    raise CheckpointError(
        f"{path}: there is neither {SINGLE} nor {INDEX}. Pickles such as pytorch_model.bin are not read: convert them "
        "with safetensors"
    )


class _File:
    """A safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise CheckpointError(f"{path}: it is no plain file")
        try:
            with _opened(path) as file:
                self.entries = {name: _entry(name, file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: {error!s:.300}") from None

    def read(self, name: str) -> Tensor:
        """Opens the file anew, for all that was read of it stays in memory until it is closed."""
        try:
            with _opened(self.path) as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.path}: {name}: {error!s:.300}") from None
        return tensor


def _opened(path: Path) -> Any:
    return safe_open(str(path), "pt")


def _entry(name: str, header: Any) -> Entry:
    word = header.get_dtype()
    if word not in DTYPES:
        raise ValueError(f"{name} is {word}, which torch has no dtype for")
    return Entry(name, DTYPES[word], tuple(header.get_shape()))


def _joined(files: Mapping[str, _File], where: Mapping[str, str] | None = None) -> Source:
    """`where`: which of the files has a tensor; without it, the one file has them all."""
    if where is None:
        where = {name: base for base, file in files.items() for name in file.entries}
    for name, base in where.items():
        if name not in files[base].entries:
            raise CheckpointError(f"{files[base].path}: it has no {name}, and {INDEX} says so")
    entries = {name: files[base].entries[name] for name, base in where.items()}
    return Source(entries, lambda name: files[where[name]].read(name))


def _indexed(folder: Path) -> Source:
    path = folder / INDEX
    if not path.is_file() or path.stat().st_size > MAX_INDEX_BYTES:
        raise CheckpointError(f"{path}: it is no plain file of at most {MAX_INDEX_BYTES} bytes")
    try:
        where = _weight_map(parse_json(path.read_bytes()))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return _joined({base: _File(folder / base) for base in sorted(set(where.values()))}, where)


def _weight_map(content: Any) -> dict[str, str]:
    where = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(where, dict):
        raise CheckpointError("it has no weight_map")
    for name, base in where.items():
        if not isinstance(base, str) or not BASE_NAME.fullmatch(base):
            raise CheckpointError(f"{name:.200} is said to be in {base!r:.200}, which is no plain name of such a file")
    return where
