"""Muon over shards: every precision, groups and schedules, AdamW for the rest, skipped steps, who does how much."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import aliquot
import pytest
import torch
from cases import CASES, square_loss
from models import Chain, LanguageModel
from ranks import PROCESS_GROUP, SHARED_MEMORY, TRANSPORTS, Transport, run_ranks
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from training import STAGES, Case, Reference, Turn, assert_same_bits, assert_same_weights, built

WORLD_SIZE = 2
STEPS = 6
CASE = Case(Chain, square_loss)
NEAR = 2e-3
"""Newton-Schulz is in bf16, and each run adds up in its own order."""
SPLIT, PLAIN = aliquot.Precision("bf16"), aliquot.Precision("bf16", master="fp32")


def halves(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices inside, and the rest: vectors, and the first and last layer whole."""
    inside = [p for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("blocks")]
    return inside, [p for p in model.parameters() if all(p is not other for other in inside)]


def with_rest(model: nn.Module, **settings: Any) -> aliquot.Muon:
    matrices, rest = halves(model)
    groups = [{"params": matrices, "lr": 0.02}, {"params": rest, "use_muon": False} | settings]
    return aliquot.Muon(model, params=groups)


def by_torch(model: nn.Module, lr: float, **settings: Any) -> list[torch.optim.Optimizer]:
    matrices, rest = halves(model)
    return [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=lr, **settings)]


def train_with_rest(rank: int, case_name: str, stage: int) -> dict[str, Tensor]:
    case = CASES[case_name]
    model: Any = aliquot.shard(built(case), stage=stage, units=case.units)
    reference = Reference(case, WORLD_SIZE)
    mine = with_rest(model, lr=1e-2, weight_decay=0.05)
    wholes = [by_torch(r, lr=1e-2, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.05) for r in reference.replicas]
    for step in range(STEPS):
        mine.zero_grad()
        case.run(model, Turn(rank, step, no_sync=aliquot.no_sync))
        mine.step()
        for replica in reference.replicas:
            replica.zero_grad()
        reference.backward(step)
        for optimizers in wholes:
            for optimizer in optimizers:
                optimizer.step()
    weights = aliquot.full_state_dict(model, all_ranks=True)
    assert_same_weights(weights, reference.weights(), tolerance=NEAR)
    return weights


@pytest.mark.parametrize("stage", STAGES)
def test_steps_the_rest_by_adamw(stage: int) -> None:
    first, second = run_ranks(WORLD_SIZE, train_with_rest, "plain", stage)
    assert_same_bits(first, second)


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("case", ["tied_weights", "frozen", "blocks_in_some_steps"])
def test_where_some_parameters_have_no_gradient(case: str, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, train_with_rest, case, 3, transport=transport)


