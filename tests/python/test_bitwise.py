"""The stages differ in what they hold, not in one bit of what they compute; nor does one run from the next."""

from __future__ import annotations

import os

import pytest
import torch
from cases import CASES
from ranks import PROCESS_GROUP, SHARED_MEMORY, run_ranks
from torch import Tensor
from training import STAGES, Sharded, assert_same_bits

STEPS = 30
WORLD_SIZES = (1, 2, 3, 4)
NAMES = ("tied_weights", "odd_sizes")


def train(rank: int, name: str, stage: int) -> dict[str, Tensor]:
    """Final weights, and every loss and gradient norm of this rank."""
    sharded = Sharded(CASES[name], stage)
    losses, norms = [], []
    for step in range(STEPS):
        losses.append(sharded.step(rank, step))
        norms.append(sharded.optimizer.grad_norm.clone())
    return sharded.weights() | {"losses": torch.stack(losses), "norms": torch.stack(norms)}


def train_every_stage_twice(rank: int, name: str) -> list[dict[str, Tensor]]:
    return [train(rank, name, stage) for stage in STAGES for _ in range(2)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_stages_runs_and_transports_agree_to_the_bit(world_size: int, name: str) -> None:
    jobs = [run_ranks(world_size, train_every_stage_twice, name, transport=t) for t in (SHARED_MEMORY, PROCESS_GROUP)]
    for rank in range(world_size):
        first, *others = (outcome for job in jobs for outcome in job[rank])
        for outcome in others:
            assert_same_bits(outcome, first)


def train_without_launcher(rank: int, name: str, stage: int) -> dict[str, Tensor]:
    for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[variable]
    return train(rank, name, stage)


@pytest.mark.parametrize("stage", STAGES)
def test_world_of_one_needs_no_launcher(stage: int) -> None:
    (launched,) = run_ranks(1, train, "odd_sizes", stage)
    (alone,) = run_ranks(1, train_without_launcher, "odd_sizes", stage, transport=None)
    assert_same_bits(alone, launched)
