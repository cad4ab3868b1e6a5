"""What user code does to gradients between backward and step: right, or refused by an error that names the call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import aliquot
import pytest
import torch
from cases import CASES
from ranks import PROCESS_GROUP, SHARED_MEMORY, TRANSPORTS, Transport, run_ranks
from refusals import refused
from torch import nn
from training import ADAMW, MAX_NORM, STAGES, Reference, Sharded, Turn, assert_same_bits, assert_same_weights, built

CASE = CASES["plain"]
NAME = "blocks.1.up.weight"
WORLD_SIZE = 2
WHOLE = (0, 1)
"""Stages at which `p.grad` is the whole reduced gradient."""


def gradient(model: nn.Module) -> Any:
    return model.get_parameter(NAME).grad


def gradients(model: nn.Module) -> Iterable[Any]:
    return (p.grad for p in model.parameters())


def read_gradients(rank: int, stage: int) -> None:
    sharded, reference = Sharded(CASE, stage), Reference(CASE, WORLD_SIZE)
    sharded.backward(rank, 0)
    reference.backward(0)
    expected = dict(reference.replicas[0].named_parameters())
    for name, p in sharded.model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, expected[name].grad)


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", WHOLE)
def test_gradients_are_whole(stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, read_gradients, stage, transport=transport)


USES: dict[str, Callable[[nn.Module], object]] = {
    "clone": lambda m: gradient(m).clone(),
    "norm": lambda m: gradient(m).norm(),
    "finite": lambda m: gradient(m).isfinite().all(),
    "item": lambda m: gradient(m).sum().item(),
    "mul_": lambda m: gradient(m).mul_(0.5),
    "add": lambda m: gradient(m) + 1,
    "index": lambda m: gradient(m)[0].clone(),
    "clip_norm": lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.1),
    "clip_value": lambda m: nn.utils.clip_grad_value_(m.parameters(), 0.1),
    "foreach": lambda m: torch._foreach_mul_(list(gradients(m)), 0.5),
}


def use_sharded_gradients(rank: int, stage: int) -> dict[str, bool]:
    sharded = Sharded(CASE, stage)
    sharded.backward(rank, 0)
    assert all(p.grad is not None for p in sharded.model.parameters())
    return {name: refused(lambda: use(sharded.model)) for name, use in USES.items()}  # noqa: B023


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", [2, 3])
def test_sharded_gradients_are_refused(stage: int, transport: Transport) -> None:
    for outcomes in run_ranks(WORLD_SIZE, use_sharded_gradients, stage, transport=transport):
        assert outcomes == dict.fromkeys(USES, True)


def drop_one(model: nn.Module) -> None:
    model.get_parameter(NAME).grad = None


def assign(model: nn.Module) -> None:
    p = model.get_parameter(NAME)
    p.grad = torch.full(p.shape, 0.01)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "clip_norm": lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.1),
    "clip_value": lambda m: nn.utils.clip_grad_value_(m.parameters(), 0.01),
    "mul_": lambda m: gradient(m).mul_(0.5),
    "zero_": lambda m: gradient(m).zero_(),
    "assign": assign,
    "drop_one": drop_one,
    "zero_grad": lambda m: m.zero_grad(),
    "zero_grad_to_zero": lambda m: m.zero_grad(set_to_none=False),
}
DROPS = ("drop_one", "zero_grad")


def change_gradients(rank: int, name: str, stage: int) -> None:
    """After a first step, so that a dropped gradient has moments and decay to leave alone."""
    sharded, reference = Sharded(CASE, stage), Reference(CASE, WORLD_SIZE)
    sharded.step(rank, 0)
    reference.step(0)
    sharded.backward(rank, 1)
    reference.backward(1)
    if refused(lambda: (CHANGES[name](sharded.model), sharded.optimizer.step())):
        assert stage not in WHOLE or name == "assign", "refused"
        assert name not in DROPS, "refused"
        return
    for replica in reference.replicas:
        CHANGES[name](replica)
    reference.update()
    sharded.step(rank, 2)
    reference.step(2)
    assert_same_weights(sharded.weights(), reference.weights())


@pytest.mark.parametrize("transport", [SHARED_MEMORY, PROCESS_GROUP], ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", CHANGES)
def test_changes(name: str, stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, change_gradients, name, stage, transport=transport)


def leave_alone(rank: int, stage: int) -> None:
    sharded = Sharded(CASE, stage)
    sharded.step(rank, 0)
    before = sharded.weights()
    sharded.backward(rank, 1)
    sharded.optimizer.zero_grad()
    assert all(p.grad is None for p in sharded.model.parameters())
    sharded.optimizer.step()
    assert_same_bits(sharded.weights(), before)


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_step_after_zero_grad_changes_nothing(stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, leave_alone, stage, transport=transport)


def clip_oneself(rank: int, stage: int) -> None:
    sharded, reference = Sharded(CASE, stage, max_grad_norm=None), Reference(CASE, WORLD_SIZE)
    for step in range(3):
        sharded.backward(rank, step)
        reference.backward(step)
        norm = aliquot.clip_grad_norm_(sharded.model, MAX_NORM)
        torch.testing.assert_close(torch.as_tensor(norm, dtype=torch.float32), reference.update())
        sharded.optimizer.step()
    assert_same_weights(sharded.weights(), reference.weights())


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_clip_grad_norm(stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, clip_oneself, stage, transport=transport)


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, **ADAMW),
    "adamw_fused": lambda parameters: torch.optim.AdamW(parameters, **ADAMW, fused=True),
    "adamw_loop": lambda parameters: torch.optim.AdamW(parameters, **ADAMW, foreach=False),
}


def train_by_torch(rank: int, name: str, stage: int) -> None:
    """A refusal may come late: torch decays a parameter before it looks at the gradient."""
    model = aliquot.shard(built(CASE), stage=stage)
    reference = Reference(CASE, WORLD_SIZE, max_norm=None)
    reference.optimizers = [OPTIMIZERS[name](replica.parameters()) for replica in reference.replicas]
    if refused(lambda: train_two_steps(model, OPTIMIZERS[name](model.parameters()), rank)):
        assert stage > 0, "refused"
        return
    assert stage in WHOLE, "not refused"
    for step in range(2):
        reference.step(step)
    assert_same_weights(aliquot.full_state_dict(model, all_ranks=True), reference.weights())


def train_two_steps(model: Any, optimizer: torch.optim.Optimizer, rank: int) -> None:
    for step in range(2):
        optimizer.zero_grad()
        CASE.run(model, Turn(rank, step))
        optimizer.step()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_of_torch(name: str, stage: int) -> None:
    run_ranks(WORLD_SIZE, train_by_torch, name, stage)
