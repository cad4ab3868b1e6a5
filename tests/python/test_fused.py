"""The fused optimizers, against torch's over whole parameters. More of AdamW: test_optimizer.py, test_parity.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import aliquot
import pytest
import torch
from cases import CASES
from ranks import TRANSPORTS, Transport, run_ranks
from test_torch_optimizers import add_a_group
from torch import Tensor
from training import MAX_NORM, STAGES, Reference, Turn, assert_same_bits, assert_same_weights, built

WORLD_SIZE = 2
STEPS = 6


class WholeLion(torch.optim.Optimizer):
    """Chen et al., 2023 (https://arxiv.org/abs/2302.06675), algorithm 2."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for param in (param for param in group["params"] if param.grad is not None):
                m = self.state[param].setdefault("exp_avg", torch.zeros_like(param))
                direction = torch.sign(beta1 * m + (1 - beta1) * param.grad)
                param.sub_(group["lr"] * (direction + group["weight_decay"] * param))
                m.mul_(beta2).add_(param.grad, alpha=1 - beta2)


SETTINGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "AdamW": ("AdamW", {"lr": 3e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}),
    "Adam": ("Adam", {"lr": 3e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}),
    "SGD": ("SGD", {"lr": 0.1, "weight_decay": 0.01}),
    "SGD_momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}),
    "SGD_nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    "Lion": ("Lion", {"lr": 3e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}),
    "Adagrad": ("Adagrad", {"lr": 1e-2, "lr_decay": 0.1, "weight_decay": 0.01, "initial_accumulator_value": 0.1}),
}
STATES: Mapping[str, set[str]] = {
    "AdamW": {"exp_avg", "exp_avg_sq"},
    "Adam": {"exp_avg", "exp_avg_sq"},
    "SGD": set(),
    "SGD_momentum": {"momentum_buffer"},
    "SGD_nesterov": {"momentum_buffer"},
    "Lion": {"exp_avg"},
    "Adagrad": {"sum"},
}


def whole(kind: str) -> Callable[..., torch.optim.Optimizer]:
    return WholeLion if kind == "Lion" else getattr(torch.optim, kind)


class Both:
    """A case sharded, and beside it with whole parameters. `split`: the first parameter has a group of its own."""

    def __init__(self, case: str, stage: int, name: str, split: bool = False) -> None:
        kind, settings = SETTINGS[name]
        self.case = CASES[case]
        self.model: Any = aliquot.shard(built(self.case), stage=stage, units=self.case.units, slots=self.case.slots)
        make = partial(getattr(aliquot, kind), self.model, max_grad_norm=MAX_NORM, **settings)
        self.optimizer = make(params=groups(self.model, split))
        self.reference = Reference(self.case, WORLD_SIZE)
        self.reference.optimizers = [whole(kind)(groups(r, split), **settings) for r in self.reference.replicas]

    @property
    def all_optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.optimizer, *self.reference.optimizers]

    def step(self, rank: int, step: int) -> None:
        self.optimizer.zero_grad()
        self.case.run(self.model, Turn(rank, step, no_sync=aliquot.no_sync))
        self.optimizer.step()
        for replica in self.reference.replicas:
            replica.zero_grad()
        self.reference.backward(step)
        torch.testing.assert_close(self.optimizer.grad_norm, self.reference.update(), rtol=1e-5, atol=1e-7)

    def compare(self) -> None:
        assert_same_weights(self.weights(), self.reference.weights())

    def weights(self) -> dict[str, Tensor]:
        return aliquot.full_state_dict(self.model, all_ranks=True)


def groups(model: torch.nn.Module, split: bool) -> list[dict[str, Any]]:
    first, *rest = model.parameters()
    if not split:
        return [{"params": [first, *rest]}]
    return [{"params": [first], "lr": 1e-3, "weight_decay": 0.0}, {"params": rest}]


def held(both: Both) -> set[str]:
    roles = {"exp_avg", "exp_avg_sq", "momentum_buffer", "sum"}
    return {role for role, size in aliquot.stats(both.model).bytes.items() if size} & roles


def train(rank: int, case: str, stage: int, name: str) -> dict[str, Tensor]:
    both = Both(case, stage, name)
    for step in range(STEPS):
        both.step(rank, step)
    both.compare()
    assert held(both) == STATES[name]
    assert aliquot.stats(both.model).steps == STEPS
    return both.weights()


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_as_torch_does_and_alike_at_all_stages(name: str) -> None:
    of_stages = [run_ranks(WORLD_SIZE, train, "plain", stage, name)[0] for stage in STAGES]
    for weights in of_stages[1:]:
        assert_same_bits(weights, of_stages[0])


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("case", ["odd_sizes", "frozen", "tied_weights", "blocks_in_some_steps"])
@pytest.mark.parametrize("name", ["Adam", "SGD", "SGD_momentum", "Lion", "Adagrad"])
def test_steps_models_with_odd_parameters(name: str, case: str, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, train, case, 3, name, transport=transport)


