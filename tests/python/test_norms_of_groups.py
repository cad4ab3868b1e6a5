"""Norms of some of the gradients: measured, clipped to, and each parameter group by its own, beside torch's."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import aliquot
import pytest
import torch
from cases import plain, square_loss
from models import Chain
from ranks import PROCESS_GROUP, SHARED_MEMORY, TRANSPORTS, Transport, run_ranks
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from training import STAGES, Case, Reference, Turn, assert_same_bits, assert_same_weights, built

WORLD_SIZE = 2
STEPS = 4
LR = 1e-2
CASE = Case(Chain, plain)
MAX_NORMS = (0.05, 0.02)
MAKE: dict[str, tuple[Any, Any]] = {
    "AdamW": (aliquot.AdamW, torch.optim.AdamW),
    "TorchOptimizer": (partial(aliquot.TorchOptimizer, optimizer=torch.optim.SGD), torch.optim.SGD),
}


def halves(model: nn.Module) -> list[list[nn.Parameter]]:
    """Biases and norms, and the rest: every unit has some of either."""
    params = list(model.parameters())
    return [[p for p in params if p.dim() < 2], [p for p in params if p.dim() >= 2]]


def same(seen: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(seen.float(), expected, rtol=1e-6, atol=0.0)


def clip_by_hand(rank: int, stage: int) -> None:
    model: Any = aliquot.shard(built(CASE), stage=stage)
    reference = Reference(CASE, WORLD_SIZE)
    optimizer = aliquot.AdamW(model, lr=LR)
    wholes = [torch.optim.AdamW(replica.parameters(), lr=LR) for replica in reference.replicas]
    for step in range(STEPS):
        optimizer.zero_grad()
        CASE.run(model, Turn(rank, step))
        reference.backward(step)
        for mine, *theirs in zip(halves(model), *map(halves, reference.replicas), strict=True):
            for max_norm in (math.inf, MAX_NORMS[0], MAX_NORMS[0]):
                seen = aliquot.clip_grad_norm_(mine, max_norm)
                for params in theirs:
                    expected = clip_grad_norm_(params, max_norm)
                same(seen, expected)
        same(
            aliquot.clip_grad_norm_(model.blocks[0].parameters(), 1e-3),
            clip_grad_norm_(reference.replicas[0].blocks[0].parameters(), 1e-3),
        )
        clip_grad_norm_(reference.replicas[1].blocks[0].parameters(), 1e-3)
        same(aliquot.clip_grad_norm_(model.last.weight, 1e-3), clip_grad_norm_(reference.replicas[0].last.weight, 1e-3))
        clip_grad_norm_(reference.replicas[1].last.weight, 1e-3)
        same(aliquot.clip_grad_norm_(model, math.inf), clip_grad_norm_(reference.replicas[0].parameters(), math.inf))
        optimizer.step()
        for whole in wholes:
            whole.step()
    assert_same_weights(aliquot.full_state_dict(model, all_ranks=True), reference.weights())


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_clipping_some_parameters(stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, clip_by_hand, stage, transport=transport)


def train(rank: int, stage: int, kind: str, max_norm: float | None, replicas: int = 1) -> dict[str, Tensor]:
    """The second group clips only where it is told to; all are clipped by what is left, if told so."""
    make, make_whole = MAKE[kind]
    model: Any = aliquot.shard(built(CASE), stage=stage, replicas=replicas)
    reference = Reference(CASE, WORLD_SIZE * replicas)
    groups = [{"params": params, "max_grad_norm": own} for params, own in zip(halves(model), MAX_NORMS, strict=True)]
    optimizer = make(model, params=groups, lr=LR, max_grad_norm=max_norm)
    wholes = [make_whole([{"params": half} for half in halves(r)], lr=LR) for r in reference.replicas]
    for step in range(STEPS):
        if step == STEPS - 1:
            optimizer.param_groups[1]["max_grad_norm"] = None
        optimizer.zero_grad()
        CASE.run(model, Turn(rank, step))
        optimizer.step()
        reference.backward(step)
        total = clip_grad_norm_(reference.replicas[0].parameters(), math.inf)
        for replica, whole in zip(reference.replicas, wholes, strict=True):
            own = [MAX_NORMS[0], math.inf if step == STEPS - 1 else MAX_NORMS[1]]
            norms = [clip_grad_norm_(half, limit) for half, limit in zip(halves(replica), own, strict=True)]
            clip_grad_norm_(replica.parameters(), math.inf if max_norm is None else max_norm)
            whole.step()
        same(optimizer.grad_norms, torch.stack(norms))
        same(optimizer.grad_norm, total)
    weights = aliquot.full_state_dict(model, all_ranks=True)
    assert_same_weights(weights, reference.weights(), tolerance=2e-6)
    return weights


@pytest.mark.parametrize("max_norm", [None, 0.03])
@pytest.mark.parametrize("kind", MAKE)
def test_groups_that_clip_by_their_own_norm(kind: str, max_norm: float | None) -> None:
    jobs = [run_ranks(WORLD_SIZE, train, stage, kind, max_norm) for stage in STAGES]
    jobs += [run_ranks(WORLD_SIZE, train, 3, kind, max_norm, transport=PROCESS_GROUP)]
    for weights in (weights for job in jobs for weights in job):
        assert_same_bits(weights, jobs[0][0])


def test_groups_in_replicas() -> None:
    run_ranks(2 * WORLD_SIZE, train, 3, "AdamW", 0.03, 2)


def unscaled(rank: int) -> None:
    """Norms are of gradients without the loss scale, and a scale that is a power of 2 changes no bit."""
    outcomes = []
    for scale in (1.0, 1024.0):
        model: Any = aliquot.shard(built(CASE))
        groups = [{"params": params, "max_grad_norm": 0.05} for params in halves(model)]
        optimizer = aliquot.AdamW(model, params=groups, lr=LR)
        scaler = aliquot.GradScaler(optimizer, init_scale=scale, growth_interval=None)
        for step in range(STEPS):
            optimizer.zero_grad()
            scaler.scale(square_loss(model, Turn(rank, step))).backward()
            scaler.step(optimizer)
            scaler.update()
        outcomes.append(aliquot.full_state_dict(model, all_ranks=True) | {"norms": optimizer.grad_norms})
    assert_same_bits(*outcomes)


def test_a_loss_scale_changes_nothing() -> None:
    run_ranks(WORLD_SIZE, unscaled)


def spoil(rank: int, stage: int) -> None:
    """One group's gradient is not finite: nothing is changed in either, and the norms say which it was."""
    model: Any = aliquot.shard(built(CASE), stage=stage)
    vectors, matrices = halves(model)
    groups = [{"params": vectors, "max_grad_norm": 1e-3}, {"params": matrices, "max_grad_norm": math.inf}]
    optimizer = aliquot.AdamW(model, params=groups, lr=LR)
    before = aliquot.full_state_dict(model, all_ranks=True)
    if rank == 1:
        handle = model.last.bias.register_hook(lambda gradient: gradient * math.nan)
    CASE.run(model, Turn(rank, 0))
    assert aliquot.clip_grad_norm_(vectors, 1e-3).isnan()
    assert aliquot.clip_grad_norm_(matrices, 1e9).isfinite()
    optimizer.step()
    assert optimizer.grad_norms.isnan().tolist() == [True, False]
    assert optimizer.grad_norm.isnan()
    assert_same_bits(aliquot.full_state_dict(model, all_ranks=True), before)
    if rank == 1:
        handle.remove()
    optimizer.zero_grad()
    CASE.run(model, Turn(rank, 1))
    optimizer.step()
    assert optimizer.grad_norms.isfinite().all()


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite(stage: int) -> None:
    run_ranks(WORLD_SIZE, spoil, stage)


