"""A disk that is full, broken or read-only, on one rank, at every call of a save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import errors
from extent import Extent
from job import Job

Run = Any
Tally = Any


def test_all_ranks_raise_the_same_and_go_on(on_failing_disk: Run, tmp_path: Path, extent: Extent, tally: Tally) -> None:
    for stage in extent.stages:
        count = on_failing_disk(errors.refused_saves, Job(tmp_path / "disk" / "checkpoints", stage))
        assert count >= 3 * 15
        tally("failing calls of a save, refused by all ranks", count)
