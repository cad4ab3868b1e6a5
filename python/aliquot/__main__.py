"""`python -m aliquot`: what a build system asks of the installed package, and the command line for checkpoints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from aliquot._core import __version__


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 if all is well, 1 for damage or an error, 2 for a call that is none."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.cmake_dir:
        print(Path(__file__).parent / "lib" / "cmake" / "aliquot")
        return 0
    if args.command is None:
        parser.error("give a command, or --cmake-dir")
    from aliquot.checkpoint import cli  # imports pydantic, which the package needs for checkpoints alone

    return cli.main(f"{parser.prog} {args.command}", args.arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m aliquot", description="Tools of Aliquot.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--cmake-dir", action="store_true", help="print the folder to give CMake as aliquot_DIR")
    parser.add_argument(
        "command", nargs="?", choices=["checkpoint"],
        help="checkpoint: list, verify, inspect, export, reshard or prune checkpoints; see checkpoint --help",
    )  # fmt: skip
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