def masters_by_hand(rank: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """A 16-bit model of torch's whose fp32 masters torch.optim.Muon steps."""
    replicas = [built(CASE).to(dtype) for _ in range(WORLD_SIZE)]
    masters = [nn.Parameter(param.detach().clone()) for param in built(CASE).parameters()]
    matrices = [master for master, (name, _) in zip(masters, built(CASE).named_parameters(), strict=True)
                if master.dim() == 2 and name.startswith("blocks")]  # fmt: skip
    rest = [master for master in masters if all(master is not other for other in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02),
        torch.optim.AdamW(rest, lr=3e-4, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0),
    ]
    for step in range(STEPS):
        for number, replica in enumerate(replicas):
            replica.zero_grad()
            square_loss(Cast(replica, dtype), Turn(number, step)).backward()
        for master, *params in zip(masters, *(replica.parameters() for replica in replicas), strict=True):
            gradients = [param.grad.float() for param in params if param.grad is not None]
            master.grad = torch.stack(gradients).sum(0) / WORLD_SIZE
        for optimizer in optimizers:
            optimizer.step()
        for replica in replicas:
            for param, master in zip(replica.parameters(), masters, strict=True):
                param.data.copy_(master)
    return replicas[0].state_dict()


class Cast(nn.Module):
    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model(x.to(self.dtype))
        return result


def train_in_16_bits(rank: int, stage: int, precision: aliquot.Precision) -> dict[str, Tensor]:
    model: Any = aliquot.shard(built(CASE), stage=stage, precision=precision)
    optimizer = with_rest(model)
    for step in range(STEPS):
        optimizer.zero_grad()
        square_loss(model, Turn(rank, step)).backward()
        optimizer.step()
    weights = aliquot.full_state_dict(model, all_ranks=True)
    dtype = next(iter(weights.values())).dtype
    assert_same_weights(weights, masters_by_hand(rank, dtype), tolerance=2e-2)
    return weights


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_16_bits_with_either_master(stage: int) -> None:
    """The masters are the same numbers, so the parameters are, where no master lies in the middle of two."""
    split, plain = (run_ranks(WORLD_SIZE, train_in_16_bits, stage, precision)[0] for precision in (SPLIT, PLAIN))
    assert_same_bits(split, plain)
    run_ranks(WORLD_SIZE, train_in_16_bits, stage, aliquot.Precision("fp16"), transport=PROCESS_GROUP)


def skip(rank: int, precision: Any, stage: int) -> None:
    """Two models, of which one has a bad step: it changes nothing, and what follows is the same to the bit."""
    models = [aliquot.shard(built(CASE), stage=stage, precision=precision) for _ in range(2)]
    optimizers = [with_rest(model) for model in models]
    for step in range(STEPS):
        for model, optimizer in zip(models, optimizers, strict=True):
            for bad in (True, False) if model is models[0] and step in (0, 3) else (False,):
                before = aliquot.full_state_dict(model, all_ranks=True)
                optimizer.zero_grad()
                loss = square_loss(model, Turn(rank, step)).float()
                (loss * (math.nan if bad and rank == 1 else 1.0)).backward()
                optimizer.step()
                same = all(
                    torch.equal(value, before[name])
                    for name, value in aliquot.full_state_dict(model, all_ranks=True).items()
                )
                assert same == bad == bool(optimizer.grad_norm.isnan())
    first, second = (aliquot.full_state_dict(model, all_ranks=True) for model in models)
    assert_same_bits(first, second)
    kept = [list(optimizer.states()) for optimizer in optimizers]
    assert all(torch.equal(one.value, other.value) for one, other in zip(*kept, strict=True))


@pytest.mark.parametrize("precision", [None, SPLIT, PLAIN, aliquot.Precision("fp16")], ids=str)
@pytest.mark.parametrize("stage", [1, 3])
def test_a_skipped_step_leaves_everything_as_it_was(stage: int, precision: Any) -> None:
    run_ranks(WORLD_SIZE, skip, precision, stage)


def scheduled(rank: int, stage: int) -> None:
    """Two groups of matrices with rates and decays of their own, one of which comes later, and a schedule."""
    model: Any = aliquot.shard(built(CASE), stage=stage)
    reference = Reference(CASE, WORLD_SIZE)

    def made(one: Any, muon: Callable[..., Any]) -> tuple[Any, Any]:
        up = [block.up.weight for block in one.blocks]
        optimizer = muon(params=[{"params": up, "lr": 0.02, "weight_decay": 0.3}])
        return optimizer, LambdaLR(optimizer, lambda step: 1.0 / (1 + step))

    mine = made(model, partial(aliquot.Muon, model))
    wholes = [made(replica, torch.optim.Muon) for replica in reference.replicas]
    for step in range(STEPS):
        if step == 2:
            for one, (optimizer, _) in zip([model, *reference.replicas], [mine, *wholes], strict=True):
                down = [block.down.weight for block in one.blocks]
                group = {"params": down, "lr": 0.05, "weight_decay": 0.0, "momentum": 0.5, "nesterov": False}
                optimizer.add_param_group(group | {"initial_lr": 0.05})
        model.zero_grad(), mine[0].zero_grad()
        square_loss(model, Turn(rank, step)).backward()
        for number, replica in enumerate(reference.replicas):
            replica.zero_grad()
            square_loss(replica, Turn(number, step)).backward()
        for params in zip(*(replica.parameters() for replica in reference.replicas), strict=True):
            mean = torch.stack([param.grad for param in params]).mean(0)
            for param in params:
                param.grad = mean.clone()
        for optimizer, scheduler in (mine, *wholes):
            optimizer.step()
            if step < 1:  # a schedule of torch's knows the groups that there were when it was made
                scheduler.step()
    assert mine[0].param_groups[0]["lr"] == wholes[0][0].param_groups[0]["lr"] == 0.01
    assert_same_weights(aliquot.full_state_dict(model, all_ranks=True), reference.weights(), tolerance=NEAR)


@pytest.mark.parametrize(("stage", "transport"), [(1, SHARED_MEMORY), (3, SHARED_MEMORY), (3, PROCESS_GROUP)], ids=str)
def test_groups_schedules_and_groups_that_come_later(stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, scheduled, stage, transport=transport)


class Transformer(nn.Module):
    """Matrices of the shapes of two language models, among parameters that are none."""

    def __init__(self, width: int, hidden: int, depth: int) -> None:
        super().__init__()
        shapes = [(width, width)] * 4 + [(width, hidden)] * 2 + [(hidden, width)]
        self.blocks = nn.ModuleList(
            nn.ModuleList([*(nn.Linear(*shape, bias=False) for shape in shapes), nn.LayerNorm(width)])
            for _ in range(depth)
        )


def shares(rank: int, width: int, hidden: int, depth: int) -> list[list[int]]:
    """What each rank has to do: in each unit, and in all."""
    root = Transformer(width, hidden, depth)
    model: Any = aliquot.shard(root, units=list(root.blocks))
    matrices = [param for param in model.parameters() if param.dim() == 2]
    optimizer = aliquot.Muon(model, params=matrices)
    assert len(optimizer._owners) == len(matrices)
    found = []
    for unit in [*model._aliquot.units, None]:
        share = [0] * model._aliquot.world.world_size
        for place, owner in optimizer._owners.items():
            if unit in (place.unit, None):
                share[owner] += place.shape.numel() * min(place.shape)
        found.append(share)
    return found


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize(("width", "hidden", "depth"), [(8, 32, 4), (6, 16, 5)])
def test_ranks_have_about_the_same_to_do(width: int, hidden: int, depth: int, world_size: int) -> None:
    """No order of matrices by size is further from the best than by a third (Graham, 1969)."""
    jobs = run_ranks(world_size, shares, width, hidden, depth)
    assert all(job == jobs[0] for job in jobs)
    *units, in_all = jobs[0]
    largest = max(width * width * width, width * width * hidden)
    for share in filter(any, units):
        assert max(share) <= 4 / 3 * max(sum(share) / world_size, largest)
    assert max(in_all) <= 4 / 3 * sum(in_all) / world_size


def resume(rank: int, folder: Path, precision: Any) -> None:
    def steps(model: Any, optimizer: aliquot.Muon, first: int, last: int) -> dict[str, Tensor]:
        for step in range(first, last):
            optimizer.zero_grad()
            square_loss(model, Turn(rank, step)).backward()
            optimizer.step()
        return aliquot.full_state_dict(model, all_ranks=True)

    model: Any = aliquot.shard(built(CASE), precision=precision)
    optimizer = with_rest(model)
    steps(model, optimizer, 0, 3)
    aliquot.save_checkpoint(folder, model, optimizer, step=3)
    expected = steps(model, optimizer, 3, STEPS)
    other: Any = aliquot.shard(built(CASE), stage=1, precision=precision)
    again = with_rest(other)
    aliquot.load_checkpoint(folder, other, again)
    assert_same_bits(steps(other, again, 3, STEPS), expected)
    matrices, rest = halves(other)
    swapped = aliquot.Muon(other, params=[{"params": matrices, "use_muon": False}, {"params": rest, "use_muon": False}])
    with pytest.raises(aliquot.Error, match="use_muon is True for a group that was made with the other"):
        aliquot.load_checkpoint(folder, other, swapped)


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_checkpoints(tmp_path: Path, precision: Any) -> None:
    run_ranks(WORLD_SIZE, resume, tmp_path, precision)


def refuse(rank: int) -> None:
    model: Any = aliquot.shard(LanguageModel())
    with pytest.raises(aliquot.InvalidArgument, match=r"no matrix of real numbers.*use_muon=False"):
        aliquot.Muon(model, params=model.parameters())
    with pytest.raises(aliquot.InvalidArgument, match="betas"):
        aliquot.Muon(model, params=[{"params": model.parameters(), "use_muon": False, "betas": (0.9, 1.0)}])
    with pytest.raises(aliquot.InvalidArgument, match="momentum is -1"):
        aliquot.Muon(model, params=[model.embedding.weight], momentum=-1.0)


def test_what_it_can_not_step_is_refused() -> None:
    run_ranks(1, refuse)
