"""`python -m aliquot checkpoint`: docs/checkpoints.md, "The command line". Needs neither a GPU nor the model."""

from __future__ import annotations

from aliquot.checkpoint.cli import exporting, inspecting, listing, pruning, resharding, verifying
from aliquot.checkpoint.cli.arguments import Commands

COMMANDS = (listing, verifying, inspecting, exporting, resharding, pruning)


def add(commands: Commands) -> None:
    """Each of them sets `run`: what takes the arguments and returns the exit code."""
    about = "Lists, verifies, inspects, exports, reshards and prunes checkpoints."
    parser = commands.add_parser("checkpoint", help=about, description=about)
    own = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(own)
