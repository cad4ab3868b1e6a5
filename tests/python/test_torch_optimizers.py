"""aliquot.TorchOptimizer: optimizers of torch over the shards, against themselves over whole parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import aliquot
import pytest
import torch
from aliquot import _core
from aliquot.halves import Halves
from cases import CASES
from ranks import TRANSPORTS, Transport, run_ranks
from torch import Tensor
from training import MAX_NORM, STAGES, Reference, Turn, assert_same_weights, built

WORLD_SIZE = 2
STEPS = 5
OPTIMIZERS: Mapping[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"lr": 3e-3, "weight_decay": 0.1, "amsgrad": True},
    "AdamW": {"lr": 3e-3, "fused": True},
    "NAdam": {"lr": 3e-3},
    "RAdam": {"lr": 3e-3},
    "Adamax": {"lr": 3e-3},
    "Adagrad": {"lr": 1e-2},
    "Adadelta": {"lr": 1.0},
    "RMSprop": {"lr": 3e-3, "centered": True, "momentum": 0.5},
    "Rprop": {"lr": 1e-3},
}


class Lion(torch.optim.Optimizer):
    """Chen et al., 2023 (https://arxiv.org/abs/2302.06675), algorithm 2: as somebody's own optimizer may be."""

    def __init__(self, params: Any, lr: float = 1e-4, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                moment = self.state[param].setdefault("exp_avg", torch.zeros_like(param))
                param.sub_(group["lr"] * torch.sign(moment * group["beta"] + param.grad * (1 - group["beta"])))
                moment.lerp_(param.grad, 0.01)


def class_named(name: str) -> Any:
    return {"Lion": Lion, "Decaying": Decaying}.get(name) or getattr(torch.optim, name)


class Both:
    """A case sharded, and beside it with whole parameters."""

    def __init__(self, case: str, stage: int, optimizer: Any, **defaults: Any) -> None:
        self.case = CASES[case]
        self.model: Any = aliquot.shard(built(self.case), stage=stage, units=self.case.units, slots=self.case.slots)
        self.optimizer = aliquot.TorchOptimizer(self.model, optimizer, max_grad_norm=MAX_NORM, **defaults)
        self.reference = Reference(self.case, WORLD_SIZE)
        self.reference.optimizers = [optimizer(r.parameters(), **defaults) for r in self.reference.replicas]

    def step(self, rank: int, step: int) -> None:
        self.optimizer.zero_grad()
        self.case.run(self.model, Turn(rank, step, no_sync=aliquot.no_sync))
        self.optimizer.step()
        self.reference.backward(step)
        norm = self.reference.update()
        torch.testing.assert_close(self.optimizer.grad_norm, norm, rtol=1e-5, atol=1e-7)

    def compare(self) -> None:
        assert_same_weights(self.weights(), self.reference.weights(), tolerance=1e-5)

    def weights(self) -> dict[str, Tensor]:
        return aliquot.full_state_dict(self.model, all_ranks=True)


def train(rank: int, case: str, stage: int, name: str, defaults: dict[str, Any]) -> None:
    both = Both(case, stage, class_named(name), **defaults)
    for step in range(STEPS):
        both.step(rank, step)
    both.compare()
    assert not {"exp_avg", "exp_avg_sq"} & {role for role, size in aliquot.stats(both.model).bytes.items() if size}
    assert aliquot.stats(both.model).steps == STEPS


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", [*OPTIMIZERS, "Lion"])
def test_steps_as_over_whole_parameters(name: str, stage: int) -> None:
    run_ranks(WORLD_SIZE, train, "plain", stage, name, OPTIMIZERS.get(name, {}))


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("case", ["odd_sizes", "frozen", "tied_weights"])
def test_steps_models_with_odd_parameters(case: str, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, train, case, 3, "SGD", OPTIMIZERS["SGD"], transport=transport)


def follow_groups(rank: int, stage: int) -> None:
    both = Both("plain", stage, torch.optim.SGD, lr=0.1, momentum=0.5)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (both.optimizer, *both.reference.optimizers)]
    for step in range(STEPS):
        for optimizer in (both.optimizer, *both.reference.optimizers):
            optimizer.param_groups[0]["weight_decay"] = 0.01 * step
        both.step(rank, step)
        for schedule in schedules:
            schedule.step()
    both.compare()


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_changed_in_groups_counts_from_the_next_step(stage: int) -> None:
    run_ranks(WORLD_SIZE, follow_groups, stage)


def add_a_group(rank: int, stage: int, make: Any, make_whole: Any, steps: int) -> None:
    """Behind two steps. `make` gives an optimizer of a sharded model, `make_whole` that of whole parameters."""
    case = CASES["plain"]
    model: Any = aliquot.shard(built(case), stage=stage, units=case.units)
    reference = Reference(case, WORLD_SIZE)
    first, *rest = model.parameters()
    optimizer = make(model, params=[first], max_grad_norm=MAX_NORM)
    lists = [list(r.parameters()) for r in reference.replicas]
    reference.optimizers = [make_whole(params[:1]) for params in lists]
    for step in range(steps):
        if step == 2:
            optimizer.add_param_group({"params": rest, "lr": 1e-3})
            for made, params in zip(reference.optimizers, lists, strict=True):
                made.add_param_group({"params": params[1:], "lr": 1e-3})
        optimizer.zero_grad()
        case.run(model, Turn(rank, step, no_sync=aliquot.no_sync))
        optimizer.step()
        for replica in reference.replicas:
            replica.zero_grad()
        reference.step(step)
    assert_same_weights(aliquot.full_state_dict(model, all_ranks=True), reference.weights())


@pytest.mark.parametrize("native", [True, False], ids=["AdamW", "TorchOptimizer"])
@pytest.mark.parametrize("stage", [1, 3])
def test_a_group_may_be_added_between_steps(stage: int, native: bool) -> None:
    make = aliquot.AdamW if native else partial(aliquot.TorchOptimizer, optimizer=torch.optim.AdamW)
    whole = partial(torch.optim.AdamW, lr=1e-2)
    run_ranks(WORLD_SIZE, add_a_group, stage, partial(make, lr=1e-2), whole, STEPS)


def refuse_a_group_of_strangers(rank: int) -> None:
    both = Both("plain", 3, torch.optim.SGD, lr=0.1)
    native = aliquot.AdamW(both.model)
    for optimizer in (both.optimizer, native):
        with pytest.raises(aliquot.InvalidArgument, match="not one of the sharded model's"):
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
        assert len(optimizer.param_groups) == 1


def test_a_group_of_another_models_parameters_is_refused() -> None:
    run_ranks(1, refuse_a_group_of_strangers)


def skip_what_is_not_finite(rank: int, stage: int) -> None:
    both = Both("plain", stage, torch.optim.SGD, lr=0.1, momentum=0.9)
    both.step(rank, 0)
    before = {name: value.clone() for name, value in both.weights().items()}
    states = {
        piece: both.optimizer.inner.state[piece]["momentum_buffer"].clone() for piece in both.optimizer.inner.state
    }
    both.optimizer.zero_grad()
    seen = both.case.run(both.model, Turn(rank, 1))
    (both.model(torch.full((1, 8), math.inf)) if rank == 1 else both.model(torch.ones(1, 8))).sum().backward()
    both.optimizer.step()
    assert seen.isfinite().all()
    assert both.optimizer.skipped_in_a_row == 1
    assert both.optimizer.grad_norm.isnan()
    assert all(torch.equal(before[name], value) for name, value in both.weights().items())
    for piece, momentum in states.items():
        assert torch.equal(both.optimizer.inner.state[piece]["momentum_buffer"], momentum)


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_of_gradients_that_are_not_finite_is_skipped_on_every_rank(stage: int) -> None:
    run_ranks(WORLD_SIZE, skip_what_is_not_finite, stage)


class Norms(torch.optim.SGD):
    """Depends on the norm of each parameter, as LAMB does."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                param.sub_(group["lr"] * param.grad * param.norm())


@pytest.mark.parametrize(
    ("optimizer", "defaults", "text"),
    [
        (torch.optim.LBFGS, {"lr": 0.1}, "TorchOptimizer can't step with LBFGS"),
        (torch.optim.Adafactor, {"lr": 0.1}, "Adafactor steps a matrix otherwise"),
        (torch.optim.SparseAdam, {"lr": 0.1}, "TorchOptimizer can't step with SparseAdam"),
        (Norms, {"lr": 0.1}, "Norms steps a matrix otherwise than flat pieces of it"),
        (Norms, {"lr": 0.0}, "Norms steps a matrix otherwise than flat pieces of it"),
        (torch.optim.SGD, {"lr": -1.0}, "Invalid learning rate"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_can_not_step_flat_pieces_is_refused(optimizer: Any, defaults: dict[str, Any], text: str) -> None:
    with pytest.raises(aliquot.InvalidArgument, match=text):
        aliquot.TorchOptimizer(torch.nn.Linear(2, 2), optimizer, **defaults)


def step_halves(rank: int, stage: int, params: str) -> dict[str, Tensor]:
    """The native AdamW and torch's over plain fp32 masters, on the same gradients."""
    weights = []
    for native in (True, False):
        precision = aliquot.Precision(params, master="fp32")  # type: ignore[arg-type]
        model: Any = aliquot.shard(built(CASES["plain"]), stage=stage, precision=precision)
        make: Any = aliquot.AdamW if native else partial(aliquot.TorchOptimizer, optimizer=torch.optim.AdamW)
        optimizer = make(model, lr=1e-2, weight_decay=0.0, max_grad_norm=MAX_NORM)
        for step in range(STEPS):
            optimizer.zero_grad()
            CASES["plain"].run(model, Turn(rank, step))
            optimizer.step()
        weights.append(aliquot.full_state_dict(model, all_ranks=True))
    first, second = weights
    for name, value in first.items():
        assert value.dtype == second[name].dtype != torch.float32
        torch.testing.assert_close(value, second[name], rtol=1e-2, atol=1e-3)
    return second


@pytest.mark.parametrize("params", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", STAGES)
def test_steps_plain_masters_of_16_bits(stage: int, params: str) -> None:
    first, second = run_ranks(WORLD_SIZE, step_halves, stage, params)
    assert all(torch.equal(first[name], second[name]) for name in first)


def step_split(rank: int, stage: int, name: str, settings: dict[str, Any]) -> None:
    """A master in two halves is the same number as one in a piece. (Only where it lies in the middle of two 16-bit
    numbers, these would differ.)"""
    weights = []
    for master in ("split", "fp32"):
        precision = aliquot.Precision("bf16", master=master)  # type: ignore[arg-type]
        model: Any = aliquot.shard(built(CASES["plain"]), stage=stage, precision=precision)
        optimizer = aliquot.TorchOptimizer(model, getattr(torch.optim, name), **settings)
        for step in range(STEPS):
            optimizer.zero_grad()
            CASES["plain"].run(model, Turn(rank, step))
            optimizer.step()
        weights.append(aliquot.full_state_dict(model, all_ranks=True))
    split, plain = weights
    assert all(torch.equal(split[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("name", "settings"), [("SGD", {"lr": 0.1, "momentum": 0.9}), ("AdamW", {"lr": 1e-3, "foreach": True})]
)
@pytest.mark.parametrize("stage", STAGES)
def test_steps_split_masters(stage: int, name: str, settings: dict[str, Any]) -> None:
    run_ranks(WORLD_SIZE, step_split, stage, name, settings)


def test_halves_are_those_of_the_core() -> None:
    """All kinds of numbers: both ways, to the bit."""
    bits = torch.randint(-(2**31), 2**31, (4096,), dtype=torch.int64, generator=torch.Generator().manual_seed(0))
    edges = torch.tensor([0x8000, 0x7FFF, 0x7F800000, 0x7F7FFFFF, -1, -0x80000000, 0x7FC00000])
    masters = torch.cat([bits, edges]).to(torch.int32).view(torch.float32)
    halves = Halves(*(torch.empty(masters.numel(), dtype=dtype) for dtype in (torch.bfloat16, torch.int16)))
    expected = Halves(*(torch.empty_like(half) for half in (halves.high, halves.low)))
    halves.split(masters)
    _core.split_masters(masters.data_ptr(), expected.high.data_ptr(), expected.low.data_ptr(), masters.numel())
    assert torch.equal(halves.high.view(torch.int16), expected.high.view(torch.int16))
    assert torch.equal(halves.low, expected.low)
    assert torch.equal(halves.joined().view(torch.int32), masters.view(torch.int32))


class Decaying(torch.optim.SGD):
    """Counts in its groups, as schedule-free optimizers do."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            for param in group["params"]:
                if param.grad is not None:
                    param.sub_(group["lr"] / group["count"] * param.grad)


def test_what_an_optimizer_counts_in_its_groups_goes_on() -> None:
    run_ranks(WORLD_SIZE, train, "plain", 3, "Decaying", {"lr": 0.1})


def make_two(rank: int) -> None:
    model: Any = aliquot.shard(built(CASES["plain"]))
    first = aliquot.AdamW(model)
    second = aliquot.AdamW(model)
    CASES["plain"].run(model, Turn(rank, 0))
    with pytest.raises(aliquot.Error, match="another fused optimizer was made for this model since"):
        first.step()
    second.step()


def test_an_adamw_whose_states_another_took_refuses_to_step() -> None:
    run_ranks(WORLD_SIZE, make_two)


def differ(rank: int) -> None:
    model = aliquot.shard(built(CASES["plain"]))
    with pytest.raises(aliquot.CommunicatorError, match="ranks make different optimizers"):
        aliquot.AdamW(model, lr=1e-3 * (1 + rank))


def test_ranks_that_make_different_optimizers_are_told() -> None:
    run_ranks(WORLD_SIZE, differ)
