"""DeepSpeed's ZeRO stages, with torch's fused AdamW so that no operator is compiled while the GPUs wait."""

from __future__ import annotations

from typing import Any

import deepspeed as library
from contenders import ADAMW, BACKENDS, CLIP, Contender
from llama import SIZES
from seeded import Seeded, materialise
from torch import nn

from gpu.contenders import DTYPES, device_of, meta_model, model_of, trained
from gpu.records import Job

NEVER = 10**9


def deepspeed(job: Job, stage: int) -> Contender:
    """bf16 parameters and gradients, fp32 masters made from them; buckets and prefetch as by default."""
    library.init_distributed(dist_backend=BACKENDS[job.device])
    config = _config(job, stage)
    model = _partitioned_from_the_start(job, config) if stage == 3 else _whole(job)
    engine, *_ = library.initialize(model=model, model_parameters=trained(model), config=config)

    def update() -> object:
        engine.step()
        return engine.get_global_grad_norm()

    return Contender(engine, engine.backward, update, SIZES[job.row.size].layers + 1, trained=(engine, None))


def _config(job: Job, stage: int) -> dict[str, Any]:
    adamw = ADAMW | {"lr": job.lr, "torch_adam": True, "fused": True}
    return {
        "train_micro_batch_size_per_gpu": job.row.batch,
        "zero_optimization": {"stage": stage, "overlap_comm": job.device == "cuda", "contiguous_gradients": True},
        "bf16": {"enabled": job.precision == "bf16"},
        "optimizer": {"type": "AdamW", "params": adamw},
        "gradient_clipping": CLIP,
        "steps_per_print": NEVER,
    }


def _whole(job: Job) -> nn.Module:
    return materialise(meta_model(job).to(DTYPES[job.precision]), device_of(job))


def _partitioned_from_the_start(job: Job, config: dict[str, Any]) -> nn.Module:
    with library.zero.Init(config_dict_or_path=config, dtype=DTYPES[job.precision]):
        model = model_of(job)
    for layer in model.modules():
        if isinstance(layer, Seeded):
            with library.zero.GatheredParameters(layer.weight, modifier_rank=0):
                layer.reset_parameters()
    return model
