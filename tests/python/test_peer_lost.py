"""A rank killed at a random instant of training: the others say which, within 2 seconds, and nothing is left behind."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from threading import Event
from typing import Any

import aliquot
import pytest
from cases import CASES
from ranks import FORK, PROCESS_GROUP, SHARED_MEMORY, Transport, started
from training import STAGES, Sharded

WORLD_SIZE = 3
SECONDS = 2.0
SHARED_MEMORY_FILES = Path("/dev/shm")


def train_until_lost(rank: int, stage: int, training: object) -> tuple[float, int, str]:
    """When PeerLost was raised, whom it names, and its text."""
    sharded = Sharded(CASES["plain"], stage)
    step = 0
    while True:
        try:
            sharded.step(rank, step)
        except aliquot.PeerLost as error:
            return time.monotonic(), error.rank, str(error)
        if step == 1:
            training.release()  # type: ignore[attr-defined]
        step += 1


def lose_a_rank(chance: random.Random, transport: Transport) -> None:
    victim, stage, delay = chance.randrange(WORLD_SIZE), chance.choice(STAGES), chance.uniform(0.0, 0.1)
    training = FORK.Semaphore(0)
    with started(WORLD_SIZE, train_until_lost, stage, training, transport=transport) as ranks:
        for _ in range(WORLD_SIZE):
            assert training.acquire(timeout=30.0)
        Event().wait(delay)  # the random instant
        death = ranks.kill(victim)
        survivors = [r for r in ranks.results(timeout=15.0) if r is not None]
    assert len(survivors) == WORLD_SIZE - 1
    for raised, named, text in survivors:
        assert named == victim
        assert f"rank {victim}" in text
        assert raised - death < SECONDS, f"stage {stage}: {raised - death} s"


@pytest.mark.parametrize("transport", [SHARED_MEMORY, PROCESS_GROUP], ids=str)
def test_survivors_name_the_dead(transport: Transport, kills: int, tally: Any) -> None:
    before, children = set(SHARED_MEMORY_FILES.iterdir()), Path(f"/proc/self/task/{os.getpid()}/children")
    others = children.read_text()
    chance = random.Random(kills)
    for _ in range(kills):
        lose_a_rank(chance, transport)
        tally("ranks killed while training, named", 1)
    assert set(SHARED_MEMORY_FILES.iterdir()) == before
    assert children.read_text() == others