def resume(rank: int, folder: Any) -> None:
    model: Any = aliquot.shard(built(CASE))
    limits = [0.5, math.inf]
    groups = [{"params": params, "max_grad_norm": own} for params, own in zip(halves(model), limits, strict=True)]
    optimizer = aliquot.AdamW(model, params=groups)
    aliquot.save_checkpoint(folder, model, optimizer, step=1)
    for group in optimizer.param_groups:
        group["max_grad_norm"] = 7.0
    aliquot.load_checkpoint(folder, model, optimizer)
    assert [group["max_grad_norm"] for group in optimizer.param_groups] == limits


def test_what_groups_clip_to_is_in_checkpoints(tmp_path: Any) -> None:
    run_ranks(WORLD_SIZE, resume, tmp_path, transport=SHARED_MEMORY)


def refuse(rank: int) -> None:
    model: Any = aliquot.shard(built(CASE))
    other: Any = aliquot.shard(built(CASE))
    optimizer = aliquot.AdamW(model, params=model.blocks.parameters())
    with pytest.raises(aliquot.Error, match="norms of groups are measured where"):
        _ = optimizer.grad_norms
    with pytest.raises(aliquot.InvalidArgument, match="max_grad_norm is 0"):
        optimizer.add_param_group({"params": model.last.parameters(), "max_grad_norm": 0.0})
    with pytest.raises(aliquot.InvalidArgument, match="parameters of one model at a time"):
        aliquot.clip_grad_norm_([model.last.weight, other.last.weight], 1.0)
    with pytest.raises(aliquot.InvalidArgument, match="takes a sharded model, or parameters of one"):
        aliquot.clip_grad_norm_([nn.Parameter(torch.ones(2))], 1.0)
    assert aliquot.clip_grad_norm_([], 1.0) == 0
    CASE.run(model, Turn(rank, 0))
    with pytest.raises(aliquot.Error, match=r"aliquot\.clip_grad_norm_"):
        clip_grad_norm_(model.last.parameters(), 1.0)


