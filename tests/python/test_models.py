"""Models that break sharded training, against unsharded PyTorch on the same global batch."""

from __future__ import annotations

import pytest
from cases import CASES
from ranks import TRANSPORTS, Transport, run_ranks
from training import Case, Reference, Sharded, assert_same_weights, relative_error

WORLD_SIZE = 2
STEPS = 5


def train_both(rank: int, case: Case, stage: int) -> None:
    sharded, reference = Sharded(case, stage), Reference(case, WORLD_SIZE)
    for step in range(STEPS):
        seen, expected = sharded.step(rank, step), reference.step(step)[rank]
        assert relative_error(seen, expected) < 1e-5, f"step {step}: {seen} instead of {expected}"
    weights = sharded.weights()
    trained = dict(sharded.model.named_parameters())
    assert_same_weights(
        {name: w for name, w in weights.items() if name in trained},
        {name: w for name, w in reference.weights().items() if name in trained},
    )
    assert list(weights) == list(reference.weights())
    assert_same_weights(dict(sharded.model.named_buffers()), dict(reference.replicas[rank].named_buffers()))


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize(("name", "stage"), [(name, stage) for name, case in CASES.items() for stage in case.stages])
def test_trains_like_unsharded(name: str, stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, train_both, CASES[name], stage, transport=transport)
