"""What must hold of checkpoints, whatever happens. Each function runs in a process with the shim, forks its ranks, and
raises AssertionError where something does not hold."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import shim
from disk import Disk
from job import WORLD_SIZE, Found, Job, Progress, Steps, examine, load_again_and_again, run, tree
from ranks import Ranks, run_ranks, started

STEPS = 5
TIMEOUT = 60.0


@functools.cache
def expected() -> dict[int, str]:
    """The digest of every step, from a job that nothing happened to. All stages train alike."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "checkpoints"
        job = Job(directory, stage=1, steps=STEPS)
        run_ranks(WORLD_SIZE, run, job, Progress(), transport=None)
        return run_ranks(1, examine, job, STEPS, transport=None)[0].digests


def require_sound(job: Job, progress: Progress) -> None:
    """The latest is one that was committed, and none before that which a rank was told of; the next save works."""
    begun, saved = max(progress.begun), max(progress.saved)
    found: Found = run_ranks(1, examine, job, begun, transport=None)[0]
    assert saved <= found.latest <= begun, f"step {found.latest} is the latest, {saved} was saved, {begun} begun"
    assert found.digests == {step: expected()[step] for step in found.digests}, "a mixture"
    assert found.latest in found.digests
    assert found.saved_over == expected()[found.latest], "what was saved over it is something else"
    assert found.left == [f"step_{begun}"], f"left behind: {found.left}"


@dataclass(frozen=True)
class Death:
    """Who dies with the first rank that does."""

    all: bool

    def follow(self, ranks: Ranks) -> None:
        """Ends the job; the ranks that are left must not hang."""
        ranks.await_first(TIMEOUT)
        if self.all:
            for rank in range(WORLD_SIZE):
                ranks.kill(rank)
            return
        answers = ranks.answers(TIMEOUT, after_a_failure=TIMEOUT)
        hung = [rank for rank, (_, answer) in answers.items() if answer == "did not end in time"]
        assert not hung, f"ranks {hung} hang"


ONE, ALL = Death(all=False), Death(all=True)


def clean(job: Job) -> None:
    """Makes an empty disk."""
    shutil.rmtree(job.directory.parent, ignore_errors=True)
    job.directory.parent.mkdir()


def calls(job: Job) -> list[int]:
    """How many calls each rank makes in the save of the last step."""
    clean(job)
    return run_ranks(WORLD_SIZE, run, job, Progress(), transport=None)


def points(job: Job, *actions: int) -> list[Job]:
    """The job with each of these faults at every call of every rank."""
    return [
        replace(job, fault=shim.Fault(at, action), faulty=rank)
        for rank, count in enumerate(calls(job))
        for at, action in itertools.product(range(1, count + 1), actions)
    ]


def sampled(jobs: list[Job], most: int | None) -> list[Job]:
    """So many of them, the same ones each time; None: all."""
    return jobs if most is None or len(jobs) <= most else random.Random(1).sample(jobs, most)


def kill_points(job: Job, death: Death, most: int | None = None) -> int:
    """Dies at every call of a save that changes a file. Returns at how many."""
    jobs = sampled(points(job, shim.KILL_BEFORE, shim.KILL_MIDWAY), most)
    for point in jobs:
        kill_at(point, death)
    return len(jobs)


def kill_at(point: Job, death: Death) -> None:
    clean(point)
    progress = Progress()
    with started(WORLD_SIZE, run, point, progress, transport=None) as ranks:
        death.follow(ranks)
    with named(point):
        require_sound(point, progress)


@contextlib.contextmanager
def named(point: Job) -> Iterator[None]:
    """Says of an assertion that fails where that was."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{point.fault}, rank {point.faulty}: {error}") from None


def undisturbed(job: Job) -> None:
    """Nothing happens."""
    clean(job)
    progress = Progress()
    run_ranks(WORLD_SIZE, run, job, progress, transport=None)
    require_sound(job, progress)


def random_kills(job: Job, death: Death, count: int, seed: int) -> int:
    """Dies at random instants once a first step is saved."""
    chance = random.Random(seed)
    job = replace(job, steps=STEPS)
    window = duration(job)
    for _ in range(count):
        clean(job)
        progress = Progress()
        with started(WORLD_SIZE, run, job, progress, transport=None) as ranks:
            await_step(ranks, progress.saved, 1)
            time.sleep(chance.uniform(0, window))  # the instant is what is random
            ranks.kill(chance.randrange(WORLD_SIZE))
            death.follow(ranks)
        require_sound(job, progress)
    return count


def duration(job: Job) -> float:
    """Seconds from the end of the first save to that of the last."""
    clean(job)
    progress = Progress()
    with started(WORLD_SIZE, run, job, progress, transport=None) as ranks:
        await_step(ranks, progress.saved, 1)
        begin = time.monotonic()
        ranks.results(TIMEOUT)
        return time.monotonic() - begin


def await_step(ranks: Ranks, steps: Steps, step: int) -> None:
    """Returns when all ranks have come to it; raises what they raise before."""
    deadline = time.monotonic() + TIMEOUT
    while min(steps) < step:
        assert time.monotonic() < deadline, f"step {step} never came"
        if ranks.await_first(0.001):
            ranks.results(TIMEOUT)


def kills_while_loading(job: Job, death: Death, count: int, seed: int) -> int:
    """Dies at random instants of a load: nothing on the disk may change."""
    chance = random.Random(seed)
    calls(job)
    before = tree(job.directory)
    for _ in range(count):
        progress = Progress()
        loads = (job.directory, job.stage, 100, progress)
        with started(WORLD_SIZE, load_again_and_again, *loads, transport=None) as ranks:
            await_step(ranks, progress.begun, 1)
            time.sleep(chance.uniform(0, 0.1))
            ranks.kill(chance.randrange(WORLD_SIZE))
            death.follow(ranks)
        assert tree(job.directory) == before
    progress.begun[0] = progress.saved[0] = job.steps
    require_sound(job, progress)
    return count


def power_losses(job: Job, most: int | None = None) -> int:
    """The power fails behind a save, and at every call of one: what was not synced is lost, or some of it."""
    jobs = [job, *sampled(points(job, shim.KILL_BEFORE), most)]
    chance = random.Random(1)
    for point, probability in itertools.product(jobs, (1.0, 0.5)):
        lose_power(point, chance, probability)
    return 2 * len(jobs)


def lose_power(point: Job, chance: random.Random, probability: float) -> None:
    clean(point)
    journal = point.directory.parent.with_suffix(".journal")
    journal.unlink(missing_ok=True)
    progress = Progress()
    with started(WORLD_SIZE, run, replace(point, journal=journal), progress, transport=None) as ranks:
        if point.fault.at:
            ALL.follow(ranks)
        else:
            ranks.results(TIMEOUT)
    disk = Disk()
    disk.replay(journal)
    disk.lose(chance, probability)
    with named(point):
        require_sound(point, progress)
