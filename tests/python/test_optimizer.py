"""aliquot.AdamW as a torch.optim.Optimizer: schedules, parameter groups, the norm it reports, its errors."""

from __future__ import annotations

from typing import Any

import aliquot
import pytest
import torch
from cases import CASES
from ranks import TRANSPORTS, Transport, run_ranks
from training import STAGES, Reference, Sharded, assert_same_weights

CASE = CASES["plain"]
WORLD_SIZE = 2
STEPS = 6


def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=STEPS + 1, cycle_momentum=False)


def follow_a_schedule(rank: int, stage: int) -> None:
    sharded, reference = Sharded(CASE, stage), Reference(CASE, WORLD_SIZE)
    schedules = [schedule(o) for o in (sharded.optimizer, *reference.optimizers)]
    for step in range(STEPS):
        sharded.step(rank, step)
        reference.step(step)
        for s in schedules:
            s.step()
    assert_same_weights(sharded.weights(), reference.weights())


def report_the_norm(rank: int, stage: int) -> None:
    """Before clipping, and also where nothing is clipped."""
    for max_norm in (None, 0.01, 100.0):
        sharded, reference = Sharded(CASE, stage, max_grad_norm=max_norm), Reference(CASE, WORLD_SIZE, max_norm)
        for step in range(2):
            sharded.step(rank, step)
            reference.backward(step)
            norm = sharded.optimizer.grad_norm
            assert norm.shape == ()
            torch.testing.assert_close(norm.float(), reference.update())
        assert_same_weights(sharded.weights(), reference.weights())


def change_settings_in_flight(rank: int, stage: int) -> None:
    sharded, reference = Sharded(CASE, stage), Reference(CASE, WORLD_SIZE)
    for step in range(STEPS):
        for optimizer in (sharded.optimizer, *reference.optimizers):
            optimizer.param_groups[0].update(weight_decay=0.1 * step, betas=(0.8, 0.9 + 0.01 * step), eps=10.0**-step)
        sharded.step(rank, step)
        reference.step(step)
    assert_same_weights(sharded.weights(), reference.weights())


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "act", [follow_a_schedule, report_the_norm, change_settings_in_flight], ids=lambda act: act.__name__
)
def test_like_torch(act: Any, stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, act, stage, transport=transport)


def is_an_optimizer(rank: int) -> bool:
    return isinstance(Sharded(CASE, 3).optimizer, torch.optim.Optimizer)


def test_is_an_optimizer() -> None:
    assert run_ranks(1, is_an_optimizer) == [True]


WRONG: dict[str, Any] = {
    "stage_4": lambda: aliquot.shard(CASE.build(), stage=4),
    "sharded_twice": lambda: aliquot.shard(aliquot.shard(CASE.build())),
    "strange_unit": lambda: aliquot.shard(CASE.build(), units=[torch.nn.Linear(1, 1)]),
    "unsharded_model": lambda: aliquot.AdamW(CASE.build(), lr=1e-3),
    "negative_lr": lambda: aliquot.AdamW(aliquot.shard(CASE.build()), lr=-1.0),
    "beta_of_one": lambda: aliquot.AdamW(aliquot.shard(CASE.build()), lr=1e-3, betas=(1.0, 0.9)),
    "unknown_transport": lambda: aliquot.init(transport="pigeon"),  # type: ignore[arg-type]
    "other_transport": lambda: aliquot.init(transport="process_group"),
    "stats_of_unsharded": lambda: aliquot.stats(CASE.build()),
    "gathered_unsharded": lambda: aliquot.gathered(CASE.build()).__enter__(),
}


def do_wrong(rank: int, name: str) -> None:
    with pytest.raises(aliquot.InvalidArgument):
        WRONG[name]()


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    run_ranks(2, do_wrong, name)
