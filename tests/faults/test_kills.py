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
STAGES = (1, 2, 3)
DEATHS = pytest.mark.parametrize("death", [ONE, ALL], ids=["one", "all"])


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "disk" / "checkpoints", stage=2)


@DEATHS
def test_at_every_call_of_a_save(on_failing_disk: Run, job: Job, extent: Extent, death: Death) -> None:
    for stage in extent.stages:
        assert on_failing_disk(checks.kill_points, replace(job, stage=stage), death, extent.points) >= 4


@pytest.mark.parametrize(
    "other", [{"again": 2}, {"keep": 1}, {"wait": False}], ids=["of the same step", "and pruning", "behind training"]
)
def test_at_every_call_of_a_save_otherwise(
    on_failing_disk: Run, job: Job, extent: Extent, other: dict[str, Any]
) -> None:
    assert on_failing_disk(checks.kill_points, replace(job, **other), ALL, extent.points) >= 4


@DEATHS
@pytest.mark.parametrize("stage", STAGES)
def test_at_random_instants(on_failing_disk: Run, job: Job, extent: Extent, death: Death, stage: int) -> None:
    on_failing_disk(checks.random_kills, replace(job, stage=stage), death, extent.kills, stage)


@DEATHS
@pytest.mark.parametrize("other", [{"wait": False}, {"keep": 1}], ids=["behind training", "and pruning"])
def test_at_random_instants_otherwise(
    on_failing_disk: Run, job: Job, extent: Extent, death: Death, other: dict[str, Any]
) -> None:
    on_failing_disk(checks.random_kills, replace(job, **other), death, extent.kills_elsewhere, 4)


@DEATHS
def test_of_a_load(on_failing_disk: Run, job: Job, extent: Extent, death: Death) -> None:
    on_failing_disk(checks.kills_while_loading, job, death, extent.kills_elsewhere, 5)


@pytest.mark.parametrize("other", [{}, {"again": 2}, {"keep": 1}], ids=["new", "of the same step", "and pruning"])
def test_of_the_power(on_failing_disk: Run, job: Job, extent: Extent, other: dict[str, Any]) -> None:
    on_failing_disk(checks.power_losses, replace(job, **other), extent.points)