def change_in_flight(rank: int, name: str) -> None:
    """Groups of their own settings, a schedule of torch's, and other settings in each step."""
    both = Both("plain", 3, name, split=True)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.7) for o in both.all_optimizers]
    for step in range(STEPS):
        for optimizer in both.all_optimizers:
            optimizer.param_groups[1]["weight_decay"] = 0.01 * step
        both.step(rank, step)
        for schedule in schedules:
            schedule.step()
    both.compare()


@pytest.mark.parametrize("name", SETTINGS)
def test_takes_groups_schedules_and_changes(name: str) -> None:
    run_ranks(WORLD_SIZE, change_in_flight, name)


def cycle_momentum(rank: int) -> None:
    both = Both("plain", 2, "SGD_momentum")
    one_cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=STEPS + 1)
    schedules = [one_cycle(optimizer) for optimizer in both.all_optimizers]
    for step in range(STEPS):
        both.step(rank, step)
        for schedule in schedules:
            schedule.step()
    both.compare()


def test_momentum_may_be_scheduled() -> None:
    run_ranks(WORLD_SIZE, cycle_momentum)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "Adagrad"])
def test_a_group_may_be_added_between_steps(name: str) -> None:
    """Torch's Adagrad has no states for one that comes later."""
    kind, settings = SETTINGS[name]
    make, make_whole = (partial(made, **settings) for made in (getattr(aliquot, kind), whole(kind)))
    run_ranks(WORLD_SIZE, add_a_group, 3, make, make_whole, STEPS)


def step_halves(rank: int, name: str, params: str, master: str | None) -> None:
    """Fused, and with torch's operations over plain fp32 masters, on the same gradients."""
    kind, settings = SETTINGS[name]
    weights = []
    for fused in (True, False):
        precision = aliquot.Precision(params, master=master if fused else "fp32")  # type: ignore[arg-type]
        model: Any = aliquot.shard(built(CASES["plain"]), stage=3, precision=precision)
        optimizer: Any = (
            getattr(aliquot, kind)(model, max_grad_norm=MAX_NORM, **settings)
            if fused
            else aliquot.TorchOptimizer(model, whole(kind), max_grad_norm=MAX_NORM, **settings)
        )
        for step in range(STEPS):
            optimizer.zero_grad()
            CASES["plain"].run(model, Turn(rank, step))
            optimizer.step()
        weights.append(aliquot.full_state_dict(model, all_ranks=True))
    first, second = weights
    for key, value in first.items():
        assert value.dtype == second[key].dtype != torch.float32
        torch.testing.assert_close(value, second[key], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("params", "master"), [("bf16", None), ("bf16", "fp32"), ("fp16", None)])
@pytest.mark.parametrize("name", ["Adam", "SGD_nesterov", "Adagrad"])
def test_steps_masters_of_16_bits(name: str, params: str, master: str | None) -> None:
    run_ranks(WORLD_SIZE, step_halves, name, params, master)


def skip(rank: int, name: str) -> None:
    """A skipped step changes nothing, so what comes after it is as if it had not been."""
    both = Both("plain", 3, name)
    both.step(rank, 0)
    before = both.weights()
    both.optimizer.zero_grad()
    both.model(torch.full((1, 8), math.inf if rank == 1 else 1.0)).sum().backward()
    both.optimizer.step()
    assert both.optimizer.skipped_in_a_row == 1
    assert both.optimizer.grad_norm.isnan()
    assert_same_bits(both.weights(), before)
    for step in range(1, STEPS):
        both.step(rank, step)
    both.compare()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_of_gradients_that_are_not_finite_is_skipped(name: str) -> None:
    run_ranks(WORLD_SIZE, skip, name)


REFUSED: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "amsgrad": ("Adam", {"amsgrad": True}, r"Adam has no amsgrad; aliquot.TorchOptimizer\(model, torch.optim.Adam"),
    "maximize": ("SGD", {"maximize": True}, "SGD has no maximize"),
    "nesterov_alone": ("SGD", {"nesterov": True}, "nesterov takes momentum"),
    "dampened_nesterov": ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "no dampening"),
    "momentum": ("SGD", {"momentum": -0.1}, "momentum is -0.1"),
    "betas": ("Lion", {"betas": (0.9, 1.0)}, "betas is"),
    "lr": ("Adagrad", {"lr": -1.0}, "Adagrad: lr is -1.0"),
    "lr_decay": ("Adagrad", {"lr_decay": -1.0}, "lr_decay is -1.0"),
    "initial": ("Adagrad", {"initial_accumulator_value": -1.0}, "initial_accumulator_value is"),
}


def refuse(rank: int) -> None:
    model = aliquot.shard(built(CASES["plain"]))
    for kind, settings, text in REFUSED.values():
        with pytest.raises(aliquot.InvalidArgument, match=text):
            getattr(aliquot, kind)(model, **settings)
    first, *rest = model.parameters()
    without = aliquot.SGD(model, params=[first])
    with pytest.raises(aliquot.InvalidArgument, match="was made without"):
        without.add_param_group({"params": rest, "momentum": 0.9})
    assert len(without.param_groups) == 1


def test_what_can_not_be_right_is_refused() -> None:
    run_ranks(1, refuse)
