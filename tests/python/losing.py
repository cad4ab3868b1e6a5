"""A rank that is killed while all train, and what the others say."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from threading import Event
from typing import Any

import aliquot
from cases import CASES
from ranks import FORK, Transport, started
from training import Sharded

SECONDS = 2.0


def train_until_lost(rank: int, stage: int, replicas: int, training: Any) -> tuple[float, int, str]:
    """When PeerLost was raised, whom it names, and its text."""
    sharded = Sharded(replace(CASES["plain"], replicas=replicas), stage)
    step = 0
    while True:
        try:
            sharded.step(rank, step)
        except aliquot.PeerLost as error:
            return time.monotonic(), error.rank, str(error)
        if step == 1:
            training.release()
        step += 1


def lose(
    victim: int,
    world_size: int,
    stage: int,
    replicas: int,
    delay: float,
    transport: Transport,
    seconds: float = SECONDS,
) -> None:
    """Kills `victim`, `delay` seconds after all have begun to train: the others name it in time and end in order."""
    training = FORK.Semaphore(0)
    with started(world_size, train_until_lost, stage, replicas, training, transport=transport) as ranks:
        for _ in range(world_size):
            assert training.acquire(timeout=60.0)
        Event().wait(delay)
        death = ranks.kill(victim)
        survivors = [r for r in ranks.results(timeout=20.0) if r is not None]
        codes = ranks.exit_codes(timeout=15.0)
    assert len(survivors) == world_size - 1
    for raised, named, text in survivors:
        assert named == victim
        assert f"rank {victim}" in text
        assert raised - death < seconds, f"stage {stage}: {raised - death} s"
    assert codes == [-signal.SIGKILL if rank == victim else 0 for rank in range(world_size)]
