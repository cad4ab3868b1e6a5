"""On a machine without GPUs, the world says what transports of GPUs lack, and does without it."""

from __future__ import annotations

from typing import Literal

import aliquot
import pytest
import torch
from aliquot import _core
from ranks import run_ranks

pytestmark = pytest.mark.skipif(torch.cuda.device_count() > 0, reason="tests/python/gpu is for machines with GPUs")


def ask_for(rank: int, transport: Literal["peer", "nccl"]) -> str:
    with pytest.raises(aliquot.DeviceError) as refused:
        aliquot.init(transport)
    return str(refused.value)


@pytest.mark.parametrize("transport", ["peer", "nccl"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_they_are_refused(world_size: int, transport: str) -> None:
    for text in run_ranks(world_size, ask_for, transport, transport=None):
        assert f"the transport {transport} needs GPU" in text


def chosen(rank: int) -> tuple[str, torch.device]:
    world = aliquot.init()
    return world.transport, world.device


def test_auto_stays_on_the_cpu() -> None:
    assert run_ranks(1, chosen, transport=None) == [("thread", torch.device("cpu"))]
    assert run_ranks(2, chosen, transport=None) == [("shared_memory", torch.device("cpu"))] * 2


def test_the_core_refuses_too() -> None:
    with pytest.raises(aliquot.Error):
        _core.nccl_communicator(_core.world_of_one(), 0)
    with pytest.raises(aliquot.Error):
        _core.peer_communicator(_core.world_of_one(), 0)
    assert not _core.can_map_peers(_core.world_of_one(), 0)
