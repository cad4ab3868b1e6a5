"""`python -m aliquot checkpoint inspect`."""

from __future__ import annotations

import argparse
import json
from fnmatch import fnmatchcase
from typing import Any

from aliquot.checkpoint.catalog import Checkpoint
from aliquot.checkpoint.cli.arguments import Commands, add_json, add_step, chosen, parser_of
from aliquot.checkpoint.cli.listing import about, size_of
from aliquot.checkpoint.cli.text import printable, size_text, table
from aliquot.checkpoint.manifest import Manifest, Tensor


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = parser_of(commands, "inspect", "Say what is in a checkpoint: who saved it, tensors, optimizers.")
    add_step(parser, "the latest whole one")
    parser.add_argument(
        "patterns", nargs="*", metavar="PATTERN",
        help="name only tensors whose key matches one, such as 'param/*.weight' or 'optimizer/0/exp_avg/*'",
    )  # fmt: skip
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints a summary, and a line for each tensor."""
    checkpoint = chosen(args)
    summary, tensors = _summary(checkpoint), _tensors(checkpoint.manifest, args.patterns)
    if args.json:
        print(json.dumps(summary | {"tensors": tensors}, indent=2))
        return 0
    width = max(map(len, summary))
    for name, value in summary.items():
        print(printable(f"{name.ljust(width)}  {value}"))
    rows = [(key, found["dtype"], str(found["shape"]), size_text(found["bytes"])) for key, found in tensors.items()]
    print("\n" + table([("tensor", "dtype", "shape", "size"), *rows]) if rows else "\nno such tensor")
    return 0


def _summary(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    kinds = {key.partition("/")[0] for key in manifest.tensors}
    return {
        "step": manifest.step,
        **about(checkpoint),
        "bytes": size_of(checkpoint),
        "elements": {
            kind: sum(tensor.numel for key, tensor in manifest.tensors.items() if key.startswith(f"{kind}/"))
            for kind in sorted(kinds)
        },
        "tied": manifest.tied,
        "optimizers": [optimizer.kind for optimizer in manifest.optimizers],
        "schedulers": len(manifest.schedulers),
        "scaler": manifest.scaler is not None,
        "loader": any(rank.loader is not None for rank in manifest.ranks),
        "extra": manifest.extra,
    }


def _tensors(manifest: Manifest, patterns: list[str]) -> dict[str, dict[str, Any]]:
    return {
        key: _described(tensor)
        for key, tensor in manifest.tensors.items()
        if not patterns or any(fnmatchcase(key, pattern) for pattern in patterns)
    }


def _described(tensor: Tensor) -> dict[str, Any]:
    files = [piece.file for piece in tensor.pieces]
    return {"dtype": tensor.dtype, "shape": tensor.shape, "bytes": tensor.numel * tensor.width, "files": files}
