"""`python -m aliquot checkpoint list`."""

from __future__ import annotations

import argparse
import json
import stat
from datetime import datetime
from pathlib import Path
from typing import Any

from aliquot._core import CheckpointError
from aliquot.checkpoint import folder
from aliquot.checkpoint.catalog import Checkpoint, open_checkpoint
from aliquot.checkpoint.cli.arguments import Commands, add_json, located, parser_of
from aliquot.checkpoint.cli.text import size_text, table


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = parser_of(commands, "list", "List the checkpoints of a directory, and what saves that died have left.")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints one line for each, the latest first."""
    directory, _ = located(args)
    found = [each for step in folder.steps(directory) if (each := _described(directory, step))]
    leftovers: list[dict[str, Any]] = [
        {"name": path.name, "bytes": _bytes_of(path)} for path in folder.drafts(directory)
    ]
    if args.json:
        print(json.dumps({"checkpoints": found, "leftovers": leftovers}, indent=2))
        return 0
    rows = [("step", "size", "files", "ranks", "stage", "saved", "state")]
    print(table([*rows, *map(_row, found)]) if found else f"{directory}: no checkpoints")
    for left in leftovers:
        print(f"left by a save that died, or being written now: {left['name']}, {size_text(left['bytes'])}")
    return 0


def _described(directory: Path, step: int) -> dict[str, Any] | None:
    """None if it has gone: a job that runs may prune meanwhile."""
    try:
        checkpoint = open_checkpoint(directory, step)
        return {"step": step, "bytes": size_of(checkpoint), "complete": True} | about(checkpoint)
    except (CheckpointError, OSError) as error:
        if step not in folder.steps(directory):
            return None
        path = folder.committed(directory, step)
        return {"step": step, "bytes": _bytes_of(path), "complete": False, "problem": str(error)}


def about(checkpoint: Checkpoint) -> dict[str, Any]:
    """Who saved it, and when."""
    manifest = checkpoint.manifest
    saved = datetime.fromtimestamp((checkpoint.path / folder.MANIFEST).stat().st_mtime)
    return {
        "files": len(manifest.files), "world_size": manifest.world_size, "stage": manifest.stage,
        "transport": manifest.transport, "aliquot": manifest.aliquot,
        "saved": saved.astimezone().isoformat(timespec="seconds"),
    }  # fmt: skip


def size_of(checkpoint: Checkpoint) -> int:
    """Bytes of its shard files."""
    return sum(file.bytes for file in checkpoint.manifest.files.values())


def _bytes_of(path: Path) -> int:
    """Of its files, as far as they can be seen: a save may be at work in it."""
    try:
        paths = list(path.iterdir())
    except OSError:
        return 0
    return sum(map(_size_of_file, paths))


def _size_of_file(path: Path) -> int:
    try:
        found = path.lstat()
    except OSError:
        return 0
    return 0 if stat.S_ISDIR(found.st_mode) else found.st_size


def _row(found: dict[str, Any]) -> tuple[str, ...]:
    known = (str(found.get(key, "?")).replace("T", " ") for key in ("files", "world_size", "stage", "saved"))
    state = "complete" if found["complete"] else f"not complete: {found['problem']}"
    return (str(found["step"]), size_text(found["bytes"]), *known, state)
