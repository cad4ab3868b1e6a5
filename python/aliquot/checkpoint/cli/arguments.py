"""What several commands are told."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from aliquot.checkpoint import folder
from aliquot.checkpoint.catalog import Checkpoint, latest_checkpoint, open_checkpoint, require_directory

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def parser_of(commands: Commands, name: str, about: str) -> argparse.ArgumentParser:
    """A command that works on a directory of checkpoints."""
    parser = commands.add_parser(name, help=about, description=about)
    parser.add_argument("directory", type=Path, metavar="DIR", help="what save_checkpoint was given, or a step_N in it")
    return parser


def add_step(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """Which checkpoint of the directory."""
    parser.add_argument("--step", type=positive_or_0, metavar="N", help=f"that of step N; otherwise {otherwise}")


def add_json(parser: argparse.ArgumentParser) -> None:
    """For scripts."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def located(args: argparse.Namespace) -> tuple[Path, int | None]:
    """The directory, and which step of it is meant."""
    directory: Path = args.directory.absolute()
    step: int | None = getattr(args, "step", None)
    match = folder.COMMITTED.fullmatch(directory.name)
    if match and (directory / folder.MANIFEST).exists():
        if step is not None:
            raise argparse.ArgumentError(None, f"{args.directory} is one checkpoint: leave out --step")
        return directory.parent, int(match[1])
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is no folder")
    require_directory(directory)
    return directory, step


def chosen(args: argparse.Namespace) -> Checkpoint:
    """The checkpoint that is meant; the latest whole one if none is named."""
    directory, step = located(args)
    return latest_checkpoint(directory) if step is None else open_checkpoint(directory, step)


def positive(text: str) -> int:
    """A number from 1 on."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("it must be 1 or more")
    return number


def positive_or_0(text: str) -> int:
    """A number from 0 on."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError("it must be 0 or more")
    return number
