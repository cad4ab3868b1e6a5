"""Ranks that stop for ever are named, whenever that is; ranks that stall for a while are left alone."""

from __future__ import annotations

import ctypes
import random
import signal
import sys
import time
from threading import Event
from typing import Any

import aliquot
import pytest
from cases import CASES
from jobs import started
from ranks import FORK
from training import Sharded

WORLD_SIZE = 3
PATIENCE = 10.0
LONGEST_STALL = 5.0
SLACK = 5.0
"""Seconds that a job may take to end once its ranks know why, on a busy machine."""
DONE = 143


def hold_the_interpreter(seconds: float) -> None:
    """No other thread of Python runs meanwhile."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def train(rank: int, transport: str, training: Any, stalls: float) -> None:
    aliquot.init(transport=transport, timeout=60.0)  # type: ignore[arg-type]
    sharded = Sharded(CASES["plain"], stage=3)
    chance = random.Random(rank)
    step = 0
    while not aliquot.should_stop():
        if step == 1:
            training.release()
        if chance.random() < stalls:
            hold_the_interpreter(chance.uniform(0.0, LONGEST_STALL))
        sharded.step(rank, step)
        step += 1
    sys.exit(DONE)


@pytest.mark.parametrize("transport", ["shared_memory", "process_group"])
def test_a_rank_frozen_at_any_time_is_named(transport: str, freezes: int, tally: Any) -> None:
    """With the patience that is everybody's in the long form, and less in the short one."""
    patience = PATIENCE if freezes > 1 else 2.0
    chance = random.Random(freezes)
    for _ in range(freezes):
        victim = chance.randrange(WORLD_SIZE)
        training = FORK.Semaphore(0)
        with started(WORLD_SIZE, train, transport, training, 0.0, patience=patience) as job:
            for _ in range(WORLD_SIZE):
                assert training.acquire(timeout=30.0)
            Event().wait(chance.uniform(0.0, 1.0))  # the random instant
            job.send(victim, signal.SIGSTOP)
            ends = job.ends([rank for rank in range(WORLD_SIZE) if rank != victim], patience + SLACK)
        for end in ends.values():
            assert end.error == "PeerLost", end.text
            assert f"rank {victim} " in end.last_line
            assert "is frozen" in end.last_line
        tally("frozen ranks named", 1)


@pytest.mark.parametrize("transport", ["shared_memory", "process_group"])
def test_stalls_are_no_faults(transport: str, stall_seconds: float, tally: Any) -> None:
    """Of a process as a whole, and of its interpreter."""
    chance = random.Random(int(stall_seconds))
    training = FORK.Semaphore(0)
    end = time.monotonic() + stall_seconds
    with started(WORLD_SIZE, train, transport, training, 0.001, patience=PATIENCE) as job:
        for _ in range(WORLD_SIZE):
            assert training.acquire(timeout=60.0)
        while (rest := end - time.monotonic()) > 0:
            victim = chance.randrange(WORLD_SIZE)
            job.send(victim, signal.SIGSTOP)
            Event().wait(chance.uniform(0.0, min(LONGEST_STALL, max(rest, 0.1))))
            job.send(victim, signal.SIGCONT)
            Event().wait(chance.uniform(0.0, 1.0))
        job.send(0, signal.SIGTERM)
        ends = job.ends(list(range(WORLD_SIZE)), 60.0)
    assert [(e.code, e.text) for e in ends.values()] == [(DONE, "")] * WORLD_SIZE
    tally("seconds of stalls without a false alarm", stall_seconds)
