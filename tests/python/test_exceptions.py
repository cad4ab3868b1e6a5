"""An exception in the middle of a step, and then going on: as if the failed step had never been."""

from __future__ import annotations

import contextlib

import aliquot
import pytest
from cases import square_loss
from models import Chain
from ranks import TRANSPORTS, Transport, run_ranks
from refusals import refused
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint
from training import STAGES, Case, Sharded, Turn, assert_same_bits

STEPS = 6
FAILING_STEPS = (0, 3)
PLACES = ("forward", "backward", "recomputation")


class BlownError(Exception):
    pass


class Fuse(Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        raise BlownError


class Fused(Chain):
    """Fails behind its second block, at one of the places."""

    def forward(self, x: Tensor, place: str | None) -> Tensor:
        self.place, self.passes = place, 0
        x = self.blocks[1](self.blocks[0](self.first(x)))
        x = checkpoint(self.tail, x, use_reentrant=False) if place == "recomputation" else self.tail(x)
        return self.last(x)

    def tail(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.place == "forward" or self.passes == 2:
            raise BlownError
        x = self.blocks[2](x)
        return Fuse.apply(x) if self.place == "backward" else x


def run(model: nn.Module, turn: Turn, place: str | None = None) -> Tensor:
    loss = square_loss(model, turn, place=place)
    loss.backward()
    return loss.detach()


CASE = Case(Fused, run)


def fail(sharded: Sharded, rank: int, step: int, place: str) -> None:
    sharded.optimizer.zero_grad()
    with pytest.raises(BlownError):
        run(sharded.model, Turn(rank, step + 1000), place)


def train(rank: int, stage: int, place: str | None = None) -> dict[str, Tensor]:
    sharded = Sharded(CASE, stage)
    for step in range(STEPS):
        if place and step in FAILING_STEPS:
            fail(sharded, rank, step, place)
            aliquot.reset_step(sharded.model)
        sharded.step(rank, step)
    return sharded.weights()


def compare(rank: int, stage: int, place: str) -> None:
    assert_same_bits(train(rank, stage, place), train(rank, stage))


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("place", PLACES)
def test_after_reset_step_the_failure_is_forgotten(place: str, stage: int, transport: Transport) -> None:
    run_ranks(2, compare, stage, place, transport=transport)


def go_on_without_reset(rank: int, stage: int, place: str) -> None:
    failed, spared = Sharded(CASE, stage), Sharded(CASE, stage)
    for sharded in (failed, spared):
        sharded.step(rank, 0)
    fail(failed, rank, 0, place)
    if not refused(lambda: failed.step(rank, 1)):
        spared.step(rank, 1)
        assert_same_bits(failed.weights(), spared.weights())


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("place", PLACES)
def test_going_on_without_reset_is_right_or_refused(place: str, stage: int, transport: Transport) -> None:
    run_ranks(2, go_on_without_reset, stage, place, transport=transport)


def fail_in_evaluation(rank: int, stage: int) -> None:
    failed, spared = Sharded(CASE, stage), Sharded(CASE, stage)
    with contextlib.suppress(BlownError):
        square_loss(failed.model.eval(), Turn(rank, 0), place="forward")
    aliquot.reset_step(failed.model.train())
    for sharded in (failed, spared):
        sharded.step(rank, 0)
    assert_same_bits(failed.weights(), spared.weights())


@pytest.mark.parametrize("stage", STAGES)
def test_exception_in_evaluation(stage: int) -> None:
    run_ranks(2, fail_in_evaluation, stage)
