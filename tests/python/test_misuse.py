"""What people do by mistake, or in passing: right, or refused by an error; never silently wrong, never a hang."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import aliquot
import pytest
import torch
from cases import plain
from models import Chain
from ranks import PROCESS_GROUP, SHARED_MEMORY, Transport, run_ranks
from refusals import refused
from torch import Tensor, nn
from training import STAGES, Case, Reference, Sharded, Turn, assert_same_bits, assert_same_weights

CASE = Case(Chain, plain)


class Method(nn.Module):
    """Used through a method that is not its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def loss(self, x: Tensor) -> Tensor:
        return (x * self.weight).square().sum()


def step_after_a_backward_past_the_hooks(rank: int, stage: int) -> bool:
    model = aliquot.shard(Method(), stage=stage)
    optimizer = aliquot.AdamW(model)
    return refused(lambda: (model.loss(Turn(rank, 0).normal(8)).backward(), optimizer.step()))  # type: ignore[operator]


@pytest.mark.parametrize("stage", STAGES)
def test_a_backward_that_no_hook_saw_is_no_silent_no_op(stage: int) -> None:
    assert all(run_ranks(2, step_after_a_backward_past_the_hooks, stage))


def zero_by_the_model(rank: int, stage: int) -> None:
    sharded, reference = Sharded(CASE, stage), Reference(CASE, 2)
    with aliquot.no_sync(sharded.model):
        plain(sharded.model, Turn(rank, 7))
    sharded.model.zero_grad()
    for step in range(2):
        plain(sharded.model, Turn(rank, step))
        sharded.optimizer.step()
        sharded.model.zero_grad()
        reference.step(step)
    assert_same_weights(sharded.weights(), reference.weights())


