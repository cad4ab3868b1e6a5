"""Blocks skipped at random, differently on each rank: one-sided transports train right, two-sided ones say so."""

from __future__ import annotations

import re
from functools import partial

import aliquot
import pytest
import torch
from cases import ordered, square_loss
from models import Chain
from ranks import PROCESS_GROUP, SHARED_MEMORY, SHARED_MEMORY_POISONED, Transport, run_ranks
from torch import Tensor, nn
from training import STAGES, Case, Reference, Sharded, Turn, assert_same_weights

DEPTH = 4
STEPS = 10


def skip_at_random(model: nn.Module, turn: Turn) -> Tensor:
    kept = (turn.normal(DEPTH) > 0).nonzero().flatten().tolist()
    loss = square_loss(model, turn, order=kept)
    loss.backward()
    return loss.detach()


def skip_on_one_rank(model: nn.Module, turn: Turn) -> Tensor:
    return ordered(model, turn, [(0, 2, 3) if turn.rank == 0 else (0, 1, 2, 3)])


SKIP_AT_RANDOM = Case(partial(Chain, DEPTH), skip_at_random)
SKIP_ON_ONE_RANK = Case(partial(Chain, DEPTH), skip_on_one_rank)


def train_both(rank: int, world_size: int, stage: int, case: Case) -> None:
    sharded, reference = Sharded(case, stage), Reference(case, world_size)
    for step in range(STEPS):
        torch.testing.assert_close(sharded.step(rank, step), reference.step(step)[rank])
    assert_same_weights(sharded.weights(), reference.weights())


@pytest.mark.parametrize("transport", [SHARED_MEMORY, SHARED_MEMORY_POISONED], ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world_size", [2, 3])
def test_one_sided_transports_train_right(world_size: int, stage: int, transport: Transport) -> None:
    run_ranks(world_size, train_both, world_size, stage, SKIP_AT_RANDOM, transport=transport)


def error_of(rank: int, world_size: int, stage: int) -> str | None:
    try:
        train_both(rank, world_size, stage, SKIP_ON_ONE_RANK)
    except aliquot.CommunicatorError as error:
        return str(error)
    return None


@pytest.mark.parametrize("stage", STAGES)
def test_process_group_names_both_units(stage: int) -> None:
    """Where parameters are whole nothing is gathered, and ranks may differ; then the result has to be right."""
    errors = run_ranks(2, error_of, 2, stage, transport=PROCESS_GROUP, timeout=15.0)
    if stage == 3:
        assert None not in errors
    for text in filter(None, errors):
        assert {"blocks.1", "blocks.2"} <= set(re.findall(r"blocks\.\d", text)), text
