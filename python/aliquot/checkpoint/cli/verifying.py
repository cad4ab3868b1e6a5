"""`python -m aliquot checkpoint verify`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from aliquot._core import CheckpointError
from aliquot.checkpoint import folder
from aliquot.checkpoint.catalog import read_manifest
from aliquot.checkpoint.cli.arguments import Commands, add_json, add_step, located, parser_of
from aliquot.checkpoint.cli.listing import size_of
from aliquot.checkpoint.cli.progress import progress
from aliquot.checkpoint.cli.text import printable, size_text
from aliquot.checkpoint.verification import Damage, damages

NAMED = 5
"""Tensors of a damage that are named; `--json` names all."""


def add(commands: Commands) -> None:
    """Adds the command."""
    about = "Read every byte, and name each file, chunk and tensor that is damaged. Leaves with 1 if there is one."
    parser = parser_of(commands, "verify", about)
    add_step(parser, "all")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints what it finds, one checkpoint after the other."""
    directory, step = located(args)
    steps = folder.steps(directory) if step is None else [step]
    if not steps:
        raise CheckpointError(f"{directory}: no checkpoint to verify")
    reports = []
    for each in steps:
        reports.append(_verified(directory, each))
        if not args.json:
            print("\n".join(_lines(reports[-1])), flush=True)
    if args.json:
        print(json.dumps(reports, indent=2))
    return int(any(report["damages"] for report in reports))


def _verified(directory: Path, step: int) -> dict[str, Any]:
    report: dict[str, Any] = {"step": step, "bytes": 0, "chunks": 0, "damages": []}
    try:
        checkpoint = read_manifest(directory, step)
    except CheckpointError as error:
        return report | {"damages": [vars(Damage(folder.MANIFEST, str(error), None, []))]}
    report["bytes"] = size_of(checkpoint)
    report["chunks"] = sum(len(file.crcs) for file in checkpoint.manifest.files.values())
    with progress(f"verify step_{step}", report["bytes"]) as note:
        report["damages"] = [vars(damage) for damage in damages(checkpoint, note)]
    return report


def _lines(report: dict[str, Any]) -> list[str]:
    name = f"step_{report['step']}"
    if not report["damages"]:
        return [f"{name}: all {report['chunks']} chunks are right, {size_text(report['bytes'])}"]
    return [f"{name}: {_line(damage)}" for damage in report["damages"]]


def _line(damage: dict[str, Any]) -> str:
    where = damage["file"] if damage["chunk"] is None else f"{damage['file']}: chunk {damage['chunk']}"
    more = len(damage["tensors"]) - NAMED
    tensors = ", ".join(damage["tensors"][:NAMED]) + (f" and {more} more" if more > 0 else "")
    return printable(f"DAMAGED {where}: {damage['problem']}" + (f"; in it: {tensors}" if tensors else ""))
