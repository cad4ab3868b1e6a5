"""Saves and loads of the same training state by Aliquot, torch.distributed.checkpoint and DeepSpeed, in one run.

    python bench/python/checkpoints.py --size demo                   two CPU ranks
    python bench/python/checkpoints.py --size 7b --device cuda --folder /a/disk

Each contender trains a step, so that there are optimizer states, in fresh processes; behind one save and load of each
kind, saves and loads are timed from a barrier to when the slowest rank returns, and written files are synced, as each
library does by default. A load finds nothing in the kernel's cache, unless the folder is in memory anyway. A save
behind training (`stall`) is timed until the call returns; beside it, as `copy`, one copy of as many bytes as the rank
saves from where they lie to host memory. Medians of `--rounds`, contenders in turn.

Verified before timed: what is loaded trains on with the losses that were seen behind the save.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from llama import SIZES
from rich.console import Console
from rich.table import Table
from savers import SAVERS, installed

GIB = 2**30
HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "examples" / "python"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="demo")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="what disk to save to")
    parser.add_argument("--only", type=lambda names: names.split(","), help=f"some of {','.join(SAVERS)}")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    args = parser.parse_args()
    if unknown := set(args.only or ()) - set(SAVERS):
        parser.error(f"unknown contenders {sorted(unknown)}; there are {', '.join(SAVERS)}")
    return args


def run_contender(name: str, args: argparse.Namespace) -> list[dict[str, float]]:
    """What each rank measured."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={args.ranks}"]
    path = os.pathsep.join(filter(None, (str(EXAMPLES), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {
        "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": args.device,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        command = [*launch, str(HERE / "saving_rank.py"), name, args.size, args.device, folder]
        ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if ended.returncode:
            raise RuntimeError(f"{name} failed; its last words:\n{ended.stdout[-4000:]}")
        return [json.loads((Path(folder) / f"rank{rank}.json").read_text()) for rank in range(args.ranks)]


def measure(args: argparse.Namespace, console: Console) -> dict[str, list[list[dict[str, float]]]]:
    names = args.only or installed()
    found: dict[str, list[list[dict[str, float]]]] = {name: [] for name in names}
    for number in range(1, args.rounds + 1):
        for name in names:
            console.print(f"round {number}/{args.rounds}: {name}", highlight=False)
            found[name].append(run_contender(name, args))
    return found


def table(found: dict[str, list[list[dict[str, float]]]]) -> Table:
    """Seconds of the slowest rank."""
    columns = ("save", "load", "stall", "copy")
    made = Table("contender", "GiB", *(f"{column}, s" for column in columns), "saved, GiB/s", "stall / copy")
    for name, rounds in found.items():
        seconds = {column: median(max(rank[column] for rank in ranks) for ranks in rounds) for column in columns}
        gib = rounds[0][0]["bytes"] / GIB
        cells = (f"{seconds[column]:.3f}" for column in columns)
        rate, stall = gib / seconds["save"], seconds["stall"] / seconds["copy"]
        made.add_row(name, f"{gib:.2f}", *cells, f"{rate:.2f}", f"{stall:.2f}")
    return made


def main() -> None:
    args = parse_arguments()
    try:
        found = measure(args, Console(stderr=True))
    except RuntimeError as error:
        sys.exit(f"checkpoints.py: {error}")
    Console().print(table(found))
    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args), "contenders": found}, default=str))


if __name__ == "__main__":
    main()
