"""bf16 and fp16: the stages give the same bits, the loss follows PyTorch's own, and the bytes are what is promised."""

from __future__ import annotations

from functools import partial
from typing import Any

import aliquot
import pytest
import torch
from cases import CASES, language, plain
from models import Chain, LanguageModel
from ranks import PROCESS_GROUP, SHARED_MEMORY, SHARED_MEMORY_POISONED, TRANSPORTS, Transport, run_ranks
from torch import Tensor
from training import ADAMW, MAX_NORM, STAGES, Case, Turn, assert_same_bits, built, relative_error

KINDS = (
    aliquot.Precision("bf16"),
    aliquot.Precision("bf16", master="fp32"),
    aliquot.Precision("fp16"),
)
STEPS = 20
LANGUAGE = Case(LanguageModel, language)


def sharded(case: Case, stage: int, precision: aliquot.Precision) -> tuple[Any, aliquot.AdamW]:
    model = aliquot.shard(built(case), stage=stage, units=case.units, precision=precision)
    return model, aliquot.AdamW(model, **ADAMW, max_grad_norm=MAX_NORM)


def train(rank: int, case: Case, stage: int, precision: aliquot.Precision) -> dict[str, Tensor]:
    """Final weights, and every loss and gradient norm of this rank."""
    model, optimizer = sharded(case, stage, precision)
    losses, norms = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        losses.append(case.run(model, Turn(rank, step, no_sync=aliquot.no_sync)))
        optimizer.step()
        norms.append(optimizer.grad_norm)
    state = aliquot.full_state_dict(model, all_ranks=True)
    assert {value.dtype for value in state.values()} == {model.get_parameter(next(iter(state))).dtype}
    return state | {"losses": torch.stack(losses), "norms": torch.stack(norms)}


def train_every_stage(rank: int, case: Case, precision: aliquot.Precision) -> list[dict[str, Tensor]]:
    return [train(rank, case, stage, precision) for stage in STAGES]


@pytest.mark.parametrize("precision", KINDS, ids=str)
@pytest.mark.parametrize("name", ["tied_weights", "accumulate", "accumulate_without_sync", "never_used"])
def test_stages_and_transports_agree_to_the_bit(name: str, precision: aliquot.Precision) -> None:
    transports = (SHARED_MEMORY, SHARED_MEMORY_POISONED, PROCESS_GROUP)
    jobs = [run_ranks(2, train_every_stage, CASES[name], precision, transport=t) for t in transports]
    for rank in range(2):
        first, *others = (outcome for job in jobs for outcome in job[rank])
        for outcome in others:
            assert_same_bits(outcome, first)


def by_torch(case: Case, dtype: torch.dtype) -> Tensor:
    """Losses of one rank whose 16-bit parameters are rounded from fp32 masters that torch's own AdamW steps."""
    model: Any = built(case).to(dtype)
    masters = [param.detach().float() for param in built(case).parameters()]
    optimizer = torch.optim.AdamW(masters, **ADAMW)
    losses = []
    for step in range(STEPS):
        model.zero_grad()
        losses.append(case.run(model, Turn(0, step)))
        for param, master in zip(model.parameters(), masters, strict=True):
            master.grad = None if param.grad is None else param.grad.float()
        torch.nn.utils.clip_grad_norm_(masters, MAX_NORM)
        optimizer.step()
        with torch.no_grad():
            for param, master in zip(model.parameters(), masters, strict=True):
                param.copy_(master)
    return torch.stack(losses)


def one_rank(rank: int, precision: aliquot.Precision) -> Tensor:
    return train(rank, LANGUAGE, 3, precision)["losses"]


@pytest.mark.parametrize("precision", KINDS, ids=str)
def test_loss_follows_torchs_own_16_bit_run(precision: aliquot.Precision) -> None:
    """Within half the distance of neighbours: which way a value is rounded may differ, and what follows from it."""
    dtype = torch.bfloat16 if precision.param == "bf16" else torch.float16
    (losses,) = run_ranks(1, one_rank, precision)
    expected = by_torch(LANGUAGE, dtype)
    assert relative_error(losses.float(), expected.float()) < torch.finfo(dtype).eps / 2
    assert losses[-5:].mean() < losses[:5].mean()


