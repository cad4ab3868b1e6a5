"""Which checkpoints a directory has."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from aliquot._core import CheckpointError
from aliquot.checkpoint import folder
from aliquot.checkpoint.json_text import MAX_BYTES
from aliquot.checkpoint.manifest import Manifest, parse

logger = logging.getLogger("aliquot")


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose manifest verifies, and whose files are there in the right size."""

    path: Path
    manifest: Manifest
    digest: str
    """Of the manifest as it lies there."""


def open_checkpoint(directory: Path, step: int) -> Checkpoint:
    """The checkpoint of `step`, or a CheckpointError."""
    checkpoint = read_manifest(directory, step)
    for name, file in checkpoint.manifest.files.items():
        _require_file(checkpoint.path / name, file.bytes)
    return checkpoint


def read_manifest(directory: Path, step: int) -> Checkpoint:
    """The same, whatever became of its files."""
    require_directory(directory)
    path = folder.committed(directory, step)
    if path.is_symlink():
        raise CheckpointError(f"{path}: it is a link, and none is followed")
    try:
        text = folder.read(path / folder.MANIFEST, MAX_BYTES)
        manifest = parse(text)
    except OSError as error:
        raise CheckpointError(f"{path / folder.MANIFEST}: {error.strerror}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path / folder.MANIFEST}: {error}") from None
    if manifest.step != step:
        raise CheckpointError(f"{path / folder.MANIFEST}: it is of step {manifest.step}")
    return Checkpoint(path, manifest, hashlib.sha256(text).hexdigest())


def require_directory(directory: Path) -> None:
    """Refuses a checkpoint itself."""
    if (directory / folder.MANIFEST).is_file() and not folder.steps(directory):
        raise CheckpointError(
            f"{directory} is a checkpoint itself: give the folder that it is in, where it is named step_N"
        )


def superseded(directory: Path, keep: int, new: int | None = None) -> list[int]:
    """Steps of whole checkpoints but for the `keep` latest of them and the `new` one, the latest first."""
    whole = [step for step in folder.steps(directory) if _is_whole(directory, step)]
    return [step for step in whole[keep:] if step != new]


def _is_whole(directory: Path, step: int) -> bool:
    try:
        open_checkpoint(directory, step)
    except CheckpointError:
        return False
    return True


def latest_checkpoint(directory: Path) -> Checkpoint:
    """That of the highest step that is whole."""
    require_directory(directory)
    steps = folder.steps(directory)
    for step in steps:
        try:
            return open_checkpoint(directory, step)
        except CheckpointError as error:
            logger.warning("passed over: %s", error)
    found = f"none of {len(steps)} folders is a whole one" if steps else "there is none"
    raise CheckpointError(f"{directory}: no checkpoint to load, {found}")


def _require_file(path: Path, size: int) -> None:
    try:
        found = os.lstat(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path}: it is no plain file")
    if found.st_size != size:
        raise CheckpointError(f"{path}: it has {found.st_size} bytes, and the manifest says {size}")
