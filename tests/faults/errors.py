"""Calls of a save that fail: on every rank the same error, soon; the disk as it was; and training goes on."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass

import aliquot
import mutants
import shim
from checks import TIMEOUT, clean, require_sound
from job import WORLD_SIZE, Job, Progress, made, train_step, tree
from ranks import run_ranks
from torch import nn

BOUND = 2.0
"""Seconds from the beginning of a save until all ranks have raised what one of them met."""


@dataclass(frozen=True)
class Refusal:
    """What a rank said of a save in which a call of the rank `faulty` failed."""

    faulty: int
    fault: shim.Fault
    message: str
    seconds: float


def refused_saves(job: Job) -> int:
    """Each call that changes a file fails in turn, on each rank, with each error. Returns how many did."""
    clean(job)
    of_rank = run_ranks(WORLD_SIZE, fail_every_call, job, transport=None, timeout=10 * TIMEOUT)
    refused = 0
    for refusals in zip(*of_rank, strict=True):
        first = refusals[0]
        where = f"{first.fault}, rank {first.faulty}"
        if not any(refusal.message for refusal in refusals):
            assert first.fault.at == 1, f"{where}: nobody was told"  # another rank had made the folder
            continue
        refused += 1
        assert len({refusal.message for refusal in refusals}) == 1, f"{where}: {[r.message for r in refusals]}"
        assert f"rank {first.faulty}" in first.message, f"{where}: {first.message}"
        assert os.strerror(first.fault.action) in first.message, f"{where}: {first.message}"
        assert max(refusal.seconds for refusal in refusals) < BOUND, f"{where}: {[r.seconds for r in refusals]}"
    progress = Progress()
    progress.begun[0] = progress.saved[0] = 3
    require_sound(job, progress)
    return refused


def fail_every_call(rank: int, job: Job) -> list[Refusal]:
    """Saves again and again, with another call failing each time; then trains on and saves."""
    world = aliquot.init("shared_memory", timeout=20.0)
    mutants.apply(job.mutant)
    model, opt = made(job.stage)
    train_step(model, opt, rank, 1)
    aliquot.save_checkpoint(job.directory, model, opt, step=1)
    train_step(model, opt, rank, 2)
    before = tree(job.directory)
    refusals = []
    for faulty in range(world.world_size):
        for error in shim.ERRORS:
            fault = shim.Fault(1, error)
            while refusal := refused(rank, job, model, opt, before, fault, faulty):
                refusals.append(refusal)
                fault = shim.Fault(fault.at + 1, error)
    aliquot.save_checkpoint(job.directory, model, opt, step=2)
    train_step(model, opt, rank, 3)
    aliquot.save_checkpoint(job.directory, model, opt, step=3)
    return refusals


def refused(
    rank: int,
    job: Job,
    model: nn.Module,
    opt: aliquot.AdamW,
    before: dict[str, bytes],
    fault: shim.Fault,
    faulty: int,
) -> Refusal | None:
    """Nothing if no call was left to fail."""
    communicator = aliquot.init().communicator
    communicator.barrier("all have looked")
    message, begin = "", time.monotonic()
    with shim.fault(job.directory.parent, fault if rank == faulty else shim.NO_FAULT):
        try:
            aliquot.save_checkpoint(job.directory, model, opt, step=2)
        except aliquot.CheckpointError as error:
            message = str(error)
        seconds = time.monotonic() - begin
        met = rank == faulty and shim.counted_calls() >= fault.at
    met = b"\1" in communicator.all_gather("who met it", bytes([met]))
    if not message and rank == 0:
        shutil.rmtree(job.directory / "step_2")
    communicator.barrier("as before")
    changed = sorted({path for path, _ in before.items() ^ tree(job.directory).items()})
    assert not changed, f"{fault}, rank {faulty}: it has left or changed {changed}"
    return Refusal(faulty, fault, message, seconds) if met else None
