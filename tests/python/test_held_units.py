"""Between a backward that builds a graph and the step: units stay gathered, and no guard is off meanwhile."""

from __future__ import annotations

import aliquot
import pytest
import torch
from cases import BATCH, plain
from models import WIDTH, Chain
from ranks import PROCESS_GROUP, SHARED_MEMORY, Transport, run_ranks
from torch import Tensor, nn
from training import Case, Sharded, Turn, assert_same_bits, relative_error

ENOUGH_SLOTS = 8
UNPOISONED = Transport("process_group")


def held(rank: int) -> Sharded:
    """A model after a backward that builds a graph."""
    sharded = Sharded(Case(Chain, plain, slots=ENOUGH_SLOTS), 3)
    x = Turn(rank, 0).normal(BATCH, WIDTH).requires_grad_()
    (slope,) = torch.autograd.grad(sharded.model(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    return sharded


def uses_are_refused(rank: int) -> None:
    model = held(rank).model
    for use in (
        lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0),
        lambda: torch.optim.SGD(model.parameters(), lr=0.1).step(),
        lambda: next(model.parameters()).detach().zero_(),
        lambda: next(model.parameters()).detach().clone(),
    ):
        with pytest.raises(aliquot.Error):
            use()


@pytest.mark.parametrize("transport", [UNPOISONED, PROCESS_GROUP], ids=str)
def test_uses_of_values_are_refused_as_ever(transport: Transport) -> None:
    run_ranks(2, uses_are_refused, transport=transport)


def dropped_gradients(rank: int) -> None:
    sharded, other = held(rank), Sharded(Case(Chain, plain, slots=ENOUGH_SLOTS), 3)
    sharded.model.zero_grad()
    for step in range(2):
        for each in (sharded, other):
            each.step(rank, step)
    assert_same_bits(sharded.weights(), other.weights())


def test_the_model_s_zero_grad_drops_gradients() -> None:
    run_ranks(2, dropped_gradients, transport=PROCESS_GROUP)


def load_while_held(rank: int) -> None:
    sharded = held(rank)
    sharded.model.zero_grad()
    aliquot.load_full_state_dict(sharded.model, {name: value + 1 for name, value in sharded.weights().items()})
    before = sharded.weights()
    sharded.model(Turn(rank, 1).normal(BATCH, WIDTH))
    assert_same_bits(sharded.weights(), before)
    sharded.step(rank, 2)


def test_loading_meanwhile() -> None:
    run_ranks(2, load_while_held, transport=PROCESS_GROUP)


def skip_too_often(rank: int) -> None:
    sharded = Sharded(Case(Chain, plain), 3, max_skipped=1)
    (sharded.model(Turn(rank, 0).normal(BATCH, WIDTH)) * float("nan")).sum().backward()
    with pytest.raises(aliquot.Error, match="in a row"):
        sharded.optimizer.step()
    with pytest.raises(aliquot.Error, match="gathered"):
        next(sharded.model.parameters()).detach().sum()
    sharded.step(rank, 1)


def test_a_step_that_raises_ends_the_step() -> None:
    run_ranks(2, skip_too_often, transport=PROCESS_GROUP)


def fail(_: Tensor) -> None:
    raise RuntimeError("on purpose")


def reset_in_gathered(rank: int) -> None:
    sharded = Sharded(Case(Chain, plain), 3)
    loss = sharded.model(Turn(rank, 0).normal(BATCH, WIDTH)).square().mean()
    loss.register_hook(fail)  # type: ignore[no-untyped-call]
    with aliquot.gathered(sharded.model):
        with pytest.raises(RuntimeError, match="on purpose"):
            loss.backward()
        aliquot.reset_step(sharded.model)
    for step in range(3):
        sharded.step(rank, step)


@pytest.mark.parametrize("transport", [SHARED_MEMORY, PROCESS_GROUP], ids=str)
def test_reset_inside_gathered(transport: Transport) -> None:
    run_ranks(2, reset_in_gathered, transport=transport)


class Skips(Chain):
    """Runs only the blocks in `order`."""


def skip_in_the_last(model: nn.Module, turn: Turn) -> Tensor:
    with turn.no_sync(model):
        first = model(turn.normal(BATCH, WIDTH)).square().mean()
        first.backward()
    second = model(turn.normal(BATCH, WIDTH, part=1), order=(0, 1)).square().mean()
    second.backward()
    return torch.stack([first, second]).detach()


def accumulate_and_skip(rank: int) -> None:
    case = Case(Skips, skip_in_the_last)
    sharded, other = Sharded(case, 3), Sharded(case, 2)
    for step in range(3):
        assert relative_error(sharded.step(rank, step), other.step(rank, step)) < 1e-5
    assert_same_bits(sharded.weights(), other.weights())


def test_a_block_skipped_in_the_last_micro_batch() -> None:
    run_ranks(2, accumulate_and_skip, transport=PROCESS_GROUP)


def old_graph(rank: int) -> None:
    sharded = Sharded(Case(Chain, plain), 3)
    stale = sharded.model(Turn(rank, 0).normal(BATCH, WIDTH)).square().mean()
    aliquot.reset_step(sharded.model)
    sharded.step(rank, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()


def test_a_graph_from_before_reset_is_not_walked() -> None:
    run_ranks(2, old_graph, transport=UNPOISONED)
