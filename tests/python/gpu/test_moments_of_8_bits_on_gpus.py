"""8-bit moments on GPUs: the scheme of the paper, stages, skipped steps, checkpoints to and from CPUs, and a graph."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import PEER, SHARED_MEMORY, Transport, run_ranks
from test_graph import compare
from test_moments_of_8_bits import (
    PRECISIONS,
    WORLD_SIZE,
    assert_stages_agree,
    assert_states_near,
    follow_the_paper,
    go_on,
    save,
    skip,
)
from training import STAGES, assert_same_bits

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_gpu")]


@pytest.mark.parametrize("stage", [0, 3])
def test_steps_as_the_paper_says(stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, follow_the_paper, stage, WORLD_SIZE, transport=transport)


@pytest.mark.parametrize("precision", [None, *PRECISIONS])
def test_weights_codes_and_scales_are_alike_at_all_stages(precision: str | None, transport: Transport) -> None:
    assert_stages_agree(transport, "wide", None if precision is None else PRECISIONS[precision])


@pytest.mark.parametrize("stage", STAGES)
def test_a_skipped_step_leaves_codes_and_scales(stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, skip, stage, "bf16", transport=transport)


def test_checkpoints_go_to_cpus_and_back(transport: Transport, tmp_path: Path) -> None:
    saved = run_ranks(WORLD_SIZE, save, tmp_path / "from", 3, 8, True, transport=transport)
    run_ranks(WORLD_SIZE, go_on, tmp_path / "from", 1, 8, tmp_path / "cpus", transport=SHARED_MEMORY)
    assert_states_near(tmp_path / "cpus", tmp_path / "from", 0)
    resumed = run_ranks(WORLD_SIZE, go_on, tmp_path / "cpus", 0, 8, tmp_path / "again", transport=transport)
    for (_, weights), (_, expected) in zip(resumed, saved, strict=True):
        assert_same_bits(weights, expected)


@pytest.mark.parametrize("transport", [PEER], ids=str)
@pytest.mark.parametrize("stage", [0, 3])
def test_a_captured_step_gives_the_same_bits(stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, compare, stage, "bf16", 5, 8, transport=transport)
