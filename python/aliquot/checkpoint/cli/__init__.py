"""`python -m aliquot checkpoint`: docs/checkpoints.md, "The command line". Needs neither a GPU nor the model."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from aliquot._core import Error
from aliquot.checkpoint.cli import exporting, inspecting, listing, pruning, resharding, verifying
from aliquot.checkpoint.cli.text import printable

COMMANDS = (listing, verifying, inspecting, exporting, resharding, pruning)


def main(program: str, arguments: Sequence[str]) -> int:
    """The exit code; a call that is none ends in SystemExit. `program`: what it was called as."""
    parser = _parser(program)
    args = parser.parse_args(arguments)
    try:
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except argparse.ArgumentError as error:
        parser.error(str(error))
    except BrokenPipeError:  # whoever reads has had enough, and what is left is not to be written at the end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Error, OSError) as error:
        print(printable(f"aliquot: {error}"), file=sys.stderr)
    return 1


def _parser(program: str) -> argparse.ArgumentParser:
    """Each command sets `run`: what takes the arguments and returns the exit code."""
    about = "Lists, verifies, inspects, exports, reshards and prunes checkpoints."
    parser = argparse.ArgumentParser(prog=program, description=about)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
