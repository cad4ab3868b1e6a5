"""The contenders: how each library shards the same model and makes a step of it.

Every one trains with the same AdamW and the same clip, each as its own documentation says. Those that are not installed
are left out. Imports stand inside the functions so that no contender's process pays for another's library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

ADAMW: dict[str, Any] = {"lr": 3e-4, "betas": (0.9, 0.95), "weight_decay": 0.1}
CLIP = 1.0
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


@dataclass(frozen=True)
class Contender:
    """`update` clips, steps and clears the gradients; it returns their global norm before clipping.

    `units`: how many groups of parameters are gathered or reduced at a time, where the library knows such.
    `own_bytes`: device memory that the library took past torch's allocator.
    `trained`: its model and optimizer; of DeepSpeed the engine, which is both.
    `hook_seconds`: what it says its host code has taken so far, in forward and in backward.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], object]
    update: Callable[[], object]
    units: int = 1
    own_bytes: Callable[[], int] = int
    trained: tuple[Any, Any] = (None, None)
    hook_seconds: Callable[[], tuple[float, float]] | None = None


def torch_optimizer(model: nn.Module) -> Contender:
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)

    def update() -> Tensor:
        norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return norm

    return Contender(model, torch.autograd.backward, update)


def alone(model: nn.Module, device: str) -> Contender:
    return torch_optimizer(model)


def ddp(model: nn.Module, device: str) -> Contender:
    torch.distributed.init_process_group(BACKENDS[device])
    return torch_optimizer(nn.parallel.DistributedDataParallel(model))


def fsdp2(model: nn.Module, device: str) -> Contender:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group(BACKENDS[device])
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    for block in model.get_submodule("blocks").children():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return torch_optimizer(model)


def aliquot(model: nn.Module, device: str, *, stage: int) -> Contender:
    import aliquot

    aliquot.init()
    sharded = aliquot.shard(model, stage=stage)
    optimizer = aliquot.AdamW(sharded, **ADAMW, max_grad_norm=CLIP)

    def update() -> Tensor:
        optimizer.step()
        optimizer.zero_grad()
        return optimizer.grad_norm

    return Contender(sharded, torch.autograd.backward, update)


def deepspeed(model: nn.Module, device: str, *, stage: int) -> Contender:
    import deepspeed

    deepspeed.init_distributed(dist_backend=BACKENDS[device])
    config = {
        "train_micro_batch_size_per_gpu": 1,  # only a divisor of the global batch; the loop feeds the windows itself
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": CLIP,
    }
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)

    def update() -> object:
        engine.step()
        return engine.get_global_grad_norm()

    return Contender(engine, engine.backward, update)


CONTENDERS: dict[str, Callable[[nn.Module, str], Contender]] = {
    "alone": alone,
    "ddp": ddp,
    "fsdp2": fsdp2,
    **{f"aliquot-{stage}": partial(aliquot, stage=stage) for stage in (0, 1, 2, 3)},
    **{f"deepspeed-{stage}": partial(deepspeed, stage=stage) for stage in (1, 2, 3)},
}


def installed() -> list[str]:
    missing = {library for library in ("aliquot", "deepspeed") if find_spec(library) is None}
    return [name for name in CONTENDERS if name.split("-")[0] not in missing]