def test_what_has_no_norm_is_refused() -> None:
    run_ranks(WORLD_SIZE, refuse)


def clip_to_nonsense(rank: int) -> None:
    model: Any = aliquot.shard(built(CASE))
    one, other = halves(model)
    optimizer = aliquot.AdamW(model, params=[{"params": one}, {"params": other}], lr=LR)
    CASE.run(model, Turn(rank, 0))
    before = aliquot.clip_grad_norm_(model, math.inf)
    for wrong in (-1.0, math.nan, "1", None):
        with pytest.raises(aliquot.InvalidArgument, match="max_norm is"):
            aliquot.clip_grad_norm_(model, wrong)  # type: ignore[arg-type]
        with pytest.raises(aliquot.InvalidArgument, match="max_norm is"):
            aliquot.clip_grad_norm_(one, wrong)  # type: ignore[arg-type]
    optimizer.param_groups[0]["max_grad_norm"] = 1e-3
    for key, value in (("max_grad_norm", -1e-3), ("max_grad_norm", math.nan), ("max_grad_norm", 0.0), ("lr", -1.0)):
        kept = optimizer.param_groups[1].get(key)
        optimizer.param_groups[1][key] = value
        with pytest.raises(aliquot.InvalidArgument, match=key):
            optimizer.step()
        optimizer.param_groups[1][key] = kept
    assert aliquot.clip_grad_norm_(model, math.inf) == before


def test_nonsense_is_refused_before_anything_is_scaled() -> None:
    run_ranks(WORLD_SIZE, clip_to_nonsense)


def clip_other_parameters(rank: int) -> None:
    model: Any = aliquot.shard(built(CASE))
    optimizer = aliquot.AdamW(model, lr=LR)
    optimizer.param_groups[0]["max_grad_norm"] = 1.0 + rank
    CASE.run(model, Turn(rank, 0))
    with pytest.raises(aliquot.CommunicatorError, match=r"clip differently: rank 0 has 'blocks\.0"):
        aliquot.clip_grad_norm_(model.blocks[rank].parameters(), 1.0)
    with pytest.raises(aliquot.CommunicatorError, match=r"to 1\.0', rank 1 has .* to 2\.0'"):
        optimizer.step()


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_ranks_that_clip_differently_are_told(transport: Transport) -> None:
    run_ranks(WORLD_SIZE, clip_other_parameters, transport=transport)
