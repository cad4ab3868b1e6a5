"""What goes wrong on one rank, on GPUs: within 5 seconds every other rank says what, and the GPUs are free again."""

from __future__ import annotations

import random
import time
from functools import partial

import aliquot
import pytest
import torch
from cases import CASES, square_loss
from losing import lose
from models import Chain
from ranks import NCCL, PEER, Transport, run_ranks, started
from test_exceptions import CASE as FUSED
from test_exceptions import PLACES, compare, fail
from torch import Tensor, nn
from training import STAGES, Case, Sharded, Turn

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_gpu")]

SECONDS = 5.0
LOSSES = 10
SLACK = 64 << 20
"""Bytes of a GPU that may differ between two looks at it: what a process takes only by starting the driver."""


def free_bytes(rank: int) -> int:
    return torch.cuda.mem_get_info(rank % torch.cuda.device_count())[0]


def lose_a_rank(chance: random.Random, transport: Transport) -> None:
    victim, stage, delay = chance.randrange(2), chance.choice(STAGES), chance.uniform(0.0, 0.05)
    lose(victim, 2, stage, 1, delay, transport, seconds=SECONDS)


def test_the_survivor_names_the_dead_and_leaves_nothing_on_the_gpus(transport: Transport) -> None:
    before = run_ranks(2, free_bytes, transport=None)
    chance = random.Random(LOSSES)
    for _ in range(LOSSES):
        lose_a_rank(chance, transport)
    for free, free_before in zip(run_ranks(2, free_bytes, transport=None), before, strict=True):
        assert free > free_before - SLACK


def compare_everywhere(rank: int) -> None:
    """One job for all: it takes seconds to start one."""
    for stage in STAGES:
        for place in PLACES:
            compare(rank, stage, place)


def test_a_failure_of_all_ranks_is_forgotten_after_reset_step(transport: Transport) -> None:
    run_ranks(2, compare_everywhere, transport=transport, timeout=120.0)


def error_of_going_on(sharded: Sharded, rank: int) -> tuple[float, str]:
    """When CommunicatorError was raised, and its text."""
    deadline = time.monotonic() + 4 * SECONDS
    step = 1
    while time.monotonic() < deadline:
        try:
            sharded.step(rank, step)
        except aliquot.CommunicatorError as error:
            return time.monotonic(), str(error)
        step += 1
    raise AssertionError(f"no error in {step} steps")


def fail_on_rank_0(rank: int, stage: int, place: str) -> tuple[float, float, str]:
    """When the ranks' ways parted, and what they heard of it."""
    sharded = Sharded(FUSED, stage)
    sharded.step(rank, 0)
    torch.cuda.synchronize()
    parted = time.monotonic()
    if rank == 0:
        fail(sharded, rank, 1, place)
        aliquot.reset_step(sharded.model)
    return parted, *error_of_going_on(sharded, rank)


def assert_soon(outcomes: list[tuple[float, float, str]]) -> None:
    parted = max(when for when, _, _ in outcomes)
    for _, raised, text in outcomes:
        assert raised - parted < SECONDS, text
        assert all(f"rank {rank}" in text for rank in range(2)), text


FAILURES = [(NCCL, "forward", 3), *((each, "backward", stage) for each in (PEER, NCCL) for stage in (3, 0))]


@pytest.mark.parametrize(("transport", "place", "stage"), FAILURES, ids=str)
def test_a_failure_of_one_rank_ends_all_with_an_error(transport: Transport, place: str, stage: int) -> None:
    """A reduction needs every rank: the one that gives a step up leaves the other in the middle of it. (A forward that
    meets nobody, on NCCL one of stage 0, can be repeated.)
    """  # fmt: skip
    assert_soon(run_ranks(2, fail_on_rank_0, stage, place, transport=transport))


def skip_later(model: nn.Module, turn: Turn) -> Tensor:
    loss = square_loss(model, turn, order=(0, 2, 3) if turn.rank == 0 and turn.step > 0 else (0, 1, 2, 3))
    loss.backward()
    return loss.detach()


def take_different_paths(rank: int, stage: int) -> tuple[float, float, str]:
    sharded = Sharded(Case(partial(Chain, 4), skip_later), stage)
    sharded.step(rank, 0)
    torch.cuda.synchronize()
    return time.monotonic(), *error_of_going_on(sharded, rank)


def test_nccl_names_both_units_of_ranks_that_take_different_paths() -> None:
    """A gather needs every rank there."""
    outcomes = run_ranks(2, take_different_paths, 3, transport=NCCL)
    assert_soon(outcomes)
    for _, _, text in outcomes:
        assert text.count('of unit "') == 2, text


def train_plainly(rank: int) -> None:
    sharded = Sharded(CASES["plain"], 3)
    for step in range(3):
        sharded.step(rank, step)


def test_ranks_that_end_in_good_order_exit_at_once(transport: Transport) -> None:
    with started(2, train_plainly, transport=transport) as ranks:
        ranks.results(timeout=60.0)
        assert ranks.exit_codes(timeout=15.0) == [0, 0]
