"""Ranks that take different paths through the model: one-sided transports train right, two-sided ones say so."""

from __future__ import annotations

import re
from functools import partial

import aliquot
import pytest
from cases import ordered, square_loss
from models import Chain, Gated
from ranks import PROCESS_GROUP, SHARED_MEMORY, SHARED_MEMORY_POISONED, Transport, run_ranks
from torch import Tensor, nn
from training import STAGES, Case, Turn, train_both

DEPTH = 4
STEPS = 10


def skip_at_random(model: nn.Module, turn: Turn) -> Tensor:
    kept = (turn.normal(DEPTH) > 0).nonzero().flatten().tolist()
    loss = square_loss(model, turn, order=kept)
    loss.backward()
    return loss.detach()


def skip_on_one_rank(model: nn.Module, turn: Turn) -> Tensor:
    return ordered(model, turn, [(0, 2, 3) if turn.rank == 0 else (0, 1, 2, 3)])


def gate_on_one_rank(model: nn.Module, turn: Turn) -> Tensor:
    """All run the same units; some of a unit's parameters get a gradient on one rank only."""
    loss = square_loss(model, turn, gated=turn.rank == turn.step % 2)
    loss.backward()
    return loss.detach()


CASES = {
    "skip_at_random": Case(partial(Chain, DEPTH), skip_at_random),
    "skip_on_one_rank": Case(partial(Chain, DEPTH), skip_on_one_rank),
    "gate_on_one_rank": Case(Gated, gate_on_one_rank),
}


@pytest.mark.parametrize("transport", [SHARED_MEMORY, SHARED_MEMORY_POISONED], ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_one_sided_transports_train_right(name: str, world_size: int, stage: int, transport: Transport) -> None:
    run_ranks(world_size, train_both, CASES[name], stage, world_size, STEPS, transport=transport)


def disagreement(rank: int, name: str, stage: int) -> str | None:
    try:
        train_both(rank, CASES[name], stage, world_size=2, steps=STEPS)
    except aliquot.CommunicatorError as error:
        return str(error)
    return None


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", CASES)
def test_process_group_trains_right_or_names_both_units(name: str, stage: int) -> None:
    """Soon: the ranks have 15 seconds for all of it, not a process group's ten minutes."""
    for text in run_ranks(2, disagreement, name, stage, transport=PROCESS_GROUP, timeout=15.0):
        assert text is None or len(set(re.findall(r"unit '([^']+)'", text))) == 2, text


def test_process_group_refuses_skipped_gathers() -> None:
    """Where parameters are sharded, a rank that skips a block can't be right."""
    for text in run_ranks(2, disagreement, "skip_on_one_rank", 3, transport=PROCESS_GROUP, timeout=15.0):
        assert {"rank 0", "rank 1", "'blocks.1'", "'blocks.2'"} <= set(re.findall(r"rank \d|'blocks\.\d'", text)), text
