"""Every damaged file of a checkpoint is refused, by its name, chunk and tensors, on all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import corruption
from extent import Extent
from job import Job

Run = Any
Tally = Any


def test_all_are_refused(on_failing_disk: Run, tmp_path: Path, extent: Extent, tally: Tally) -> None:
    job = Job(tmp_path / "disk" / "checkpoints", stage=2)
    refused = on_failing_disk(corruption.corruptions, job, extent.flips, extent.damages, 1)
    assert refused == extent.flips + 3 * extent.damages
    tally("damaged files refused", refused)


def test_no_rank_loads_what_another_refuses(on_failing_disk: Run, tmp_path: Path) -> None:
    on_failing_disk(corruption.damage_of_one, Job(tmp_path / "disk" / "checkpoints", stage=2))