def bytes_by_role(rank: int, stage: int, precision: aliquot.Precision) -> tuple[int, dict[str, int]]:
    model, optimizer = sharded(Case(partial(Chain, depth=8), plain), stage, precision)
    optimizer.zero_grad()
    plain(model, Turn(rank, 0))
    optimizer.step()
    engine = model._aliquot.engine
    return sum(engine.numel(unit.index) for unit in model._aliquot.units), aliquot.stats(model).bytes


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", KINDS, ids=str)
def test_bytes_by_role(precision: aliquot.Precision, stage: int, transport: Transport) -> None:
    """Parameters take 2 bytes each, masters 2 or 4, gradients and each moment 4."""
    per_element = {"param": 2, "master": 2 if precision == KINDS[0] else 4, "grad": 4, "exp_avg": 4, "exp_avg_sq": 4}
    shards = {"param": stage >= 3, "grad": stage >= 2, "master": stage >= 1, "exp_avg": stage >= 1}
    shards["exp_avg_sq"] = stage >= 1
    for elements, sizes in run_ranks(2, bytes_by_role, stage, precision, transport=transport):
        for role, width in per_element.items():
            assert sizes[role] == width * elements // (2 if shards[role] else 1), role


def write_and_read(rank: int, stage: int, precision: aliquot.Precision) -> None:
    model, optimizer = sharded(LANGUAGE, stage, precision)
    state = aliquot.full_state_dict(model, all_ranks=True)
    aliquot.load_full_state_dict(model, {name: value + 1 for name, value in state.items()})
    with aliquot.gathered(model):
        for name, param in model.named_parameters():
            assert torch.equal(param, state[name] + 1), name
    with aliquot.gathered(model, write=True), torch.no_grad():
        for param in model.parameters():
            param.fill_(2.0)
    language(model, Turn(rank, 0))
    norm = aliquot.clip_grad_norm_(model, 1e-3)
    if stage < 2:
        squares = sum(p.grad.double().square().sum() for p in model.parameters() if p.grad is not None)
        assert torch.as_tensor(squares).sqrt().item() == pytest.approx(1e-3 if norm > 1e-3 else norm.item(), rel=1e-2)
    for group in optimizer.param_groups:
        group.update(lr=1.0, weight_decay=0.5, eps=1e30)
    optimizer.step()  # which only decays: masters were written too
    assert all((value == 1).all() for value in aliquot.full_state_dict(model, all_ranks=True).values())


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", KINDS, ids=str)
def test_values_between_steps(precision: aliquot.Precision, stage: int, transport: Transport) -> None:
    run_ranks(2, write_and_read, stage, precision, transport=transport)


def lower_bits(rank: int, precision: aliquot.Precision) -> Tensor:
    """Steps of 2^-16 that no 16-bit parameter near 1 can take one by one."""
    model = aliquot.shard(torch.nn.Linear(4, 4, bias=False), precision=precision)
    aliquot.load_full_state_dict(model, {"weight": torch.ones(4, 4)})
    optimizer = aliquot.AdamW(model, lr=2.0**-16, betas=(0.0, 0.0), eps=0.0, weight_decay=0.0)
    for _ in range(1024):
        optimizer.zero_grad()
        model(-torch.ones(1, 4)).sum().backward()
        optimizer.step()
    return aliquot.full_state_dict(model, all_ranks=True)["weight"].float()


@pytest.mark.parametrize("precision", KINDS, ids=str)
def test_masters_add_up_what_parameters_cannot_hold(precision: aliquot.Precision) -> None:
    (weight,) = run_ranks(1, lower_bits, precision)
    assert torch.allclose(weight, torch.full((4, 4), 1.015625), atol=2e-3), weight
