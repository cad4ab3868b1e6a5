"""The world on GPUs: which device is whose, and bytes of the host beside those of the devices."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from typing import Any

import aliquot
import pytest
import torch
from ranks import FORK, Transport, run_ranks
from torch.distributed import TCPStore

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("two_gpus")]


def describe(rank: int) -> tuple[str, str, int, str]:
    world = aliquot.init()
    return world.transport, str(world.device), torch.cuda.current_device(), world.communicator.name


def test_each_rank_has_the_gpu_of_its_local_rank(transport: Transport) -> None:
    name = transport.name
    expected = [(name, f"cuda:{rank}", rank, name) for rank in range(2)]
    assert run_ranks(2, describe, transport=transport) == expected


def test_gpus_that_map_each_other_do_without_nccl() -> None:
    expected = [("peer", f"cuda:{rank}", rank, "peer") for rank in range(2)]
    assert run_ranks(2, describe, transport=None) == expected


def test_more_ranks_than_gpus_meet_on_the_cpu() -> None:
    ranks = torch.cuda.device_count() + 1
    expected = ("shared_memory", "cpu", 0, "shared_memory")
    assert run_ranks(ranks, describe, transport=None) == [expected] * ranks


def move_bytes(rank: int) -> tuple[bytes, int]:
    communicator = aliquot.init().communicator
    number = torch.tensor([rank + 7], device="cuda")
    communicator.broadcast("a number", number.data_ptr(), number.element_size(), root=1)
    communicator.barrier("moved")
    return communicator.all_gather("names", f"rank {rank};".encode()), int(number)


def test_bytes_of_host_and_device(transport: Transport) -> None:
    assert run_ranks(2, move_bytes, transport=transport) == [(b"rank 0;rank 1;", 8)] * 2


def unique_id_of_torch(rank: int) -> bytes:
    return torch.cuda.nccl.unique_id() if rank == 0 else b""


def unique_id_of_cupy(rank: int) -> tuple[int, ...]:
    nccl = pytest.importorskip("cupy.cuda.nccl")
    return tuple(nccl.get_unique_id()) if rank == 0 else ()


def join_by_unique_id(rank: int, make: Callable[[int], Any], ids: Any) -> str:
    mine = make(rank)
    if rank == 0:
        ids.put(mine)
    return aliquot.init("nccl", timeout=60.0, nccl=mine or ids.get()).communicator.name


@pytest.mark.parametrize("make", [unique_id_of_torch, unique_id_of_cupy])
def test_a_unique_id_from_elsewhere(make: Callable[[int], Any]) -> None:
    if make is unique_id_of_cupy:
        pytest.importorskip("cupy")
    assert run_ranks(2, join_by_unique_id, make, FORK.SimpleQueue(), transport=None) == ["nccl"] * 2


def join_beside_cupy(rank: int) -> tuple[str, list[float]]:
    import cupy
    from cupy.cuda import nccl

    torch.cuda.set_device(rank)
    cupy.cuda.Device(rank).use()
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]) + 1, 2, rank == 0)
    if rank == 0:
        store.set("id", repr(nccl.get_unique_id()))
    theirs = nccl.NcclCommunicator(2, ast.literal_eval(store.get("id").decode()), rank)
    world = aliquot.init("nccl", timeout=60.0, nccl=theirs)
    mine, everyone = cupy.full(1, rank + 1.0, cupy.float32), cupy.empty(2, cupy.float32)
    theirs.allGather(mine.data.ptr, everyone.data.ptr, 1, nccl.NCCL_FLOAT32, cupy.cuda.Stream.null.ptr)
    return world.communicator.name, everyone.get().tolist()


def test_a_communicator_of_cupy_is_split_and_stays_of_use() -> None:
    pytest.importorskip("cupy")
    assert run_ranks(2, join_beside_cupy, transport=None) == [("nccl", [1.0, 2.0])] * 2


def ask_for_a_gpu_that_is_not_there(rank: int) -> str:
    os.environ["LOCAL_RANK"] = "99"
    with pytest.raises(aliquot.DeviceError) as refused:
        aliquot.init("nccl")
    return str(refused.value)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert all("needs GPU 99" in text for text in run_ranks(2, ask_for_a_gpu_that_is_not_there, transport=None))
