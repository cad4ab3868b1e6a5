"""The command that writes docs/parity.md: it measures, and the table in the docs is of the present models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from architectures import ARCHITECTURES
from parity import HALVES, cells

ROW = re.compile(r"^\| (?P<name>.+?) \| (?P<fp32>[\d.e+-]+) \| .* \| ✓ \|$", re.MULTILINE)


def test_the_table_in_the_docs_is_of_these_models() -> None:
    table = (Path(__file__).parents[2] / "docs" / "parity.md").read_text()
    rows = {row["name"]: float(row["fp32"]) for row in ROW.finditer(table)}
    assert list(rows) == list(ARCHITECTURES)
    assert max(rows.values()) < 1e-5


def test_fp32_follows_pytorch_and_stages_end_with_the_same_bits() -> None:
    found, same = cells(ARCHITECTURES["GPT-2, tied"], "fp32")
    assert float(found[0]) < 1e-6
    assert same is True


@pytest.mark.parametrize("precision", HALVES)
def test_halves_follow_pytorch_within_the_noise_of_rounding(precision: str) -> None:
    found, same = cells(ARCHITECTURES["Mixtral"], precision)
    difference, noise = map(float, found)
    assert noise > 0
    assert difference < noise
    assert same is True
