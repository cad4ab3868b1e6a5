"""What steps leave behind, and what a model that nobody has any more: nothing."""

from __future__ import annotations

import gc
import weakref

import pytest
from cases import plain
from models import Chain
from ranks import run_ranks
from torch import Tensor, nn
from training import Case, Sharded, Turn


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        summed: Tensor = self.linear(x + y)
        return summed


class OfTwoInputs(nn.Module):
    """Its inner module has two that need gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.sum = Sum()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        summed: Tensor = self.sum(hidden, 2 * hidden)
        return summed


def square_of_outputs(model: nn.Module, turn: Turn) -> Tensor:
    loss: Tensor = model(turn.normal(4, 8)).square().mean()
    loss.backward()
    return loss.detach()


def tensors_alive() -> int:
    gc.collect()
    return sum(isinstance(found, Tensor) for found in gc.get_objects())


def forget(rank: int, case: Case) -> tuple[bool, int]:
    """Whether the model is freed, and how many tensors more there were after some steps more."""
    sharded = Sharded(case, 3)
    alive = []
    for step in range(4):
        sharded.step(rank, step)
        alive.append(tensors_alive())
    gone = weakref.ref(sharded.model)
    del sharded
    gc.collect()
    return gone() is None, alive[3] - alive[1]


@pytest.mark.parametrize(
    "case", [Case(Chain, plain), Case(OfTwoInputs, square_of_outputs, units=(Sum,))], ids=["one", "two inputs"]
)
def test_steps_leave_nothing_and_a_model_that_was_forgotten_is_freed(case: Case) -> None:
    assert run_ranks(2, forget, case) == [(True, 0)] * 2
