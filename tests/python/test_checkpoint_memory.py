"""What a load takes: at most 1.25 times what the rank holds of the checkpoint, and 64 MiB."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any

import aliquot
import pytest
import torch
from aliquot import _core
from aliquot._core import PageCache
from checkpoints import replaced
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


def cache_of_a_load(rank: int, directory: Path, stage: int, frozen: bool) -> set[PageCache]:
    model = aliquot.shard(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(not frozen)), stage=stage)
    aliquot.save_checkpoint(directory, model, step=1)
    asked, real = set(), _core.read_ranges

    def read(*arguments: Any) -> None:
        asked.add(arguments[-1])
        real(*arguments)

    with replaced(_core, "read_ranges", read):
        aliquot.load_checkpoint(directory, model)
    return asked


@pytest.mark.parametrize(
    ("ranks", "stage", "frozen", "cache"),
    [
        (1, 0, False, PageCache.drop),
        (2, 0, False, PageCache.keep),
        (2, 1, False, PageCache.drop),
        (2, 2, True, PageCache.keep),
        (2, 3, True, PageCache.drop),
    ],
)
def test_the_kernel_keeps_what_several_ranks_of_a_host_read(
    ranks: int, stage: int, frozen: bool, cache: PageCache, tmp_path: Path
) -> None:
    """And of nothing else a copy, which would be as large as the checkpoint."""
    assert run_ranks(ranks, cache_of_a_load, tmp_path, stage, frozen) == [{cache}] * ranks


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
