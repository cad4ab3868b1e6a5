"""A model built on the meta device is materialised shard by shard."""

from __future__ import annotations

import aliquot
import pytest
import torch
from cases import CASES
from ranks import TRANSPORTS, Transport, run_ranks
from training import ADAMW, MAX_NORM, STAGES, Reference, Turn, assert_same_weights

CASE = CASES["tied_weights"]
WORLD_SIZE = 2


def train_from_state_dict(rank: int, stage: int) -> None:
    with torch.device("meta"):
        model = CASE.build()
    model = aliquot.shard(model, stage=stage)
    reference = Reference(CASE, WORLD_SIZE)
    aliquot.load_full_state_dict(model, reference.weights())
    optimizer = aliquot.AdamW(model, **ADAMW, max_grad_norm=MAX_NORM)
    for step in range(5):
        optimizer.zero_grad()
        CASE.run(model, Turn(rank, step))
        optimizer.step()
        reference.step(step)
    assert_same_weights(aliquot.full_state_dict(model, all_ranks=True), reference.weights())


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_trains_from_a_state_dict(stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, train_from_state_dict, stage, transport=transport)


def materialise(rank: int, stage: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(rank)  # ranks that were seeded differently still have to agree on one model
    with torch.device("meta"):
        model = CASE.build()
    return aliquot.full_state_dict(aliquot.shard(model, stage=stage), all_ranks=True)


@pytest.mark.parametrize("stage", STAGES)
def test_modules_initialise_themselves(stage: int) -> None:
    first, second = run_ranks(2, materialise, stage)
    for name, weight in first.items():
        assert torch.equal(weight, second[name])
        assert weight.isfinite().all()
    assert torch.equal(first["blocks.0.norm.weight"], torch.ones(8))
    assert first["blocks.0.up.weight"].unique().numel() == first["blocks.0.up.weight"].numel()
