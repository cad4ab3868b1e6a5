"""`python -m aliquot checkpoint export`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from aliquot._core import InvalidArgument
from aliquot.checkpoint.catalog import Checkpoint
from aliquot.checkpoint.cli.arguments import Commands, add_step, chosen, parser_of
from aliquot.checkpoint.cli.progress import Note, progress
from aliquot.checkpoint.whole import whole_tensors
from aliquot.interchange import hugging_face_writing
from aliquot.interchange.entry import Entry, Named, Source
from aliquot.interchange.new_folder import new_folder

FORMATS = ("safetensors", "dcp")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def add(commands: Commands) -> None:
    """Adds the command."""
    about = "Write parameters and buffers as a folder for Hugging Face, or for torch.distributed.checkpoint."
    parser = parser_of(commands, "export", about)
    parser.add_argument("to", type=Path, metavar="OUT", help="a folder that is not there yet, or is empty")
    add_step(parser, "the latest whole one")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="what to write (default: %(default)s)")
    parser.add_argument(
        "--max-shard-size", type=_size, metavar="SIZE", default=_size("5GB"),
        help="safetensors: how large a file gets, such as 5GB or 500MiB (default: 5GB)",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, help="what floating-point values are cast to (default: as saved)")
    parser.add_argument("--prefix", default="", help="what to put before every name, such as 'model.'")
    parser.set_defaults(run=run)


def _size(text: str) -> int:
    try:
        return hugging_face_writing.size_of(int(text) if text.isdecimal() else text)
    except InvalidArgument as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace) -> int:
    """Reads, checks and writes one tensor after the other."""
    checkpoint = chosen(args)
    source = whole_tensors(checkpoint).renamed(lambda name: args.prefix + name)
    entries = [entry.cast_to(DTYPES.get(args.dtype)) for entry in source.entries.values()]
    total = sum(entry.bytes for entry in source.entries.values())
    with new_folder(args.to) as draft, progress(f"export step_{checkpoint.manifest.step}", total) as note:
        _write(args, checkpoint, draft, entries, ((name, _noted(source, name, note)) for name in source))
    print(f"{args.to}: {len(entries)} tensors of step {checkpoint.manifest.step}")
    return 0


def _noted(source: Source, name: str, note: Note) -> torch.Tensor:
    value = source[name]
    note(source.entries[name].bytes)
    return value


def _write(args: argparse.Namespace, checkpoint: Checkpoint, folder: Path, entries: list[Entry], values: Named) -> None:
    if args.format == "dcp":
        from aliquot.interchange import dcp_writing  # which takes most of a second

        dcp_writing.write(folder, entries, values)
    else:
        tied = {args.prefix + other: args.prefix + first for other, first in checkpoint.manifest.tied.items()}
        hugging_face_writing.write(folder, entries, values, tied, args.max_shard_size)
