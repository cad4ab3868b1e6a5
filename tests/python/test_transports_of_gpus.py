"""On a machine without GPUs, the world says what the transport `nccl` lacks, and does without it."""

from __future__ import annotations

import aliquot
import pytest
import torch
from aliquot import _core
from ranks import run_ranks

pytestmark = pytest.mark.skipif(torch.cuda.device_count() > 0, reason="tests/python/gpu is for machines with GPUs")


def ask_for_nccl(rank: int) -> str:
    with pytest.raises(aliquot.DeviceError) as refused:
        aliquot.init("nccl")
    return str(refused.value)


@pytest.mark.parametrize("world_size", [1, 2])
def test_nccl_is_refused(world_size: int) -> None:
    for text in run_ranks(world_size, ask_for_nccl, transport=None):
        assert "the transport nccl needs GPU" in text


def chosen(rank: int) -> tuple[str, torch.device]:
    world = aliquot.init()
    return world.transport, world.device


def test_auto_stays_on_the_cpu() -> None:
    assert run_ranks(1, chosen, transport=None) == [("thread", torch.device("cpu"))]
    assert run_ranks(2, chosen, transport=None) == [("shared_memory", torch.device("cpu"))] * 2


def test_the_core_refuses_too() -> None:
    with pytest.raises(aliquot.Error):
        _core.nccl_communicator(lambda key, value: None, lambda key: "", "alone", 0, 1, 1.0, 0)
