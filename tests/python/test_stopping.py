"""Ranks that are told to stop do so after the same step; ranks that end otherwise say why."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aliquot
import pytest
import torch
from cases import CASES
from jobs import started
from ranks import FORK, free_port
from training import Sharded

SECONDS = 15.0
TERMINATED = 143


def train_until_stopped(rank: int, transport: str, training: Any, steps: Any, stop: Callable[[int], bool]) -> None:
    aliquot.init(transport=transport, timeout=60.0)  # type: ignore[arg-type]
    sharded = Sharded(CASES["plain"], stage=3)
    step = 0
    while not stop(step):
        if step == 1:
            training.release()
        sharded.step(rank, step)
        step += 1
    steps[rank] = step
    aliquot.full_state_dict(sharded.model)  # as a last save would: every rank is there
    sys.exit(TERMINATED)


def polled(step: int) -> bool:
    return aliquot.should_stop()


def by_own_handler(step: int) -> bool:
    if step == 0:
        signal.signal(signal.SIGTERM, lambda *_: aliquot.request_stop())
    return aliquot.should_stop()


@pytest.mark.parametrize("transport", ["shared_memory", "process_group"])
@pytest.mark.parametrize("stop", [polled, by_own_handler])
@pytest.mark.parametrize("told", [[0], [1], [0, 1, 2]])
def test_all_ranks_stop_after_the_same_step(transport: str, stop: Callable[[int], bool], told: list[int]) -> None:
    training, steps = FORK.Semaphore(0), FORK.Array("i", 3)
    with started(3, train_until_stopped, transport, training, steps, stop) as job:
        for _ in range(3):
            assert training.acquire(timeout=30.0)
        for rank in told:
            job.send(rank, signal.SIGTERM)
        ends = job.ends(list(range(3)), SECONDS)
    assert [end.code for end in ends.values()] == [TERMINATED] * 3, [end.text for end in ends.values()]
    assert steps[0] > 0
    assert list(steps) == [steps[0]] * 3


def never_leave(rank: int, ready: Any, asked: Any, never: Any) -> None:
    aliquot.should_stop()
    ready.release()
    while not aliquot.should_stop():
        pass
    asked.release()
    never.acquire()  # in C, where Python runs no handler


def test_a_second_sigterm_ends_a_rank_at_once() -> None:
    ready, asked, never = (FORK.Semaphore(0) for _ in range(3))
    with started(1, never_leave, ready, asked, never) as job:
        for step in (ready, asked):
            assert step.acquire(timeout=30.0)
            job.send(0, signal.SIGTERM)
        assert job.ends([0], SECONDS)[0].code == -signal.SIGTERM


def wait_for_rank_1(rank: int, transport: str, code: int) -> None:
    world = aliquot.init(transport=transport, timeout=60.0)  # type: ignore[arg-type]
    if rank == 1:
        sys.exit(code)
    world.communicator.barrier("that rank 1 does not come to")


@pytest.mark.parametrize("transport", ["shared_memory", "process_group"])
@pytest.mark.parametrize("code", [0, 3])
def test_nobody_waits_for_a_rank_that_has_ended(transport: str, code: int) -> None:
    with started(2, wait_for_rank_1, transport, code) as job:
        ends = job.ends([0, 1], SECONDS)
    assert ends[1].code == code
    assert ends[0].error == "PeerLost", ends[0].text
    assert re.search("rank 1 .*has left", ends[0].last_line)


PROGRAM = """
import sys, threading, aliquot

def main():
    world = aliquot.init(transport=sys.argv[1])
    if world.rank == 1:
        raise ValueError("the batch is empty")
    world.communicator.barrier("that rank 1 does not come to")

if sys.argv[2] == "main":
    main()
else:
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
"""


@pytest.mark.parametrize(("transport", "thread"), [("shared_memory", "main"), ("process_group", "other")])
def test_an_uncaught_exception_of_a_program(transport: str, thread: str, tmp_path: Path) -> None:
    """As the interpreter itself ends: by its hooks, not by those of multiprocessing."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(program), transport, thread], stderr=subprocess.PIPE, text=True,
            env=os.environ | job | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        text = ranks[0].communicate(timeout=60.0)[1]
        assert "PeerLost: rank 1 gave up: ValueError: the batch is empty" in text
        assert ranks[1].wait(SECONDS) == (1 if thread == "main" else 0)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def hang(rank: int) -> None:
    torch.set_num_threads(1)
    with aliquot._core.Watchdog(0.1, "a call that holds the interpreter's lock"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        signal.sigwait([signal.SIGUSR1])


def test_what_hangs_ends_with_code_70() -> None:
    with started(1, hang) as job:
        end = job.ends([0], SECONDS)[0]
    assert end.code == 70
    assert "a call that holds the interpreter's lock has not ended within 100 ms" in end.text
