from __future__ import annotations

import pytest
import torch
from ranks import NCCL, PEER, Transport


@pytest.fixture
def two_gpus() -> None:
    """Asks NVML, not CUDA: ranks are forked off this process, which must not have started the driver."""
    if (count := torch.cuda.device_count()) < 2:
        pytest.skip(f"needs 2 GPUs, there are {count}")


@pytest.fixture(params=[PEER, NCCL], ids=str)
def transport(request: pytest.FixtureRequest) -> Transport:
    """Each transport of GPUs in turn."""
    chosen: Transport = request.param
    return chosen
