from __future__ import annotations

import pytest
import torch


@pytest.fixture
def two_gpus() -> None:
    """Asks NVML, not CUDA: ranks are forked off this process, which must not have started the driver."""
    if (count := torch.cuda.device_count()) < 2:
        pytest.skip(f"needs 2 GPUs, there are {count}")
