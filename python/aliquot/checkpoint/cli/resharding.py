"""`python -m aliquot checkpoint reshard`."""

from __future__ import annotations

import argparse
from pathlib import Path

from aliquot._core import CheckpointError
from aliquot.checkpoint import folder
from aliquot.checkpoint.cli.arguments import Commands, add_step, chosen, parser_of, positive
from aliquot.checkpoint.cli.listing import size_of
from aliquot.checkpoint.cli.progress import progress
from aliquot.checkpoint.resharding import reshard

ABOUT = (
    "Write a checkpoint into another number of files. Loading never needs it: any number of ranks reads any number of "
    "files. Its content stays the same to the bit."
)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = parser_of(commands, "reshard", ABOUT)
    parser.add_argument(
        "--files", type=positive, required=True, metavar="N", help="how many, such as one for each rank"
    )
    add_step(parser, "the latest whole one")
    parser.add_argument("--to", type=Path, metavar="DIR", help="another directory (default: in place of what it was)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reads, checks and writes one piece after the other; the old files go when the new checkpoint is there."""
    checkpoint = chosen(args)
    step, directory = checkpoint.manifest.step, checkpoint.path.parent
    to = directory if args.to is None else args.to.absolute()
    if to != directory and folder.committed(to, step).exists():
        raise CheckpointError(f"{folder.committed(to, step)} is there already: nothing is overwritten. Remove it first")
    with progress(f"reshard step_{step}", size_of(checkpoint)) as note:
        resharded = reshard(checkpoint, to, args.files, note)
    print(f"{folder.committed(to, step)}: in {len(resharded.files)} files")
    return 0
