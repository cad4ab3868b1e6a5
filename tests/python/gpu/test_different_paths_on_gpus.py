"""Ranks that take different paths through the model train right on GPUs, where no gather needs a partner."""

from __future__ import annotations

import pytest
from ranks import NCCL, PEER_POISONED, Transport, run_ranks
from test_different_paths import CASES, STEPS
from training import STAGES, train_both

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_gpu")]


def train_all(rank: int, stage: int) -> None:
    """One job for all cases: it takes seconds to start one."""
    for case in CASES.values():
        train_both(rank, case, stage, world_size=2, steps=STEPS)


@pytest.mark.parametrize(
    ("transport", "stage"), [*((PEER_POISONED, stage) for stage in STAGES), (NCCL, 1), (NCCL, 2)], ids=str
)
def test_they_train_right(transport: Transport, stage: int) -> None:
    run_ranks(2, train_all, stage, transport=transport, timeout=120.0)
