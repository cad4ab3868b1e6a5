"""Models that break sharded training, against unsharded PyTorch on the same global batch."""

from __future__ import annotations

import pytest
from cases import CASES
from ranks import TRANSPORTS, Transport, run_ranks
from training import train_both

WORLD_SIZE = 2
STEPS = 5


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize(("name", "stage"), [(name, stage) for name, case in CASES.items() for stage in case.stages])
def test_trains_like_unsharded(name: str, stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, train_both, CASES[name], stage, WORLD_SIZE, STEPS, transport=transport)
