"""`python -m aliquot`: what a build system asks of the installed package, and the command line for checkpoints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from aliquot._core import Error, __version__


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 if all is well, 1 for damage or an error, 2 for a call that is none."""
    from aliquot.checkpoint.cli.text import printable

    parser = _parser()
    args = parser.parse_args(arguments)
    if args.cmake_dir:
        print(Path(__file__).parent / "lib" / "cmake" / "aliquot")
        return 0
    if "run" not in args:
        parser.error("give a command, or --cmake-dir")
    try:
        return int(args.run(args))
    except (Error, OSError) as error:
        print(printable(f"aliquot: {error}"), file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    from aliquot.checkpoint import cli  # imports pydantic, which the package needs for checkpoints alone

    parser = argparse.ArgumentParser(prog="python -m aliquot", description="Tools of Aliquot.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--cmake-dir", action="store_true", help="print the folder to give CMake as aliquot_DIR")
    cli.add(parser.add_subparsers(title="commands", metavar="COMMAND"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
