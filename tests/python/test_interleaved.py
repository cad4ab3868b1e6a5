"""Two forwards before one backward: units are needed out of the order of any ring. Right, or an error with a remedy."""

from __future__ import annotations

import re
from dataclasses import replace

import aliquot
import pytest
from cases import square_loss
from models import Chain, Towers
from ranks import TRANSPORTS, Transport, run_ranks
from torch import Tensor, nn
from training import STAGES, Case, Turn, train_both

WORLD_SIZE = 2
STEPS = 5
ENOUGH_SLOTS = 8


def two_forwards_one_backward(model: nn.Module, turn: Turn) -> Tensor:
    loss = square_loss(model, turn, part=0) + square_loss(model, turn, part=1)
    loss.backward()
    return loss.detach()


CASES = {"chain": Case(Chain, two_forwards_one_backward), "towers": Case(Towers, two_forwards_one_backward)}


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", CASES)
def test_is_right_with_enough_slots(name: str, stage: int, transport: Transport) -> None:
    case = replace(CASES[name], slots=ENOUGH_SLOTS)
    run_ranks(WORLD_SIZE, train_both, case, stage, WORLD_SIZE, STEPS, transport=transport)


def refusal(rank: int, case: Case, stage: int) -> str | None:
    try:
        train_both(rank, case, stage, WORLD_SIZE, STEPS)
    except aliquot.InvalidArgument as error:
        return str(error)
    return None


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", CASES)
def test_without_them_is_right_or_names_both_units(name: str, stage: int, transport: Transport) -> None:
    for text in run_ranks(WORLD_SIZE, refusal, CASES[name], stage, transport=transport):
        if text is not None:
            assert stage == 3
            assert len(set(re.findall(r"unit '([^']+)'", text))) == 2, text
            assert "aliquot.shard(model, slots=" in text
