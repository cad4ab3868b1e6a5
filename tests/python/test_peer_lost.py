"""A rank killed at a random instant of training: the others say which, within 2 seconds, and nothing is left behind."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from losing import lose
from ranks import PROCESS_GROUP, SHARED_MEMORY, Transport
from training import STAGES

WORLD_SIZE = 3
SHARED_MEMORY_FILES = Path("/dev/shm")


def lose_a_rank(chance: random.Random, transport: Transport) -> None:
    """At a random instant."""
    victim, stage, delay = chance.randrange(WORLD_SIZE), chance.choice(STAGES), chance.uniform(0.0, 0.1)
    lose(victim, WORLD_SIZE, stage, 1, delay, transport)


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
