"""The contenders in bf16: how each library shards the same model from the meta device and makes a step of it.

Common to all: AdamW (torch's is the fused one), clip 1.0, fp32 optimizer states, no compile, no activation
checkpointing. What is each library's own way of bf16 stands with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from adapters import adapt
from contenders import ADAMW, CLIP, Contender
from llama import SIZES, Llama
from seeded import Seeded, materialise
from torch import Tensor, nn

from gpu.records import FLOOR, Job

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def device_of(job: Job) -> torch.device:
    return torch.device(job.device, int(os.environ["LOCAL_RANK"])) if job.device == "cuda" else torch.device("cpu")


def join(job: Job) -> torch.device:
    """Gloo beside NCCL, which saves behind training need (checkpoints.py)."""
    device = device_of(job)
    on_gpus = {"backend": "cpu:gloo,cuda:nccl", "device_id": device}
    torch.distributed.init_process_group(**(on_gpus if job.device == "cuda" else {"backend": "gloo"}))
    return device


def model_of(job: Job) -> nn.Module:
    model = Llama(SIZES[job.row.size], job.seed)
    return adapt(model, job.row.adapters, job.seed, DTYPES[job.precision]) if job.row.adapters else model


def meta_model(job: Job) -> nn.Module:
    with torch.device("meta"):
        return model_of(job)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def torch_optimizer(forward: Callable[[Tensor], Tensor], model: nn.Module, job: Job, units: int = 1) -> Contender:
    optimizer = torch.optim.AdamW(trained(model), **ADAMW | {"lr": job.lr}, fused=True)

    def update() -> Tensor:
        norm = nn.utils.clip_grad_norm_(trained(model), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return norm

    return Contender(forward, torch.autograd.backward, update, units, trained=(model, optimizer))


def floor(job: Job) -> Contender:
    """Forward and backward alone, in 16 bits, nothing sharded, no optimizer: gradients are dropped."""
    model = materialise(meta_model(job).to(DTYPES[job.precision]), device_of(job))
    return Contender(model, torch.autograd.backward, model.zero_grad)


def ddp(job: Job) -> Contender:
    """fp32 parameters and gradients, autocast: DDP has no master weights of its own."""
    device = join(job)
    model = nn.parallel.DistributedDataParallel(materialise(meta_model(job), device), gradient_as_bucket_view=True)

    def forward(tokens: Tensor) -> Tensor:
        with torch.autocast(job.device, torch.bfloat16, enabled=job.precision == "bf16"):
            logits: Tensor = model(tokens)
        return logits

    return torch_optimizer(forward, model, job)


def fsdp2(job: Job) -> Contender:
    """fp32 shards; gathers in bf16, reduces in fp32; a unit per block and one for the rest; prefetch as by default."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor

    device = join(job)
    mesh = init_device_mesh(job.device, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=DTYPES[job.precision], reduce_dtype=torch.float32)
    model = meta_model(job)
    blocks = list(model.get_submodule("blocks").children())
    for part in (*blocks, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    model.to_empty(device=device)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, Seeded) and isinstance(layer.weight, DTensor):
                weight: Any = layer.weight
                weight.copy_(distribute_tensor(layer.draw(), mesh, weight.placements, src_data_rank=None))
    return torch_optimizer(model, model, job, units=len(blocks) + 1)


def aliquot(job: Job, *, stage: int, transport: str = "auto") -> Contender:
    """bf16 parameters that are the upper half of fp32 masters; gathers in bf16, sums in fp32."""
    import aliquot
    from aliquot.sharded import sharded

    aliquot.init(transport=transport if job.device == "cuda" else "auto")
    precision: dict[str, Any] = {} if job.precision == "fp32" else {"precision": job.precision}
    model = aliquot.shard(meta_model(job), stage=stage, **precision)
    optimizer = aliquot.AdamW(model, **ADAMW | {"lr": job.lr}, max_grad_norm=CLIP)

    def update() -> Tensor:
        optimizer.step()
        optimizer.zero_grad()
        return optimizer.grad_norm

    def arenas() -> int:
        held = aliquot.stats(model).bytes
        if stage >= 2:
            held.pop("grad")  # sharded gradients lie in torch's allocator
        return sum(held.values()) if job.device == "cuda" else 0

    def hooks() -> tuple[float, float]:
        times = aliquot.stats(model).times
        return times["forward"], times["backward"]

    units = len(sharded(model).units)
    return Contender(model, torch.autograd.backward, update, units, arenas, (model, optimizer), hooks)


def _deepspeed(job: Job, *, stage: int) -> Contender:
    from gpu.zero import deepspeed

    return deepspeed(job, stage)


CONTENDERS: dict[str, Callable[[Job], Contender]] = {
    FLOOR: floor,
    "ddp": ddp,
    "fsdp2": fsdp2,
    **{f"aliquot-{stage}": partial(aliquot, stage=stage) for stage in (3, 2, 1, 0)},
    "aliquot-3-nccl": partial(aliquot, stage=3, transport="nccl"),
    **{f"deepspeed-{stage}": partial(_deepspeed, stage=stage) for stage in (3, 2, 1)},
}


def installed() -> tuple[str, ...]:
    missing = {library for library in ("aliquot", "deepspeed") if find_spec(library) is None}
    return tuple(name for name in CONTENDERS if name.split("-")[0] not in missing)
