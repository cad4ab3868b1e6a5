"""The command line of the comparison on GPUs.

    python bench/python/compare.py --rows                            four models, every contender that is installed
    python bench/python/compare.py --rows 374m:8x1024 7b:2x2048=floor,fsdp2,aliquot-3 --json out.json
    python bench/python/compare.py --rows 7b+lora16:2x2048           adapters of rank 16 train, the model is frozen
    python bench/python/compare.py --curve                           do the losses over 200 steps of real text agree?
    python bench/python/compare.py --rows tiny:2x16 --device cpu --precision fp32      does the code run?

A row is SIZE:BATCHxCONTEXT: a model of llama.SIZES, and the windows and tokens per window of each rank and step.
SIZE+loraRANK is that model frozen in 16 bits, with adapters on the projections of attention.

How to read it. Each contender runs in fresh processes, one contender after another, and all of it `--rounds` times, so
that a machine that drifts hits all alike. `floor` is one GPU's own forward and backward in 16 bits: nothing sharded, no
optimizer. All others make whole steps with AdamW and clip 1.0; how each does bf16 is in gpu/contenders.py and
gpu/zero.py. Step times are medians over all timed steps of all rounds, by CUDA events on the stream that computes; the
host never waits between steps. A step lasts as long as its slowest rank; ratios are taken within a round first.

Memory is that of the rank that holds most, over all steps: `alloc` and `resrv` are what torch's allocator gave out
and kept (Aliquot's arenas added to both), `in use` is the whole device, with NCCL and the CUDA context.
`host` is what the host needs to enqueue a step when the GPU is never the slower one (windows of 16 tokens); `f us` and
`b us` what the library's code adds to that per unit in forward and in backward: what Aliquot counts in its hooks, and
for others the difference to the floor. A `~` marks figures where the GPU needed
longer than the host all the same (large models: gathers), so that the host may have been held back.

Verified before it counts: a contender whose first losses or gradient norms disagree is reported so, without times.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llama import SIZES

from gpu.contenders import CONTENDERS, DTYPES, installed
from gpu.records import Row

ROWS = ("374m:8x1024", "1.1b:4x2048", "7b:2x2048", "7b:1x512")
CURVE_ROW = "demo:8x128"
CURVE_CONTENDERS = ("fsdp2", "aliquot-3")
# 16 bytes a parameter in one place: no GPU of today holds the states of 7.24 billion parameters beside a step. Frozen
# ones have none.
REPLICATED = {"ddp", "aliquot-0"}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", type=Row.parse, help=f"default: {' '.join(ROWS)}")
    parser.add_argument("--curve", action="store_true", help="compare loss curves on real text, nothing is timed")
    parser.add_argument("--contenders", type=_names, help=f"some of {','.join(CONTENDERS)}")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--warmup", type=int, help="steps that are verified but not timed (6)")
    parser.add_argument("--steps", type=int, help="steps that are timed, per contender and round (20; curve: 200)")
    parser.add_argument("--lr", type=float, help="rows: 1e-5, at which 7b does not diverge; curve: 3e-4")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=150, help="seconds that one contender may take")
    parser.add_argument(
        "--start", choices=("fork", "spawn"), default="fork", help="how processes begin (gpu/launch.py)"
    )
    parser.add_argument("--budget", type=float, default=3600, help="seconds after which no contender is started")
    parser.add_argument("--json", type=Path, help="everything measured; written anew after every contender")
    args = parser.parse_args(argv)
    chosen = {"warmup": 0, "steps": 200} if args.curve else {"warmup": 6, "steps": 20}
    vars(args).update({name: value for name, value in chosen.items() if getattr(args, name) is None})
    rows = args.rows or [Row.parse(text) for text in ((CURVE_ROW,) if args.curve else ROWS)]
    args.rows = [_complete(row, args) for row in rows]
    for row in args.rows:
        if row.size not in SIZES or (unknown := set(row.contenders or ()) - set(CONTENDERS)):
            parser.error(f"row {row}: sizes are {', '.join(SIZES)}, contenders {', '.join(CONTENDERS)}, not {unknown}")
    return args


def _complete(row: Row, args: argparse.Namespace) -> Row:
    """A row names its contenders, or they are those of the command line, or all that are installed and fit."""
    default = CURVE_CONTENDERS if args.curve else _fitting(row)
    return replace(row, contenders=row.contenders or args.contenders or default)


def _fitting(row: Row) -> tuple[str, ...]:
    left_out = REPLICATED if row.size == "7b" and not row.adapters else set()
    return tuple(name for name in installed() if name not in left_out)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))
