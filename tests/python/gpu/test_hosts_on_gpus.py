"""GPUs of several hosts. Those of this host play two: NCCL goes through sockets between them."""

from __future__ import annotations

import os
from dataclasses import replace

import aliquot
import pytest
from cases import CASES
from losing import lose
from ranks import Transport, play_host, run_ranks
from test_different_paths import disagreement
from torch import Tensor
from training import STAGES, Sharded, assert_same_bits, train_both

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_gpu")]

SECONDS = 5.0
STEPS = 4
FLAT = Transport("nccl", poison=True, hosts=2)
LAYERED = Transport("hierarchical", poison=True, hosts=2, gpus=True)
NAMES = ("plain", "tied_weights", "accumulate", "frozen")


# Both hosts have the same GPUs; with four ranks, those of a host may share one.
WORLDS = pytest.mark.parametrize(("transport", "world_size"), [(FLAT, 2), (LAYERED, 2), (LAYERED, 4)], ids=str)


def train_all(rank: int, world_size: int, replicas: int) -> None:
    """One job for all models: it takes seconds to start one."""
    for name in NAMES:
        for stage in STAGES:
            train_both(rank, replace(CASES[name], replicas=replicas), stage, world_size, STEPS)


@WORLDS
@pytest.mark.parametrize("replicas", [1, 2])
def test_like_unsharded(world_size: int, replicas: int, transport: Transport) -> None:
    run_ranks(world_size, train_all, world_size, replicas, transport=transport, timeout=240.0)


def train_every_stage(rank: int, replicas: int) -> list[dict[str, Tensor]]:
    outcomes = []
    for stage in STAGES:
        sharded = Sharded(replace(CASES["tied_weights"], replicas=replicas), stage)
        for step in range(STEPS):
            sharded.step(rank, step)
        outcomes.append(sharded.weights())
    return outcomes


@WORLDS
@pytest.mark.parametrize("replicas", [1, 2])
def test_stages_ranks_and_runs_agree_to_the_bit(world_size: int, replicas: int, transport: Transport) -> None:
    jobs = [run_ranks(world_size, train_every_stage, replicas, transport=transport, timeout=120.0) for _ in range(2)]
    first, *others = (outcome for job in jobs for of_rank in job for outcome in of_rank)
    for outcome in others:
        assert_same_bits(outcome, first)


def chosen(rank: int) -> tuple[str, str]:
    play_host(rank // 2)
    os.environ["LOCAL_RANK"] = "0"
    world = aliquot.init()
    return world.transport, str(world.device)


def test_auto_joins_the_hosts() -> None:
    assert run_ranks(4, chosen, transport=None) == [("hierarchical", "cuda:0")] * 4


@WORLDS
@pytest.mark.parametrize("replicas", [1, 2])
def test_all_hosts_hear_of_a_killed_rank(world_size: int, replicas: int, transport: Transport) -> None:
    for victim in (0, world_size - 1):
        lose(victim, world_size, 3, replicas, 0.05, transport, seconds=SECONDS)


@WORLDS
def test_ranks_that_skip_units_are_told(world_size: int, transport: Transport) -> None:
    for text in run_ranks(world_size, disagreement, "skip_on_one_rank", 3, transport=transport, timeout=60.0):
        assert "blocks." in text
