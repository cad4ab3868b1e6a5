"""Models that people train, against unsharded PyTorch on the same global batch.

`python -m pytest tests/python/test_architectures.py --table docs/models.md` writes which of them train, at what stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import aliquot
import pytest
from architectures import ARCHITECTURES
from model_table import ON_CPUS, ON_GPUS, Page, committed_rows, parameters
from ranks import SHARED_MEMORY, SHARED_MEMORY_POISONED, Transport, run_ranks
from torch import nn
from training import STAGES, Case, Reference, Sharded, assert_same_weights, relative_error

WORLD_SIZE = 2
STEPS = 4
TOLERANCE = 1e-6
STEADY: Mapping[str, Any] = {"eps": 1e-4}
"""Where a gradient is nothing but rounding noise (the bias of attention's keys), AdamW would divide noise by noise."""


def train_both(rank: int, case: Case, stage: int) -> None:
    sharded, reference = Sharded(case, stage, **STEADY), Reference(case, WORLD_SIZE, **STEADY)
    for step in range(STEPS):
        seen, expected = sharded.step(rank, step), reference.step(step)[rank]
        assert relative_error(seen, expected) < TOLERANCE, f"step {step}: {seen} instead of {expected}"
    assert_same_weights(sharded.weights(), reference.weights(rank), TOLERANCE)


WAYS = [*((stage, SHARED_MEMORY) for stage in STAGES), (3, SHARED_MEMORY_POISONED)]
"""At stage 3 also with slots, as on GPUs."""


@pytest.mark.parametrize(("stage", "transport"), WAYS, ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_trains_like_unsharded(name: str, stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, train_both, ARCHITECTURES[name], stage, transport=transport)


def with_checkpoints(name: str, use_reentrant: bool) -> nn.Module:
    model: Any = ARCHITECTURES[name].build()
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    return model.train()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("stage", "transport"), [(1, SHARED_MEMORY), (3, SHARED_MEMORY_POISONED)], ids=str)
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", ["Llama", "T5, shared embedding", "BERT"])
def test_trains_with_the_checkpoints_of_transformers(
    name: str, use_reentrant: bool, stage: int, transport: Transport
) -> None:
    case = Case(partial(with_checkpoints, name, use_reentrant), ARCHITECTURES[name].run)
    run_ranks(WORLD_SIZE, train_both, case, stage, transport=transport)


@pytest.mark.parametrize(("file", "page"), [("models.md", ON_CPUS), ("models_on_gpus.md", ON_GPUS)])
def test_the_tables_in_the_docs_are_of_these_models(file: str, page: Page) -> None:
    table = Path(__file__).parents[2] / "docs" / file
    assert committed_rows(table.read_text(), page) == {name: parameters(case) for name, case in ARCHITECTURES.items()}


def bytes_of_adapters(rank: int, stage: int) -> tuple[int, dict[str, int], set[str]]:
    sharded = Sharded(ARCHITECTURES["LoRA on Llama"], stage)
    model: nn.Module = sharded.model
    sharded.backward(rank, 0)
    with_gradient = {name for name, param in model.named_parameters() if param.grad is not None}
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    assert with_gradient == trained
    sharded.optimizer.step()
    numel = sum(param.numel() for param in model.parameters() if param.requires_grad)
    return numel, aliquot.stats(model).bytes, trained


@pytest.mark.parametrize("stage", STAGES)
def test_a_frozen_base_takes_no_bytes_of_gradients_and_optimizer(stage: int) -> None:
    """Every adapter starts at a multiple of 16 numbers, and every shard of a unit has such a length."""
    padding = 16 * WORLD_SIZE
    for numel, sizes, trained in run_ranks(WORLD_SIZE, bytes_of_adapters, stage):
        assert all("lora_" in name for name in trained)
        most = 4 * (numel + padding * (len(trained) + 2))
        for role, from_stage in (("exp_avg", 1), ("exp_avg_sq", 1), ("grad", 2)):
            share = WORLD_SIZE if stage >= from_stage else 1
            assert 4 * numel / share <= sizes[role] <= most / share, (role, sizes)
        assert sizes["param"] > 10 * sizes["exp_avg"]
