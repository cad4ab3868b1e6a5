"""The table of docs/models.md: which models train like unsharded PyTorch, at which stages. A test run writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import aliquot
import torch
import transformers
from training import STAGES, Case, built

HEAD = """# Models

What people train, tiny, from configurations, in fp32 on two ranks, beside unsharded PyTorch on the same global batch.
{check}: every loss and every weight agrees to 1e-6, relative; at stage 3 both where units are gathered in place and
where they land in slots that are filled with NaN between uses. Parameters are counted as PyTorch counts them, tied ones
once.

Written by `python -m pytest tests/python/test_architectures.py --table docs/models.md`, with aliquot {aliquot},
torch {torch} and transformers {transformers}.

"""
PASSED, FAILED = "✓", "✗"
TESTS = re.compile(r"test_architectures\.py::test_trains_like_unsharded\[(?P<name>.+)-(?P<stage>\d)-[a-z_-]+\]$")


def by_cell(passed: Mapping[str, bool]) -> dict[tuple[str, int], bool]:
    """By a model's name and the stage: whether all tests of it passed."""
    cells: dict[tuple[str, int], bool] = {}
    for test, ok in passed.items():
        if found := TESTS.search(test):
            cell = found["name"], int(found["stage"])
            cells[cell] = cells.get(cell, True) and ok
    return cells


def parameters(case: Case) -> int:
    return sum(param.numel() for param in built(case).parameters())


def rendered(passed: Mapping[tuple[str, int], bool], cases: Mapping[str, Case]) -> str:
    """Cells of which nothing is known stay empty."""
    versions = {"aliquot": aliquot.__version__, "torch": _version(torch), "transformers": _version(transformers)}
    lines = [
        f"| model | parameters | {' | '.join(f'stage {stage}' for stage in STAGES)} |",
        f"|---|--:|{'|'.join(':-:' for _ in STAGES)}|",
    ]
    marks = {True: PASSED, False: FAILED, None: ""}
    for name, case in cases.items():
        cells = [marks[passed.get((name, stage))] for stage in STAGES]
        lines.append(f"| {name} | {parameters(case)} | {' | '.join(cells)} |")
    return HEAD.format(check=PASSED, **versions) + "\n".join(lines) + "\n"


def _version(module: object) -> str:
    return str(getattr(module, "__version__", "")).partition("+")[0]


def committed_rows(table: str) -> dict[str, int]:
    """Models and their parameters, of rows that have a tick at every stage."""
    ticks = rf"(?:\| {PASSED} ){{{len(STAGES)}}}\|"
    return {name: int(count) for name, count in re.findall(rf"^\| (.+?) \| (\d+) {ticks}$", table, re.MULTILINE)}
