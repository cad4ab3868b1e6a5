"""The two ways to train a case: sharded by Aliquot, and by PyTorch alone with the gradients averaged by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import aliquot
import torch
from torch import Tensor, nn

STAGES = (0, 1, 2, 3)
MAX_NORM = 1.0
ADAMW: Mapping[str, Any] = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


@dataclass(frozen=True)
class Turn:
    """One rank's turn in one step, the only source of randomness: all who train a case see the same data."""

    rank: int
    step: int
    no_sync: Callable[[nn.Module], AbstractContextManager[object]] = contextlib.nullcontext

    def normal(self, *shape: int, part: int = 0) -> Tensor:
        return on_device(torch.randn(*shape, generator=self._generator(part), device="cpu"))

    def tokens(self, vocabulary: int, *shape: int) -> Tensor:
        return on_device(torch.randint(vocabulary, shape, generator=self._generator(0), device="cpu"))

    def _generator(self, part: int) -> torch.Generator:
        return torch.Generator("cpu").manual_seed(1 + self.rank + 100 * self.step + 100_000 * part)


def on_device(tensor: Tensor) -> Tensor:
    return tensor.to(torch.get_default_device())


@dataclass(frozen=True)
class Case:
    """A model and what is done with it in one step: `run` goes forward and backward and returns what it saw."""

    build: Callable[[], nn.Module]
    run: Callable[[nn.Module, Turn], Tensor]
    units: tuple[type[nn.Module], ...] | None = None
    stages: tuple[int, ...] = STAGES
    slots: int = 2
    replicas: Any = 1


def built(case: Case) -> nn.Module:
    """The same weights on every rank, every time."""
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = case.build()
    return model.to(torch.get_default_device())


class Sharded:
    def __init__(self, case: Case, stage: int, **adamw: Any) -> None:
        self.case = case
        self.model: Any = aliquot.shard(
            built(case), stage=stage, units=case.units, slots=case.slots, replicas=case.replicas
        )
        self.optimizer = aliquot.AdamW(self.model, **{**ADAMW, "max_grad_norm": MAX_NORM, **adamw})

    def backward(self, rank: int, step: int) -> Tensor:
        self.optimizer.zero_grad()
        return self.case.run(self.model, Turn(rank, step, no_sync=aliquot.no_sync))

    def step(self, rank: int, step: int) -> Tensor:
        seen = self.backward(rank, step)
        self.optimizer.step()
        return seen

    def weights(self) -> dict[str, Tensor]:
        return aliquot.full_state_dict(self.model, all_ranks=True)


class Reference:
    """One replica per rank, all in this process. A gradient that some replicas have counts as zero on the others."""

    def __init__(self, case: Case, world_size: int, max_norm: float | None = MAX_NORM, **adamw: Any) -> None:
        self.case = case
        self.max_norm = max_norm
        self.replicas: list[Any] = [built(case) for _ in range(world_size)]
        self.optimizers = [torch.optim.AdamW(r.parameters(), **{**ADAMW, **adamw}) for r in self.replicas]

    def backward(self, step: int) -> list[Tensor]:
        """What each rank saw."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        seen = [self.case.run(replica, Turn(rank, step)) for rank, replica in enumerate(self.replicas)]
        average_gradients(self.replicas)
        return seen

    def update(self) -> Tensor:
        """The gradients' norm before clipping."""
        norms = []
        for replica, optimizer in zip(self.replicas, self.optimizers, strict=True):
            max_norm = float("inf") if self.max_norm is None else self.max_norm
            norms.append(torch.nn.utils.clip_grad_norm_(replica.parameters(), max_norm))
            optimizer.step()
        return norms[0]

    def step(self, step: int) -> list[Tensor]:
        seen = self.backward(step)
        self.update()
        return seen

    def weights(self, rank: int = 0) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.replicas[rank].state_dict()
        return state


def average_gradients(replicas: list[Any]) -> None:
    for parameters in zip(*(replica.parameters() for replica in replicas), strict=True):
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            mean = torch.stack(gradients).sum(0) / len(parameters)
            for p in parameters:
                p.grad = mean.clone()


def assert_same_weights(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-6) -> None:
    """Per tensor: the norm of the difference over the norm."""
    assert list(actual) == list(expected)
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    assert {name: error for name, error in errors.items() if not error <= tolerance} == {}


def train_both(rank: int, case: Case, stage: int, world_size: int, steps: int) -> None:
    """Trains the case both ways and compares what was seen, the parameters, and this rank's buffers."""
    sharded, reference = Sharded(case, stage), Reference(case, world_size)
    for step in range(steps):
        seen, expected = sharded.step(rank, step), reference.step(step)[rank]
        assert relative_error(seen, expected) < 1e-5, f"step {step}: {seen} instead of {expected}"
    expected = {name: value.cpu() for name, value in reference.weights(rank).items()}
    assert_same_weights(sharded.weights(), expected)


def assert_same_bits(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    actual, expected = _reals(actual), _reals(expected)
    difference = (actual - expected).norm().item()
    return difference / expected.norm().item() if difference else 0.0


def _reals(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor).double() if tensor.is_complex() else tensor.double()
