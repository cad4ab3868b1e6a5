"""Norms of parameter groups, and optimizers over pieces, on GPUs: against themselves on CPUs."""

from __future__ import annotations

import math
from typing import Any

import aliquot
import pytest
from cases import plain
from models import Chain
from ranks import PEER, Transport, run_ranks
from test_muon import with_rest
from test_norms_of_groups import halves
from test_torch_optimizers import step_split
from test_unfreezing import FROZEN
from torch import Tensor
from training import Case, Turn, assert_same_weights, built

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_gpu")]

CASE = Case(Chain, plain)
STEPS = 4


def clip_groups(rank: int, stage: int) -> dict[str, Tensor]:
    """One group by its own norm within the step, some parameters by hand, and all by what is left."""
    model: Any = aliquot.shard(built(CASE), stage=stage)
    vectors, matrices = halves(model)
    groups = [{"params": vectors, "max_grad_norm": 0.02}, {"params": matrices, "max_grad_norm": math.inf}]
    optimizer = aliquot.AdamW(model, params=groups, lr=1e-2, max_grad_norm=0.05)
    found: dict[str, Tensor] = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        CASE.run(model, Turn(rank, step))
        found[f"by hand {step}"] = aliquot.clip_grad_norm_(model.last.parameters(), 0.01).cpu()
        optimizer.step()
        found[f"groups {step}"] = optimizer.grad_norms.cpu()
        found[f"all {step}"] = optimizer.grad_norm.cpu()
    return found | aliquot.full_state_dict(model, all_ranks=True)


@pytest.mark.parametrize("stage", [1, 3])
def test_clipping_groups(stage: int, transport: Transport) -> None:
    on_gpus = run_ranks(2, clip_groups, stage, transport=transport)[0]
    on_cpus = run_ranks(2, clip_groups, stage)[0]
    assert_same_weights(on_gpus, on_cpus, tolerance=1e-5)


def test_split_masters_in_pieces(transport: Transport) -> None:
    run_ranks(2, step_split, 3, "AdamW", {"lr": 1e-3}, transport=transport)


def muon(rank: int) -> dict[str, Tensor]:
    model: Any = aliquot.shard(built(CASE))
    optimizer = with_rest(model)
    for step in range(STEPS):
        optimizer.zero_grad()
        CASE.run(model, Turn(rank, step))
        optimizer.step()
    return aliquot.full_state_dict(model, all_ranks=True)


def test_muon_with_the_rest(transport: Transport) -> None:
    """Newton-Schulz in bf16 carries roundings, which differ between devices, to some percent of an update."""
    on_gpus, on_cpus = run_ranks(2, muon, transport=transport)[0], run_ranks(2, muon)[0]
    for name, param in built(CASE).named_parameters():
        change, difference = on_cpus[name] - param.detach(), on_gpus[name] - on_cpus[name]
        assert difference.norm() < 0.1 * change.norm(), name


def unfreeze(rank: int) -> None:
    model: Any = aliquot.shard(built(FROZEN))
    with pytest.raises(aliquot.InvalidArgument, match=r"after aliquot\.shard"):
        model.blocks[0].requires_grad_(True)
    plain(model, Turn(rank, 0))


@pytest.mark.parametrize("transport", [PEER], ids=str)
def test_unfreezing_is_refused(transport: Transport) -> None:
    run_ranks(2, unfreeze, transport=transport)
