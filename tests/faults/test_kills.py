"""Whenever a rank dies or the power fails: no checkpoint is lost, none is a mixture, and the next save works.

The short form tries some of the instants; `make faults` tries all.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import checks
import pytest
from checks import ALL, ONE, Death
from extent import Extent
from job import Job

Run = Any
Tally = Any
STAGES = (1, 2, 3)
DEATHS = pytest.mark.parametrize("death", [ONE, ALL], ids=["one", "all"])


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "disk" / "checkpoints", stage=2)


@DEATHS
def test_at_every_call_of_a_save(on_failing_disk: Run, job: Job, extent: Extent, tally: Tally, death: Death) -> None:
    for stage in extent.stages:
        count = on_failing_disk(checks.kill_points, replace(job, stage=stage), death, extent.points)
        assert count >= 4
        tally("kills at a call of a save", count)


@pytest.mark.parametrize(
    "other", [{"again": 2}, {"keep": 1}, {"wait": False}], ids=["of the same step", "and pruning", "behind training"]
)
def test_at_every_call_of_a_save_otherwise(
    on_failing_disk: Run, job: Job, extent: Extent, tally: Tally, other: dict[str, Any]
) -> None:
    count = on_failing_disk(checks.kill_points, replace(job, **other), ALL, extent.points)
    assert count >= 4
    tally("kills at a call of a save", count)


@DEATHS
@pytest.mark.parametrize("stage", STAGES)
def test_at_random_instants(
    on_failing_disk: Run, job: Job, extent: Extent, tally: Tally, death: Death, stage: int
) -> None:
    count = on_failing_disk(checks.random_kills, replace(job, stage=stage), death, extent.kills, stage)
    tally("kills at a random instant of a save", count)


@DEATHS
@pytest.mark.parametrize(
    ("other", "saves"),
    [({"wait": False}, "saves behind training"), ({"keep": 1}, "saves that prune")],
    ids=["behind training", "and pruning"],
)
def test_at_random_instants_otherwise(
    on_failing_disk: Run, job: Job, extent: Extent, tally: Tally, death: Death, other: dict[str, Any], saves: str
) -> None:
    count = on_failing_disk(checks.random_kills, replace(job, **other), death, extent.kills_elsewhere, 4)
    tally(f"kills at a random instant of {saves}", count)


@DEATHS
def test_of_a_load(on_failing_disk: Run, job: Job, extent: Extent, tally: Tally, death: Death) -> None:
    count = on_failing_disk(checks.kills_while_loading, job, death, extent.kills_elsewhere, 5)
    tally("kills at a random instant of a load", count)


@pytest.mark.parametrize("other", [{}, {"again": 2}, {"keep": 1}], ids=["new", "of the same step", "and pruning"])
def test_of_the_power(on_failing_disk: Run, job: Job, extent: Extent, tally: Tally, other: dict[str, Any]) -> None:
    tally("losses of power", on_failing_disk(checks.power_losses, replace(job, **other), extent.points))
