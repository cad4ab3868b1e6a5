"""Hybrid sharding (HSDP): each group of ranks holds a whole model, and all groups hold the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import aliquot
import pytest
import test_different_paths
import torch
from cases import CASES
from checkpoints import assert_same_content, content_of, everything
from checkpoints import train as train_everything
from models import WIDTH
from ranks import HIERARCHICAL, PROCESS_GROUP, SHARED_MEMORY, SHARED_MEMORY_POISONED, Transport, run_ranks
from refusals import error_of
from torch import Tensor, nn
from training import STAGES, Case, Sharded, Turn, assert_same_bits, assert_same_weights, built, train_both

WORLD_SIZE = 4
STEPS = 5
BETWEEN = (SHARED_MEMORY, PROCESS_GROUP, HIERARCHICAL)
NAMES = ("tied_weights", "accumulate", "accumulate_without_sync", "frozen")


def replicated(name: str, replicas: Any = 2) -> Case:
    return replace(CASES[name], replicas=replicas)


def train(rank: int, case: Case, stage: int) -> dict[str, Tensor]:
    sharded = Sharded(case, stage)
    norms = []
    for step in range(STEPS):
        sharded.step(rank, step)
        norms.append(sharded.optimizer.grad_norm.clone())
    return sharded.weights() | {"norms": torch.stack(norms)}


def train_every_stage(rank: int, case: Case) -> list[dict[str, Tensor]]:
    return [train(rank, case, stage) for stage in STAGES]


@pytest.mark.parametrize("name", ["tied_weights", "accumulate"])
def test_stages_replicas_and_transports_agree_to_the_bit(name: str) -> None:
    jobs = [run_ranks(WORLD_SIZE, train_every_stage, replicated(name), transport=transport) for transport in BETWEEN]
    first, *others = (outcome for job in jobs for of_rank in job for outcome in of_rank)
    for outcome in others:
        assert_same_bits(outcome, first)


@pytest.mark.parametrize("transport", [SHARED_MEMORY_POISONED, HIERARCHICAL], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_like_unsharded(name: str, transport: Transport) -> None:
    case = replicated(name, "hosts" if transport == HIERARCHICAL else 2)
    run_ranks(WORLD_SIZE, train_both, case, 3, WORLD_SIZE, STEPS, transport=transport)


@pytest.mark.parametrize(("world_size", "replicas"), [(2, 2), (3, 3)])
def test_groups_of_one(world_size: int, replicas: int) -> None:
    run_ranks(world_size, train_both, replicated("odd_sizes", replicas), 3, world_size, STEPS)


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("name", test_different_paths.CASES)
def test_ranks_may_take_different_paths(name: str, stage: int) -> None:
    """Units and parameters with a gradient in one group only count as zero in the others."""
    case = replace(test_different_paths.CASES[name], replicas=2)
    run_ranks(WORLD_SIZE, train_both, case, stage, WORLD_SIZE, STEPS)


def optimizers(model: nn.Module) -> dict[str, Callable[[], Any]]:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    return {
        "LAMB": lambda: [aliquot.LAMB(model, lr=1e-2, max_grad_norm=1.0)],
        "TorchOptimizer": lambda: [aliquot.TorchOptimizer(model, torch.optim.NAdam, lr=1e-2, max_grad_norm=1.0)],
        "Muon": lambda: [
            aliquot.Muon(model, params=matrices),
            aliquot.TorchOptimizer(model, torch.optim.SGD, lr=0.1, params=rest),
        ],
    }


def train_with(rank: int, name: str, stage: int, replicas: int, precision: str | None) -> dict[str, Tensor]:
    """Scaled, and clipped by hand or in the step."""
    case = CASES["plain"]
    kept = None if precision is None else aliquot.Precision(precision, master="fp32")  # type: ignore[arg-type]
    model = aliquot.shard(built(case), stage=stage, precision=kept, replicas=replicas)
    made = optimizers(model)[name]()
    scaler = aliquot.GradScaler(made[0], init_scale=1024.0)
    for step in range(STEPS):
        for optimizer in made:
            optimizer.zero_grad()
        loss = (model(Turn(rank, step).normal(4, WIDTH).to(next(model.parameters()).dtype)) ** 2).float().mean()
        scaler.scale(loss).backward()
        aliquot.clip_grad_norm_(model, 0.5)
        for optimizer in made:
            scaler.step(optimizer)
        scaler.update()
    return aliquot.full_state_dict(model, all_ranks=True)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("LAMB", None), ("LAMB", "fp16"), ("TorchOptimizer", None), ("TorchOptimizer", "bf16"), ("Muon", None)],
)
def test_other_optimizers_precisions_and_scaling(name: str, precision: str | None) -> None:
    """As without replicas but for the order of sums, which in 16 bits may round otherwise."""
    expected = run_ranks(WORLD_SIZE, train_with, name, 3, 1, precision)[0]
    outcomes = [o for stage in (1, 3) for o in run_ranks(WORLD_SIZE, train_with, name, stage, 2, precision)]
    for outcome in outcomes:
        assert_same_bits(outcome, outcomes[0])
    assert_same_weights(outcomes[0], expected, tolerance=1e-4 if precision is None and name != "Muon" else 2e-2)


def skip_a_step(rank: int, stage: int) -> dict[str, Tensor]:
    """One rank of one group meets a NaN."""
    sharded = Sharded(replicated("plain"), stage)
    sharded.step(rank, 0)
    before = sharded.weights()
    sharded.optimizer.zero_grad()
    loss = sharded.model(Turn(rank, 1).normal(4, WIDTH)).square().mean()
    (loss * (float("nan") if rank == 3 else 1.0)).backward()
    sharded.optimizer.step()
    assert_same_bits(sharded.weights(), before)
    assert aliquot.stats(sharded.model).skipped == 1
    sharded.step(rank, 2)
    return sharded.weights()


@pytest.mark.parametrize("stage", [0, 3])
def test_all_groups_skip_alike(stage: int) -> None:
    first, *others = run_ranks(WORLD_SIZE, skip_a_step, stage)
    for other in others:
        assert_same_bits(other, first)


def write(rank: int, stage: int) -> dict[str, Tensor]:
    sharded = Sharded(replicated("tied_weights"), stage)
    with aliquot.gathered(sharded.model, write=True), torch.no_grad():
        for parameter in sharded.model.parameters():
            parameter.mul_(rank + 2)  # what rank 0 writes is kept
    doubled = sharded.weights()
    expected = {name: value * 2 for name, value in built(CASES["tied_weights"]).state_dict().items()}
    assert_same_bits(doubled, expected)
    aliquot.load_full_state_dict(sharded.model, {k: v + 1 for k, v in doubled.items()} if rank == 0 else {})
    sharded.step(rank, 0)
    return sharded.weights()


@pytest.mark.parametrize("stage", [1, 3])
def test_all_groups_get_what_rank_0_writes(stage: int) -> None:
    first, *others = run_ranks(WORLD_SIZE, write, stage)
    for other in others:
        assert_same_bits(other, first)


def save(rank: int, directory: Path, replicas: int, accumulating: bool) -> None:
    model, optimizer = everything(3, replicas=replicas)
    train_everything(model, optimizer, rank, range(3))
    if accumulating:
        optimizer.zero_grad()
        model(Turn(rank, 3).tokens(11, 4, 5)).square().mean().backward()
    aliquot.save_checkpoint(directory, model, optimizer, step=3)


def load_and_save(rank: int, source: Path, directory: Path, stage: int, replicas: int) -> None:
    model, optimizer = everything(stage, seed=1, lr=1.0, replicas=replicas)
    train_everything(model, optimizer, rank, range(10, 11))
    aliquot.load_checkpoint(source, model, optimizer)
    aliquot.save_checkpoint(directory, model, optimizer, step=3)


@pytest.mark.parametrize(("saved_by", "accumulating"), [(1, False), (2, True)])
def test_checkpoints_go_from_any_replicas_to_any_other(saved_by: int, accumulating: bool, tmp_path: Path) -> None:
    run_ranks(WORLD_SIZE, save, tmp_path / "source", saved_by, accumulating)
    expected = content_of(tmp_path / "source" / "step_3")
    assert any(key.startswith("grad/") for key in expected["tensors"]) == accumulating
    for world_size, stage, replicas in ((4, 3, 2), (4, 1, 4), (2, 2, 1)):
        target = tmp_path / f"{world_size}_{replicas}_{stage}"
        run_ranks(world_size, load_and_save, tmp_path / "source", target, stage, replicas)
        assert_same_content(content_of(target / "step_3"), expected, but="buffer@")


def fail_once(rank: int, stage: int, failing: int) -> None:
    """One rank gives up before its backward; its group hears of it, and through it the other."""
    failed, spared = Sharded(replicated("plain"), stage), Sharded(replicated("plain"), stage)
    for step in range(4):
        if step in (0, 2):
            failed.optimizer.zero_grad()
            if rank != failing:
                culprit = failing if rank // 2 == failing // 2 else (rank + 2) % 4
                with pytest.raises(aliquot.CommunicatorError, match=f"rank {culprit} gave up the backward pass"):
                    failed.case.run(failed.model, Turn(rank, step + 1000))
            aliquot.reset_step(failed.model)
        failed.step(rank, step)
        spared.step(rank, step)
    assert_same_bits(failed.weights(), spared.weights())


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("failing", [0, 3])
def test_after_reset_step_the_failure_is_forgotten(failing: int, stage: int) -> None:
    run_ranks(WORLD_SIZE, fail_once, stage, failing)


def step_apart(rank: int) -> str:
    sharded = Sharded(replicated("plain"), 3)
    sharded.step(rank, 0)
    if rank < 2:
        sharded.step(rank, 1)
    else:
        sharded.backward(rank, 1)
    with pytest.raises(aliquot.CommunicatorError) as caught:
        sharded.step(rank, 2)
    return str(caught.value)


def walk_through_both(rank: int) -> None:
    one = aliquot.shard(nn.Linear(3, 3))
    other = aliquot.shard(nn.Linear(3, 3), replicas=2)
    with pytest.raises(aliquot.Error, match=r"comes within that of Linear.*not the same replicas="):
        (one(torch.ones(2, 3)).sum() + other(torch.ones(2, 3)).sum()).backward()
    for model in (one, other):
        aliquot.reset_step(model)
    for model in (one, other):
        model(torch.ones(2, 3)).sum().backward()


def test_one_backward_through_other_replicas_is_refused() -> None:
    """Ranks could wait for each other forever."""
    run_ranks(WORLD_SIZE, walk_through_both)


@pytest.mark.parametrize("transport", BETWEEN, ids=str)
def test_groups_that_step_apart_are_told(transport: Transport) -> None:
    for rank, text in enumerate(run_ranks(WORLD_SIZE, step_apart, transport=transport)):
        for part in ("gradients of step 2", "gradients of step 1", f"rank {rank % 2} ", f"rank {rank % 2 + 2} "):
            assert part in text


def refusal(rank: int, replicas: Any) -> str:
    return str(error_of(lambda: aliquot.shard(nn.Linear(3, 3), replicas=replicas)))


@pytest.mark.parametrize(
    ("world_size", "replicas", "expected"),
    [
        (3, 2, "replicas is 2, and 3 ranks make no 2 groups of one size"),
        (2, 4, "replicas is 4, and 2 ranks make no 4 groups of one size"),
        (2, 0, "replicas is 0; it is the number of groups of ranks"),
        (2, "rank", "replicas is 'rank'; it is the number of groups of ranks"),
        (2, True, "replicas is True"),
    ],
)
def test_mistakes(world_size: int, replicas: Any, expected: str) -> None:
    for text in run_ranks(world_size, refusal, replicas):
        assert expected in text


def differ(rank: int) -> str:
    return refusal(rank, 1 + rank // 2)


def test_ranks_that_want_different_replicas_are_told() -> None:
    for text in run_ranks(WORLD_SIZE, differ):
        assert "rank 0 has '1 replicas', rank 2 has '2 replicas'" in text


def lopsided(rank: int) -> str:
    os.environ["ALIQUOT_HOST_ID"] = "a" if rank == 0 else "b"
    assert aliquot.init().transport == "process_group"
    return refusal(rank, "hosts")


def test_hosts_with_different_numbers_of_ranks() -> None:
    for text in run_ranks(3, lopsided, transport=None):
        assert "as many ranks on each host, neighbours in the order of ranks; they are on ['a', 'b', 'b']" in text


def count_sent(rank: int) -> tuple[int, int]:
    """Bytes that a step sends to other hosts, and those of the parameters."""
    from aliquot.process_group import ProcessGroup

    sent = 0
    all_gather, all_to_all = ProcessGroup.all_gather, ProcessGroup.all_to_all

    def count_gather(self: ProcessGroup, part: memoryview, whole: memoryview) -> None:
        nonlocal sent
        sent += part.nbytes * (self.world_size - 1)
        all_gather(self, part, whole)

    def count_exchange(self: ProcessGroup, input: memoryview, output: memoryview) -> None:  # noqa: A002
        nonlocal sent
        sent += input.nbytes // self.world_size * (self.world_size - 1)
        all_to_all(self, input, output)

    sharded = Sharded(replace(CASES["plain"], build=partial(nn.Linear, 256, 256), run=linear, replicas="hosts"), 3)
    ProcessGroup.all_gather, ProcessGroup.all_to_all = count_gather, count_exchange  # type: ignore[method-assign]
    sharded.step(rank, 0)
    return sent, sum(4 * p.numel() for p in sharded.model.parameters())


def linear(model: nn.Module, turn: Turn) -> Tensor:
    loss = model(turn.normal(4, 256)).square().mean()
    loss.backward()
    return loss.detach()


def test_only_gradient_shards_cross_between_hosts() -> None:
    for sent, parameters in run_ranks(WORLD_SIZE, count_sent, transport=HIERARCHICAL):
        assert parameters / 2 <= sent < parameters / 2 + 4096, (
            "a shard is half of the parameters; and what is agreed on"
        )
