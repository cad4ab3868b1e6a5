"""Checkpoints on GPUs: to and from CPUs, any stage, and resumed runs, bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import assert_same_content, content_of
from ranks import NCCL, NCCL_POISONED, PEER, SHARED_MEMORY, Transport, run_ranks
from test_checkpoint_optimizers import go_on
from test_checkpoint_resume import PRECISIONS, cut_off_and_resume
from test_checkpoint_worlds import load_and_save, save
from training import STAGES

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_gpu")]


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("transport", [PEER, NCCL_POISONED], ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_resumes(precision: str, transport: Transport, wait: bool, tmp_path: Path) -> None:
    for stage in STAGES:
        run_ranks(
            2, cut_off_and_resume, tmp_path / str(stage), stage, PRECISIONS[precision], [5, 12], wait,
            transport=transport, timeout=240.0,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["AdamW in groups", "LAMB", "Muon and AdamW", "SGD", "fused AdamW"])
def test_optimizers(name: str, tmp_path: Path) -> None:
    run_ranks(2, go_on, tmp_path, name, 3, transport=PEER, timeout=240.0)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("transport", [PEER, NCCL], ids=str)
def test_from_gpus_to_cpus_and_back(transport: Transport, stage: int, tmp_path: Path) -> None:
    run_ranks(2, save, tmp_path / "gpus", stage, "bf16", transport=transport, timeout=240.0)
    expected = content_of(tmp_path / "gpus" / "step_3")
    sources = [tmp_path / "gpus"]
    run_ranks(3, load_and_save, sources, tmp_path / "cpus", 3, "bf16", transport=SHARED_MEMORY)
    assert_same_content(content_of(tmp_path / "cpus" / "gpus" / "step_3"), expected, but="buffer@")
    sources = [tmp_path / "cpus" / "gpus"]
    run_ranks(2, load_and_save, sources, tmp_path / "again", 3 - stage, "bf16", transport=transport, timeout=240.0)
    assert_same_content(content_of(tmp_path / "again" / "gpus" / "step_3"), expected, but="buffer@")
