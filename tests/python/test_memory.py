"""Every byte that a rank holds is in stats(), and there are as many as ZeRO says."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path
from typing import Any

import aliquot
import pytest
import torch
from ranks import FORK, TRANSPORTS, Transport, run_ranks
from torch import nn
from training import ADAMW, STAGES

WORLD_SIZE = 2
WIDTH = 512
DEPTH = 24
PARAMETERS = DEPTH * (WIDTH * WIDTH + WIDTH)
UNIT_BYTES = 4 * PARAMETERS // DEPTH
M_MMAP_THRESHOLD = -3
"""Of malloc.h: from this many bytes on, a block is a mapping of its own."""
TRANSIENT = ("slot", "outbox")
"""Roles of `stats(model).bytes` that do not last: all others are parts of parameters, gradients and states."""


def build() -> nn.Module:
    return nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(DEPTH)))


def trained(stage: int) -> tuple[Any, Any]:
    model = aliquot.shard(build(), stage=stage)
    optimizer = aliquot.AdamW(model, **ADAMW)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, WIDTH)).sum().backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def bytes_by_role(stage: int) -> dict[str, int]:
    model, _ = trained(stage)
    return aliquot.stats(model).bytes


def bytes_in_use() -> int:
    """Of this process. What it shares with the process that it was forked from does not count: how much of that is its
    own changes whenever any of them writes or ends. Of memory that ranks share each has its part. What malloc keeps for
    later is given back.
    """  # fmt: skip
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    kilobytes = 0
    counted: tuple[str, ...] = ()
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if mapping := re.match(r"[0-9a-f]+-[0-9a-f]+ ...(.) ", line):
            counted = ("Pss:",) if mapping[1] == "s" else ("Private_Clean:", "Private_Dirty:")
        elif line.startswith(counted):
            kilobytes += int(line.split()[1])
    return kilobytes * 1024


def growth(rank: int, stage: int, together: Any) -> tuple[int, int]:
    """Of the resident set by a second such model, the first being gone: what torch and gloo keep is not counted. Every
    buffer is a mapping of its own: what heaps could give back would depend on the order of gloo's threads.
    """  # fmt: skip
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 64 * 1024)
    trained(stage)
    together.wait()
    before = bytes_in_use()
    together.wait()
    model, optimizer = trained(stage)
    together.wait()
    after = bytes_in_use()
    together.wait()
    del optimizer
    return after - before, sum(aliquot.stats(model).bytes.values())


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_stage_3_holds_16_bytes_per_parameter_over_the_ranks(transport: Transport) -> None:
    for sizes in run_ranks(WORLD_SIZE, lambda rank: bytes_by_role(3), transport=transport):
        persistent = sum(size for role, size in sizes.items() if role not in TRANSIENT)
        assert persistent == pytest.approx(16 * PARAMETERS / WORLD_SIZE, rel=0.02), sizes
        assert all(sizes.get(role, 0) < 4 * UNIT_BYTES for role in TRANSIENT), sizes


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_shards_one_thing_more(stage: int) -> None:
    """Bytes per parameter: 4 for itself, 4 for its gradient, 8 for the moments."""
    whole = 4 * (stage < 3) + 4 * (stage < 2) + 8 * (stage < 1)
    expected = PARAMETERS * (whole + (16 - whole) / WORLD_SIZE)
    for sizes in run_ranks(WORLD_SIZE, lambda rank: bytes_by_role(stage)):
        persistent = sum(size for role, size in sizes.items() if role not in TRANSIENT)
        assert persistent == pytest.approx(expected, rel=0.02), sizes


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_the_process_grows_by_what_stats_says(stage: int, transport: Transport) -> None:
    together = FORK.Barrier(WORLD_SIZE)
    outcomes = run_ranks(WORLD_SIZE, growth, stage, together, transport=transport)
    grown, accounted = (sum(values) for values in zip(*outcomes, strict=True))
    # gloo also holds a few messages that came before they were waited for
    assert grown == pytest.approx(accounted, rel=0.15)
