"""Without any one step of the protocol, the tests fail."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import checks
import corruption
import errors
import pytest
import shim
from checks import ALL, ONE
from job import Job
from mutants import MUTANTS
from ranks import RankError

Run = Any
Tally = Any


def latest_first(job: Job) -> list[Job]:
    return checks.points(job, shim.KILL_BEFORE)[::-1]


def kills_of_rank_0(job: Job) -> None:
    for point in latest_first(job):
        if point.faulty == 0:
            checks.kill_at(point, ALL)


def kills_of_rank_1_alone(job: Job) -> None:
    for point in latest_first(job):
        checks.kill_at(point, ONE)


def overwriting_kills(job: Job) -> None:
    kills_of_rank_0(replace(job, again=2))


def pruning_kills(job: Job) -> None:
    kills_of_rank_0(replace(job, keep=1))


def pruning_power_losses(job: Job) -> None:
    for point in latest_first(replace(job, keep=1)):
        checks.lose_power(point, random.Random(1), 1.0)


def undisturbed_saves_behind_training(job: Job) -> None:
    checks.undisturbed(replace(job, steps=checks.STEPS, wait=False))


def corruptions(job: Job) -> None:
    corruption.corruptions(job, 200, 10, 1)


NOT_THE_LATEST = "is the latest, 2 was saved"
DAMAGED = "its checksum is not what was written"
FOUND_BY: dict[str, tuple[Callable[[Job], Any], str]] = {
    "unsynced_shard": (checks.power_losses, DAMAGED),
    "unsynced_manifest": (checks.power_losses, "manifest.json"),
    "unsynced_draft": (checks.power_losses, "manifest.json"),
    "unsynced_directory": (checks.power_losses, "no checkpoint to load"),
    "unsynced_new_directory": (checks.power_losses, "no checkpoint to load"),
    "unsynced_retirement": (pruning_power_losses, "manifest.json"),
    "verdict_before_shard": (kills_of_rank_1_alone, "rank_00001.safetensors: No such file"),
    "renamed_before_manifest": (checks.power_losses, "manifest.json"),
    "pruned_before_commit": (pruning_kills, "no checkpoint to load"),
    "overwritten_in_place": (overwriting_kills, NOT_THE_LATEST),
    "unchecked_chunks": (corruptions, "was loaded"),
    "unchecked_manifest": (corruptions, r"was loaded|flipped \d+: "),
    "loaded_alone": (corruption.damage_of_one, "PeerLost|ranks disagree"),
    "one_name_for_drafts": (kills_of_rank_0, "File exists"),
    "drafts_stay": (errors.refused_saves, "it has left"),
    "outcome_not_told": (errors.refused_saves, r"\[.*'', |, ''"),
    "no_snapshot": (undisturbed_saves_behind_training, "a mixture"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_is_found(on_failing_disk: Run, tmp_path: Path, tally: Tally, mutant: str) -> None:
    check, words = FOUND_BY[mutant]
    job = Job(tmp_path / "disk" / "checkpoints", stage=2, mutant=mutant)
    with pytest.raises((AssertionError, RankError), match=words):
        on_failing_disk(check, job)
    tally("protocols without a step found out", 1)
