"""What a load takes: at most 1.25 times what the rank holds of the checkpoint, and 64 MiB."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any

import aliquot
import pytest
import torch
from ranks import run_ranks
from torch import nn

WIDTH = 1024
DEPTH = 12
NUMBERS = 3
"""fp32 ones for each parameter: itself and two moments."""
MIB = 1 << 20


def trained(stage: int, precision: Any) -> tuple[Any, Any]:
    model: Any = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(DEPTH)))
    model = aliquot.shard(model, stage=stage, precision=precision)
    optimizer = aliquot.AdamW(model)
    model(torch.ones(1, WIDTH)).float().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    gc.collect()
    return model, optimizer


def in_use(what: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith(what))


def growth(rank: int, directory: Path, stage: int, precision: Any) -> int:
    """By how much the peak of the resident set is above what there was, for everything is touched already."""
    model, optimizer = trained(stage, precision)
    aliquot.save_checkpoint(directory, model, optimizer, step=1)
    with aliquot.gathered(model):
        pass
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = in_use("VmRSS")
    aliquot.load_checkpoint(directory, model, optimizer)
    return in_use("VmHWM") - before


@pytest.mark.parametrize(("stage", "precision"), [(2, "bf16"), (3, "fp32")])
def test_a_load_takes_little_more_than_the_shard(stage: int, precision: str, tmp_path: Path) -> None:
    """For a shard of this size 16 MiB are enough."""
    shard = 4 * NUMBERS * DEPTH * WIDTH * (WIDTH + 1) // 2
    for peak in run_ranks(2, growth, tmp_path, stage, precision):
        assert shard / 2 < peak <= 1.25 * shard + 16 * MIB, f"{peak / MIB:.0f} MiB for a shard of {shard / MIB:.0f} MiB"
