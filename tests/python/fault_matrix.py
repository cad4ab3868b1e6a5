"""The table of docs/faults.md: how each fault of a rank ends at each place of a training loop. A test run writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

HEAD = """# Faults

What happens to one rank, and how that ends: on `shared_memory` and `process_group`, for each rank of a job, after two
good steps, with the other ranks in the middle of theirs. Wherever an error is named, every rank that is left ends with
it by itself, in less than 15 seconds, with an exit code that is not 0 and the culprit's number in the message; nothing
stays in shared memory, no process, no unfinished file that the next save would mind; and the latest checkpoint is
whole. {passed}: the tests of that cell passed; "-": there is nothing that could go wrong.

Written by the tests; `make faults` is their long form, at random instants and at each single call of a save:

    python -m pytest --fault-table docs/faults.md \\
      {files}

"""
NOTES = """
- *Killed* is SIGKILL, *frozen* SIGSTOP; a frozen rank that wakes has the same error. Known within 2 and 10 seconds.
- *Raises* is an exception in user code, or in Aliquot's, which the rank itself raises as it is. In a save or load it is
  the error of all, nothing has changed, and the training may go on.
- *Disk fails*: full in a save (and EIO, and read-only, at each of its calls), EIO in a load.
- *Skips*: the rank stays away from `init`, leaves a module out of its forward, or keeps its output from backward, or
  goes on to train without the call that the others make.
- *Differs*: started with another transport; another stage or model; another learning rate; another step or `keep`. What
  differs is refused where it is said first: no forward, backward or step comes after it.
"""
PASSED, FAILED = "✓", "✗"
PLACES = ("init", "forward", "backward", "step", "save", "load")
LIVENESS, SAVES = "tests/python/test_liveness.py", "tests/python/test_checkpoint_faults.py"
PATHS, DISK = "tests/python/test_different_paths.py", "tests/faults/test_errors.py"


@dataclass(frozen=True)
class Cell:
    """How a fault ends at a place."""

    ends: str
    tests: tuple[str, ...] = ()
    """What shows it: the beginnings of tests' names, up to a `[` or further, and what is in them behind that."""


def _of(test: str, place: str) -> str:
    return rf"{LIVENESS}::{test}\[(.*-)?{place}\b"


def _row(ends: str, test: str, *places: str) -> dict[str, Cell]:
    return {place: Cell(ends, (_of(test, place),)) for place in places}


NOTHING = Cell("-")
RIGHT = "right on `shared_memory`; else `CommunicatorError`, both units"
MATRIX: dict[str, dict[str, Cell]] = {
    "killed": _row("`PeerLost`: is gone", "test_a_killed_rank", *PLACES),
    "frozen": _row("`PeerLost`: is frozen", "test_a_frozen_rank", *PLACES),
    "raises": _row("`PeerLost`: gave up, quoted", "test_a_rank_that_raises", *PLACES[:4])
    | _row("`CheckpointError`, quoted", "test_a_rank_that_raises_in_a_checkpoint", *PLACES[4:]),
    "disk fails": dict.fromkeys(PLACES[:4], NOTHING)
    | {
        "save": Cell(
            "`CheckpointError`, quoted",
            (
                _of("test_a_disk_that_fails_on_one_rank", r"\d-save"),
                rf"{DISK}::test_all_ranks_raise_the_same_and_go_on",
                rf"{SAVES}::test_a_save_that_fails_on_one_rank\[",
            ),
        ),
        "load": Cell("`CheckpointError`, quoted", (_of("test_a_disk_that_fails_on_one_rank", r"\d-load"),)),
    },
    "skips": {
        "init": Cell("`PeerLost`: not arrived, at the timeout", (rf"{LIVENESS}::test_a_rank_that_does_not_come\[",)),
    }
    | {
        place: Cell(
            RIGHT,
            (
                _of("test_a_rank_that_skips_a_module", rf"\d-{place}"),
                rf"{PATHS}::test_one_sided_transports_train_right\[{case}-",
            ),
        )
        for place, case in (("forward", "skip_on_one_rank"), ("backward", "gate_on_one_rank"))
    }
    | _row("`CommunicatorError`, both calls", "test_a_rank_that_skips_a_call", *PLACES[3:]),
    "differs": {
        place: Cell(
            f"`{'CheckpointError' if place in ('save', 'load') else 'CommunicatorError'}`, both {plural}",
            tuple(rf"{LIVENESS}::test_a_rank_that_is_configured_differently\[\w+-{what}-" for what in whats),
        )
        for place, plural, whats in (
            ("init", "transports", ("transport",)),
            ("forward", "models", ("depth", "stage")),
            ("backward", "models", ("depth", "stage")),
            ("step", "optimizers", ("lr",)),
            ("save", "calls", ("save",)),
            ("load", "calls", ("load",)),
        )
    },
}


def files() -> list[str]:
    """What has to be run for the table."""
    return sorted({test.partition("::")[0] for row in MATRIX.values() for cell in row.values() for test in cell.tests})


def rendered(passed: Mapping[str, bool]) -> str:
    """`passed`: by a test's name. A cell of which a test is missing has failed."""
    lines = [f"| | {' | '.join(PLACES)} |", f"|---|{'---|' * len(PLACES)}"]
    for fault, row in MATRIX.items():
        lines.append(f"| {fault} | {' | '.join(_mark(row[place], passed) for place in PLACES)} |")
    return HEAD.format(passed=PASSED, files=" \\\n      ".join(files())) + "\n".join(lines) + "\n" + NOTES


def _mark(cell: Cell, passed: Mapping[str, bool]) -> str:
    if not cell.tests:
        return cell.ends
    found = [[ok for name, ok in passed.items() if re.match(test, name)] for test in cell.tests]
    return f"{PASSED if all(each and all(each) for each in found) else FAILED} {cell.ends}"
