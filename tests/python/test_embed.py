"""The C++ example builds against the installed wheel and trains, to the same bits however its ranks are run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from projects import build, output_of

PROJECT = Path(__file__).parents[2] / "examples" / "cpp" / "embed"


@pytest.fixture(scope="module")
def embed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed")
    build(PROJECT, folder)
    return folder / "embed"


def final_loss(embed: Path, stage: int, ranks_as: str) -> str:
    """As printed, which tells any two numbers apart. The program fails if the loss did not fall to a tenth."""
    output = output_of(embed, "--ranks", "2", "--stage", str(stage), ranks_as)
    (loss,) = re.findall(r"^final loss: (\S+)$", output, re.MULTILINE)
    return str(loss)


def test_stages_threads_and_processes_agree_to_the_bit(embed: Path) -> None:
    losses = {(stage, how): final_loss(embed, stage, how) for stage in (0, 3) for how in ("--threads", "--processes")}
    assert len(set(losses.values())) == 1, losses


def bytes_per_rank(embed: Path, stage: int) -> dict[str, int]:
    (line,) = re.findall(r"^bytes per rank: (.*)$", output_of(embed, "--stage", str(stage)), re.MULTILINE)
    words = line.split()
    return {role: int(count) for role, count in zip(words[::2], words[1::2], strict=True)}


def test_a_rank_holds_its_share(embed: Path) -> None:
    whole, share = bytes_per_rank(embed, 0), bytes_per_rank(embed, 3)
    for role in ("param", "grad", "exp_avg", "exp_avg_sq"):
        assert 2 * share[role] == whole[role]
