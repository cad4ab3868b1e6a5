"""A gradient that is not finite: every rank skips alike, nothing changes by a bit, the culprit is named."""

from __future__ import annotations

import logging
import math
from typing import Any

import aliquot
import pytest
import torch
from cases import square_loss
from models import Chain
from ranks import TRANSPORTS, Transport, run_ranks
from torch import Tensor, nn
from training import ADAMW, MAX_NORM, STAGES, Case, Turn, assert_same_bits, built

PRECISIONS = ("fp32", "bf16", "fp16")
BADS = (math.nan, math.inf, -math.inf)
GOOD_STEPS = 6
BAD_STEP = 3
MAX_SKIPPED = 4


class Spoil(torch.autograd.Function):
    """Hands `y` on, and adds something bad to the gradient of the last element of `p`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, p: Tensor, bad: float) -> Tensor:
        ctx.like, ctx.bad = torch.zeros_like(p), bad
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        ctx.like.view(-1)[-1] = ctx.bad
        return gradients[0], ctx.like, None


class Spoiled(Chain):
    """Spoils the gradients of the culprits."""

    def __init__(self) -> None:
        super().__init__()
        self.culprits: dict[str, float] = {}
        for name, module in self.named_modules():
            if module._parameters:
                module.register_forward_hook(lambda module, _, y, name=name: self.spoil(name, module, y))

    def spoil(self, name: str, module: nn.Module, y: Tensor) -> Tensor:
        for inner, param in module.named_parameters(recurse=False):
            if bad := self.culprits.get(f"{name}.{inner}"):
                y = Spoil.apply(y, param, bad)  # type: ignore[no-untyped-call]
        return y


CASE = Case(Spoiled, square_loss)
NAMES = [name for name, _ in Spoiled().named_parameters()]


class Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logging.getLogger("aliquot").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Training:
    def __init__(self, rank: int, stage: int, precision: str, **adamw: Any) -> None:
        self.rank = rank
        self.model: Any = aliquot.shard(built(CASE), stage=stage, precision=precision)  # type: ignore[arg-type]
        self.optimizer = aliquot.AdamW(self.model, **ADAMW, max_grad_norm=MAX_NORM, **adamw)

    def step(self, number: int) -> None:
        self.optimizer.zero_grad()
        CASE.run(self.model, Turn(self.rank, number)).backward()
        self.optimizer.step()

    def spoiled_step(self, number: int, culprits: dict[str, float], bad_rank: int) -> None:
        """The first of `culprits` is the first in the model."""
        before, log = self.weights(), Log()
        self.model.culprits = culprits if self.rank == bad_rank else {}
        self.step(number)
        self.model.culprits = {}
        assert_same_bits(self.weights(), before)
        assert not self.optimizer.grad_norm.isfinite()
        assert log.lines == [f"step skipped: the gradient of {next(iter(culprits))} is not finite"]

    def weights(self) -> dict[str, Tensor]:
        return aliquot.full_state_dict(self.model, all_ranks=True)


def plant_everywhere(rank: int, stage: int, precision: str) -> None:
    """In every parameter, on every rank. Later steps agree to the bit with a run in which nothing was bad, so moments,
    masters and step counts were not touched either."""
    plain = Training(rank, stage, precision)
    spoiled = Training(rank, stage, precision, max_skipped=1000)
    for step in range(GOOD_STEPS):
        plain.step(step)
        if step == BAD_STEP:
            for i, name in enumerate(NAMES):
                for bad_rank in range(2):
                    spoiled.spoiled_step(step, {name: BADS[(i + bad_rank) % len(BADS)]}, bad_rank)
        spoiled.step(step)
    assert_same_bits(spoiled.weights(), plain.weights())
    stats = aliquot.stats(spoiled.model)
    assert (stats.steps, stats.skipped) == (GOOD_STEPS, 2 * len(NAMES))


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bad_gradient_anywhere_skips_the_step_everywhere(precision: str, stage: int, transport: Transport) -> None:
    run_ranks(2, plant_everywhere, stage, precision, transport=transport)


def skip_on_and_on(rank: int, stage: int, precision: str) -> None:
    training = Training(rank, stage, precision, max_skipped=MAX_SKIPPED)
    culprits = {"blocks.1.down.bias": math.nan, "blocks.2.norm.weight": math.inf}
    for step in range(MAX_SKIPPED - 1):
        training.spoiled_step(step, culprits, bad_rank=1)
    training.step(0)  # a good one: the count begins anew
    before = training.weights()
    for step in range(MAX_SKIPPED - 1):
        training.spoiled_step(step, culprits, bad_rank=1)
    with pytest.raises(aliquot.Error, match=f"{MAX_SKIPPED} steps in a row were skipped.*blocks.1.down.bias"):
        training.spoiled_step(MAX_SKIPPED, culprits, bad_rank=1)
    assert_same_bits(training.weights(), before)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_skipping_on_and_on_is_an_error(precision: str, stage: int) -> None:
    run_ranks(2, skip_on_and_on, stage, precision)
