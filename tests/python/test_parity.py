"""Long runs against PyTorch itself: unsharded on the same global batch, and DistributedDataParallel.

On shared_memory alone: test_bitwise.py shows that process_group gives the same bits.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.distributed
from cases import CASES
from ranks import run_ranks
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from training import ADAMW, MAX_NORM, STAGES, Reference, Sharded, Turn, assert_same_weights, built

STEPS = 100
CASE = CASES["tied_weights"]


def train_sharded(rank: int, stage: int) -> dict[str, Tensor]:
    sharded = Sharded(CASE, stage)
    for step in range(STEPS):
        sharded.step(rank, step)
    return sharded.weights()


@cache
def unsharded(world_size: int) -> dict[str, Tensor]:
    (weights,) = run_ranks(1, train_unsharded, world_size, transport=None)
    return weights


def train_unsharded(rank: int, world_size: int) -> dict[str, Tensor]:
    reference = Reference(CASE, world_size)
    for step in range(STEPS):
        reference.step(step)
    return reference.weights()


@cache
def ddp() -> dict[str, Tensor]:
    return run_ranks(2, train_ddp, transport=None)[0]


def train_ddp(rank: int) -> dict[str, Tensor]:
    torch.distributed.init_process_group("gloo")
    model = built(CASE)
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(ddp.parameters(), **ADAMW)
    for step in range(STEPS):
        optimizer.zero_grad()
        CASE.run(ddp, Turn(rank, step))
        torch.nn.utils.clip_grad_norm_(ddp.parameters(), MAX_NORM)
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_hundred_steps_like_unsharded(world_size: int, stage: int) -> None:
    for weights in run_ranks(world_size, train_sharded, stage):
        assert_same_weights(weights, unsharded(world_size))


@pytest.mark.parametrize("stage", STAGES)
def test_hundred_steps_like_ddp(stage: int) -> None:
    for weights in run_ranks(2, train_sharded, stage):
        assert_same_weights(weights, ddp())
