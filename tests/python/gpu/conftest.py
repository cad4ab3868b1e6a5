from __future__ import annotations

import pytest
import torch
from ranks import NCCL, PEER, Transport


@pytest.fixture
def one_gpu() -> None:
    """A GPU, which ranks may share: those of nccl play hosts then (ranks.py)."""
    _require(1)


@pytest.fixture
def two_gpus() -> None:
    """A GPU for each of two ranks."""
    _require(2)


def _require(needed: int) -> None:
    """Asks NVML, not CUDA: ranks are forked off this process, which must not have started the driver."""
    if (count := torch.cuda.device_count()) < needed:
        pytest.skip(f"needs {needed} GPUs, there are {count}")


@pytest.fixture(params=[PEER, NCCL], ids=str)
def transport(request: pytest.FixtureRequest) -> Transport:
    """Each transport of GPUs in turn."""
    chosen: Transport = request.param
    return chosen