@pytest.mark.parametrize("transport", [SHARED_MEMORY, PROCESS_GROUP], ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_the_model_s_own_zero_grad_drops_every_gradient(stage: int, transport: Transport) -> None:
    run_ranks(2, zero_by_the_model, stage, transport=transport)


def reset_at_different_places(rank: int, stage: int) -> None:
    sharded, other = Sharded(CASE, stage), Sharded(CASE, stage)
    if rank == 0:
        loss = sharded.model(Turn(rank, 5).normal(4, 8)).square().mean()
        loss.register_hook(fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            loss.backward()
    aliquot.reset_step(sharded.model)
    for step in range(2):
        sharded.step(rank, step)
        other.step(rank, step)
    assert_same_bits(sharded.weights(), other.weights())


def fail(_: Tensor) -> None:
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("stage", STAGES)
def test_ranks_that_all_reset_are_at_the_same_step(stage: int) -> None:
    run_ranks(2, reset_at_different_places, stage)


def raise_while_writing(rank: int, stage: int) -> None:
    sharded, other = Sharded(CASE, stage), Sharded(CASE, stage)
    with pytest.raises((RuntimeError, aliquot.Error), match="on purpose"):
        overwrite(sharded.model, rank)
    assert_same_bits(sharded.weights(), other.weights())


def overwrite(model: nn.Module, rank: int) -> None:
    with aliquot.gathered(model, write=True), torch.no_grad():
        model.get_parameter("first.weight").zero_()
        if rank == 1:
            fail(torch.empty(0))


@pytest.mark.parametrize("stage", STAGES)
def test_an_exception_of_one_rank_while_writing_reaches_all(stage: int) -> None:
    run_ranks(2, raise_while_writing, stage)


def write_in_forward(rank: int) -> bool:
    model = aliquot.shard(nn.Sequential(nn.Embedding(9, 8, max_norm=0.1), nn.Linear(8, 8)), stage=3)
    return refused(lambda: model(torch.arange(9)))


def test_a_forward_may_not_write_to_shards_of_other_ranks() -> None:
    assert run_ranks(2, write_in_forward) == [True, True]


def walk_back_after_the_step(rank: int, stage: int) -> None:
    sharded = Sharded(CASE, stage)
    stale = sharded.model(Turn(rank, 1).normal(4, 8)).square().mean()
    sharded.step(rank, 0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()


@pytest.mark.parametrize("stage", STAGES)
def test_a_graph_from_before_the_step_is_not_walked(stage: int) -> None:
    run_ranks(2, walk_back_after_the_step, stage)


def inside_gathered(rank: int, stage: int) -> None:
    sharded, other = Sharded(CASE, stage), Sharded(CASE, stage)
    with aliquot.gathered(sharded.model), aliquot.gathered(sharded.model):
        sharded.backward(rank, 0)
        assert refused(sharded.optimizer.step)
    sharded.optimizer.step()
    sharded.optimizer.zero_grad()
    other.step(rank, 0)
    sharded.step(rank, 1)
    other.step(rank, 1)
    assert_same_bits(sharded.weights(), other.weights())


@pytest.mark.parametrize("stage", STAGES)
def test_backward_inside_gathered(stage: int) -> None:
    run_ranks(2, inside_gathered, stage)


class Boxed(nn.Module):
    """Returns what no hook looks into."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        return torch.distributions.Normal(self.linear(torch.tanh(x)), 1.0)


class Boxes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Boxed() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x).mean
        return x


BOXES = Case(Boxes, plain, units=(Boxed,))


def train_boxes(rank: int) -> bool:
    sharded, reference = Sharded(BOXES, 3), Reference(BOXES, 2)
    if refused(lambda: sharded.step(rank, 0)):
        return True
    reference.step(0)
    assert_same_weights(sharded.weights(), reference.weights())
    return False


def test_a_backward_over_a_slot_that_was_not_gathered_is_refused() -> None:
    assert run_ranks(2, train_boxes, transport=SHARED_MEMORY) == [False, False]
    assert run_ranks(2, train_boxes, transport=PROCESS_GROUP) == [True, True]


def first_forward_in(rank: int, mode: Callable[[], Any]) -> None:
    sharded, other = Sharded(CASE, 3), Sharded(CASE, 3)
    with mode():
        sharded.model(Turn(rank, 0).normal(4, 8))
    sharded.step(rank, 0)
    other.step(rank, 0)
    assert_same_bits(sharded.weights(), other.weights())


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_validation_before_training(mode: Callable[[], Any]) -> None:
    run_ranks(2, first_forward_in, mode)


def freeze_before_the_first_forward(rank: int) -> None:
    model = aliquot.shard(Chain(), stage=3)
    model.requires_grad_(False)
    model(Turn(rank, 0).normal(4, 8))


def test_frozen_before_the_first_forward() -> None:
    run_ranks(2, freeze_before_the_first_forward)


class Twice(Chain):
    """Calls itself within its forward."""

    def forward(self, x: Tensor, again: bool = True) -> Tensor:
        return super().forward(self(x, False) if again else x)


def accumulate(model: nn.Module, turn: Turn) -> Tensor:
    for part in range(2):
        model(turn.normal(4, 8, part=part)).square().mean().backward()
    return torch.zeros(())


TWICE = Case(Twice, accumulate, slots=8)


def train_twice(rank: int, stage: int) -> None:
    sharded, reference = Sharded(TWICE, stage), Reference(TWICE, 2)
    for step in range(2):
        sharded.step(rank, step)
        reference.step(step)
    assert_same_weights(sharded.weights(), reference.weights())


@pytest.mark.parametrize("stage", STAGES)
def test_a_model_that_calls_itself_keeps_its_gradients(stage: int) -> None:
    run_ranks(2, train_twice, stage)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: aliquot.AdamW(nn.Linear(2, 2).parameters()),  # type: ignore[arg-type]
        lambda: aliquot.AdamW(nn.Linear(2, 2)),
        lambda: aliquot.shard([nn.Linear(2, 2)]),  # type: ignore[arg-type]
        lambda: aliquot.shard(nn.Linear(2, 2), units=nn.Linear),  # type: ignore[arg-type]
        lambda: aliquot.shard(nn.Linear(2, 2), stage=4),
        lambda: aliquot.shard(nn.Linear(2, 2).double()),
        lambda: aliquot.shard(nn.Linear(2, 2), precision="half"),  # type: ignore[arg-type]
        lambda: aliquot.Precision("half"),  # type: ignore[arg-type]
        lambda: aliquot.Precision("fp16", master="split"),
        lambda: aliquot.shard(nn.Linear(2, 2).half(), precision=aliquot.Precision(master="split")),
        lambda: aliquot.shard(nn.Linear(2, 2), precision=aliquot.Precision("bf16", grad="bf16")),
    ],
)
def test_mistakes_of_a_first_day(mistake: Callable[[], object]) -> None:
    def attempt(rank: int) -> None:
        with pytest.raises(aliquot.InvalidArgument):
            mistake()

    run_ranks(1, attempt, transport=None)


def join_with_patience(rank: int, patience: str) -> None:
    os.environ["ALIQUOT_PATIENCE"] = patience
    with pytest.raises(aliquot.InvalidArgument, match=f"ALIQUOT_PATIENCE is '{patience}'; it is a number of seconds"):
        aliquot.init("shared_memory")


@pytest.mark.parametrize("patience", ["abc", "", "0", "-1", "nan", "inf"])
def test_patience_is_a_number_of_seconds(patience: str) -> None:
    run_ranks(1, join_with_patience, patience, transport=None)
