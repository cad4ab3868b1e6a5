"""Models that break sharded training, against unsharded PyTorch on the same global batch."""

from __future__ import annotations

import aliquot
import pytest
import torch
from cases import CASES
from ranks import TRANSPORTS, Transport, run_ranks
from torch import nn
from training import train_both

WORLD_SIZE = 2
STEPS = 5


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize(("name", "stage"), [(name, stage) for name, case in CASES.items() for stage in case.stages])
def test_trains_like_unsharded(name: str, stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, train_both, CASES[name], stage, WORLD_SIZE, STEPS, transport=transport)


class Expanded(nn.Module):
    """Buffers whose elements share memory, one of them in two modules."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("offset", torch.tensor(value).expand(2, 3))
        self.inner = nn.Module()
        self.inner.register_buffer("same", self.offset)
        self.register_buffer("last", torch.full((2, 3), value).t())


def shard_expanded(rank: int) -> None:
    model = Expanded(1.0 + rank)
    aliquot.shard(model)
    assert model.offset.equal(torch.ones(2, 3))
    assert model.last.equal(torch.ones(3, 2))
    assert model.inner.same is model.offset
    model.offset[0, 0] = 5
    assert model.offset.sum() == 10


def test_buffers_that_share_memory_get_their_own() -> None:
    run_ranks(2, shard_expanded)
