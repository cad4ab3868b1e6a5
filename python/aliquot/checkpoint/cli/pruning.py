"""`python -m aliquot checkpoint prune`."""

from __future__ import annotations

import argparse
import json

from aliquot._core import InvalidArgument
from aliquot.checkpoint import folder
from aliquot.checkpoint.catalog import superseded
from aliquot.checkpoint.cli.arguments import Commands, add_json, located, parser_of, positive

ABOUT = "Remove all but the latest whole checkpoints. What is no checkpoint, or not whole, is never touched."


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = parser_of(commands, "prune", ABOUT)
    parser.add_argument("--keep", type=positive, required=True, metavar="N", help="how many to keep")
    parser.add_argument(
        "--leftovers", action="store_true", help="also what saves that died left; none may be under way"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The oldest goes first, so that what is left if it is stopped are the latest."""
    directory, step = located(args)
    if step is not None:
        raise InvalidArgument(f"{args.directory} is one checkpoint: prune takes the directory that it is in")
    steps = superseded(directory, args.keep)[::-1]
    leftovers = folder.abandoned(directory) if args.leftovers else []
    if not args.dry_run:
        for step in steps:
            folder.retire(directory, step)
        for draft in leftovers:
            folder.discard(draft)
    names = [*(folder.committed(directory, step).name for step in steps), *(draft.name for draft in leftovers)]
    verb = "would remove" if args.dry_run else "removed"
    print(json.dumps({"removed": names, "dry_run": args.dry_run}) if args.json else _text(names, verb))
    return 0


def _text(names: list[str], verb: str) -> str:
    return "\n".join(f"{verb} {name}" for name in names) if names else "nothing to remove"
