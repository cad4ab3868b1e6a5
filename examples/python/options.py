"""What every example can be told."""

from __future__ import annotations

import argparse
from pathlib import Path


def options(description: str, steps: int, lr: float, plot: str) -> argparse.ArgumentParser:
    """`steps`, `lr` and `plot` are the defaults; the example adds what is its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=32, help="samples per rank and step")
    parser.add_argument("--lr", type=float, default=lr, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stage", type=int, default=3, choices=range(4), help="0 nothing sharded .. 3 everything")
    transports = ("auto", "peer", "nccl", "shared_memory", "process_group")
    parser.add_argument("--transport", default="auto", choices=transports)
    parser.add_argument("--plot", type=Path, default=Path("runs", plot), help="where the plot is saved")
    return parser
