"""A folder that is there as a whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aliquot._core import CheckpointError
from aliquot.checkpoint import folder


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """What is written to the folder it gives is at `path` behind the `with`. If it raises, nothing has changed."""
    path = path.absolute()
    _require_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.tmp-{folder.new_token()}")
    draft.mkdir()
    try:
        yield draft
        folder.publish(draft, path)
    finally:
        with suppress(OSError):
            folder.discard(draft)  # what was not finished, or the empty folder that was replaced


def _require_free(path: Path) -> None:
    """An empty folder may be there: it is replaced."""
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise CheckpointError(f"{path} is there already: nothing is overwritten. Name a new folder, or remove it first")
