"""Each cell of the table in docs/faults.md names tests that there are, and all of them passed when it was written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from fault_matrix import MATRIX, PLACES, files, rendered

ROOT = Path(__file__).parents[2]


def test_every_cell_is_shown() -> None:
    """By the names of the tests, collected anew; then the table is the one that is in the docs."""
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--no-header", *files()]
    names = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for fault, row in MATRIX.items():
        assert tuple(row) == PLACES, fault
        for place, cell in row.items():
            for test in cell.tests:
                assert any(re.match(test, name) for name in names), f"{fault}, {place}: {test}"
    assert rendered(dict.fromkeys(names, True)) == (ROOT / "docs" / "faults.md").read_text()
