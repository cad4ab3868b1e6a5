"""Two sharded models in one process: trained in turns, and one behind the other in a single backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CASES
from models import WIDTH, Chain
from ranks import TRANSPORTS, Transport, run_ranks
from torch import Tensor, nn
from training import STAGES, Case, Reference, Sharded, Turn, assert_same_weights, average_gradients

STEPS = 5
WORLD_SIZE = 2
CASE = Case(Chain, CASES["plain"].run)


def joint_backward(first: nn.Module, second: nn.Module, turn: Turn) -> None:
    y: Tensor = second(torch.tanh(first(turn.normal(4, WIDTH))))
    (y - 1).square().mean().backward()


def train_in_turns(rank: int, stage: int) -> None:
    sharded: list[Any] = [Sharded(CASE, stage), Sharded(CASES["odd_sizes"], STAGES[-1 - stage])]
    references = [Reference(s.case, WORLD_SIZE) for s in sharded]
    for step in range(STEPS):
        for s, reference in zip(sharded, references, strict=True):
            s.step(rank, step)
            reference.step(step)
    for s, reference in zip(sharded, references, strict=True):
        assert_same_weights(s.weights(), reference.weights())


def train_jointly(rank: int, stage: int) -> None:
    first, second = Sharded(CASE, stage), Sharded(CASE, STAGES[-1 - stage])
    references = [Reference(CASE, WORLD_SIZE), Reference(CASE, WORLD_SIZE)]
    for step in range(STEPS):
        for s in (first, second):
            s.optimizer.zero_grad()
        joint_backward(first.model, second.model, Turn(rank, step))
        for s in (first, second):
            s.optimizer.step()
        train_references_jointly(references, step)
    assert_same_weights(first.weights(), references[0].weights())
    assert_same_weights(second.weights(), references[1].weights())


def train_references_jointly(references: list[Reference], step: int) -> None:
    for optimizer in references[0].optimizers + references[1].optimizers:
        optimizer.zero_grad()
    for rank, (first, second) in enumerate(zip(*(r.replicas for r in references), strict=True)):
        joint_backward(first, second, Turn(rank, step))
    for reference in references:
        average_gradients(reference.replicas)
        reference.update()


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("train", [train_in_turns, train_jointly], ids=["in_turns", "jointly"])
def test_two_models(train: Any, stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, train, stage, transport=transport)
