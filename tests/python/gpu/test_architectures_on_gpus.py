"""Models that people train on GPUs, against unsharded PyTorch there; and all optimizers, against themselves on CPUs.

`python -m pytest tests/python/gpu/test_architectures_on_gpus.py --table docs/models_on_gpus.md` writes which train.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import aliquot
import pytest
import torch
from architectures import ARCHITECTURES
from cases import CASES
from ranks import NCCL, PEER_POISONED, Transport, run_ranks
from test_architectures import STEADY, STEPS, WORLD_SIZE
from test_fused import SETTINGS
from test_whole_parameters import lamb, muon
from torch import Tensor, nn
from training import Case, Reference, Sharded, Turn, assert_same_weights, built, relative_error

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_gpu")]

TOLERANCE = 1e-5
"""PyTorch's own sums (of an embedding's gradient, of a convolution's) come in any order there."""


def trainable(stage: int, transport: Transport) -> list[str]:
    """All but those whose ranks run other units than their partners, where a gather needs partners."""
    unlike = ["experts as modules"] if transport == NCCL and stage == 3 else []
    return [name for name in ARCHITECTURES if name not in unlike]


def train_all(rank: int, stage: int, names: list[str]) -> dict[str, str]:
    """What went wrong, by model."""
    failures = {}
    for name in names:
        try:
            train_both(rank, ARCHITECTURES[name], stage)
        except (AssertionError, RuntimeError) as error:
            failures[name] = f"{type(error).__name__}: {error}"
    return failures


def train_both(rank: int, case: Case, stage: int) -> None:
    sharded, reference = Sharded(case, stage, **STEADY), Reference(case, WORLD_SIZE, **STEADY)
    for step in range(STEPS):
        seen, expected = sharded.step(rank, step), reference.step(step)[rank]
        assert relative_error(seen, expected) < TOLERANCE, f"step {step}: {seen} instead of {expected}"
    weights = {name: value.cpu() for name, value in reference.weights(rank).items()}
    assert_same_weights(sharded.weights(), weights, TOLERANCE)


@pytest.mark.parametrize("transport", [PEER_POISONED, NCCL], ids=str)
@pytest.mark.parametrize("stage", [1, 3])
def test_architectures(stage: int, transport: Transport, record_property: Callable[[str, object], None]) -> None:
    names = trainable(stage, transport)
    failures = run_ranks(WORLD_SIZE, train_all, stage, names, transport=transport, timeout=240.0)
    for name in names:
        record_property(f"{name}-{stage}", all(name not in of_rank for of_rank in failures))
    assert failures == [{}, {}]


def sgd(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [aliquot.TorchOptimizer(model, torch.optim.SGD, lr=0.1, momentum=0.9, max_grad_norm=1.0)]


def fused(name: str, model: nn.Module) -> list[torch.optim.Optimizer]:
    kind, settings = SETTINGS[name]
    return [getattr(aliquot, kind)(model, max_grad_norm=1.0, **settings)]


OPTIMIZERS = {
    "torchs_SGD": sgd,
    "LAMB": lamb,
    "Muon": muon,
    **{name: partial(fused, name) for name in SETTINGS},
}


def weights_after(rank: int, name: str, stage: int) -> dict[str, Tensor]:
    case = CASES["plain"]
    model: Any = aliquot.shard(built(case), stage=stage, units=case.units)
    optimizers = OPTIMIZERS[name](model)
    for step in range(STEPS):
        optimizers[0].zero_grad()
        case.run(model, Turn(rank, step))
        for optimizer in optimizers:
            optimizer.step()
    return aliquot.full_state_dict(model, all_ranks=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_agree_with_those_on_cpus(name: str, transport: Transport) -> None:
    on_gpus = run_ranks(2, weights_after, name, 3, transport=transport)[0]
    on_cpus = run_ranks(2, weights_after, name, 3)[0]
    assert_same_weights(on_gpus, on_cpus, tolerance=2e-3 if name == "Muon" else 1e-5)
