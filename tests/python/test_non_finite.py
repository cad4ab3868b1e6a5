"""A gradient that is not finite: every rank skips alike, nothing changes by a bit, the culprit is named."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from cases import square_loss
from models import Chain
from ranks import TRANSPORTS, Transport, run_ranks
from torch import Tensor, nn
from training import STAGES, Case, Sharded, Turn, assert_same_bits

STEPS = 6
BAD_STEPS = (0, 3)
BAD_RANK = 1
CULPRITS = ("blocks.1.down.bias", "blocks.2.norm.weight")


def nan(p: Tensor) -> Tensor:
    """Zero, with a gradient of NaN."""
    return 0 * (p - p.detach()).sqrt().sum()


def infinity(p: Tensor) -> Tensor:
    """Zero, with an infinite gradient."""
    return (p - p.detach()).mul(1e30).mul(1e30).sum()


class Poisonable(Chain):
    """Adds to its output what is zero but spoils the gradients of the culprits."""

    def __init__(self) -> None:
        super().__init__()
        self.poison: Callable[[Tensor], Tensor] | None = None
        for name, block in self.blocks.named_children():
            block.register_forward_hook(lambda block, _, y, name=name: self.spoil(f"blocks.{name}", block, y))

    def spoil(self, name: str, block: nn.Module, y: Tensor) -> Tensor:
        if self.poison is None:
            return y
        return y + sum(self.poison(p) for inner, p in block.named_parameters() if f"{name}.{inner}" in CULPRITS)


def run(model: nn.Module, turn: Turn) -> Tensor:
    loss = square_loss(model, turn)
    loss.backward()
    return loss.detach()


CASE = Case(Poisonable, run)


class Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logging.getLogger("aliquot").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def train(rank: int, stage: int, poison: Callable[[Tensor], Tensor] | None) -> dict[str, Tensor]:
    sharded = Sharded(CASE, stage)
    for step in range(STEPS):
        if poison and step in BAD_STEPS:
            take_bad_step(sharded, rank, step, poison)
        sharded.step(rank, step)
    return sharded.weights()


def take_bad_step(sharded: Sharded, rank: int, step: int, poison: Callable[[Tensor], Tensor]) -> None:
    before, log = sharded.weights(), Log()
    sharded.model.poison = poison if rank == BAD_RANK else None
    sharded.step(rank, step)
    sharded.model.poison = None
    assert_same_bits(sharded.weights(), before)
    assert not sharded.optimizer.grad_norm.isfinite()
    assert any(CULPRITS[0] in line for line in log.lines), log.lines


def compare(rank: int, stage: int, poison: Callable[[Tensor], Tensor]) -> None:
    """Later steps agree to the bit, so moments and step counts were not touched either."""
    assert_same_bits(train(rank, stage, poison), train(rank, stage, None))


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("poison", [nan, infinity], ids=["nan", "infinity"])
def test_step_is_skipped_alike(poison: Callable[[Tensor], Tensor], stage: int, transport: Transport) -> None:
    run_ranks(2, compare, stage, poison, transport=transport)
