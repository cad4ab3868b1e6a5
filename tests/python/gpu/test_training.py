"""The models that break such systems, and what the numbers must be, on GPUs."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping

import aliquot
import pytest
import torch
from aliquot._core import LossScale, ScaleRule
from aliquot.precision import NAMES
from cases import CASES, language, plain
from models import Chain, LanguageModel
from ranks import NCCL_POISONED, PEER, PEER_POISONED, Transport, run_ranks
from torch import Tensor
from training import STAGES, Case, Sharded, Turn, assert_same_bits, assert_same_weights, train_both

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_gpu")]

LANGUAGE = Case(LanguageModel, language)


def train_all(rank: int, stage: int) -> dict[str, str]:
    """One job for all models: it takes seconds to start one. What failed, by name."""
    failures = {}
    for name, case in CASES.items():
        if stage in case.stages:
            try:
                train_both(rank, case, stage, 2, 4)
            except (AssertionError, RuntimeError) as error:
                failures[name] = f"{type(error).__name__}: {error}"
    return failures


@pytest.mark.parametrize("transport", [PEER, PEER_POISONED, NCCL_POISONED], ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_models(stage: int, transport: Transport) -> None:
    assert run_ranks(2, train_all, stage, transport=transport, timeout=240.0) == [{}, {}]


def weights_after(rank: int, stage: int, steps: int, slow: bool = False) -> dict[str, Tensor]:
    sharded = Sharded(LANGUAGE, stage)
    if slow:
        _slow_down(sharded.model, random.Random(rank))
    for step in range(steps):
        sharded.step(rank, step)
    return sharded.weights()


def _slow_down(model: torch.nn.Module, chance: random.Random) -> None:
    """A busy kernel before every forward of a module and before every gradient of its output."""

    def linger(*_: object) -> None:
        torch.cuda._sleep(chance.randrange(2_000_000))

    def after(module: torch.nn.Module, args: object, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(linger)  # type: ignore[no-untyped-call]

    for module in model.modules():
        module.register_forward_pre_hook(linger)
        module.register_forward_hook(after)


def train_stages(rank: int) -> None:
    expected = weights_after(rank, 0, 30)
    for stage in (0, 1, 2, 3, 3):
        assert_same_bits(weights_after(rank, stage, 30), expected)


def test_the_stages_give_the_same_bits(transport: Transport) -> None:
    run_ranks(2, train_stages, transport=transport, timeout=120.0)


def train_slowly(rank: int) -> None:
    for stage in STAGES:
        assert_same_bits(weights_after(rank, stage, 8, slow=True), weights_after(rank, stage, 8))


def test_slow_producers_change_no_bit(transport: Transport) -> None:
    run_ranks(2, train_slowly, transport=transport, timeout=120.0)


def train_beside(rank: int) -> None:
    expected = weights_after(rank, 3, 8)
    os.environ["ALIQUOT_HIDDEN_STEP"] = "1"
    assert_same_bits(weights_after(rank, 3, 8), expected)
    assert_same_bits(weights_after(rank, 3, 8, slow=True), expected)


def test_updates_beside_the_forward_change_no_bit(transport: Transport) -> None:
    run_ranks(2, train_beside, transport=transport, timeout=120.0)


def test_agrees_with_the_engine_on_cpus(transport: Transport) -> None:
    on_gpus: Mapping[str, Tensor] = run_ranks(2, weights_after, 3, 50, transport=transport, timeout=120.0)[0]
    on_cpus: Mapping[str, Tensor] = run_ranks(2, weights_after, 3, 50)[0]
    assert_same_weights(on_gpus, on_cpus, tolerance=1e-5)


def non_finite(rank: int, stage: int) -> None:
    sharded = Sharded(Case(Chain, plain), stage)
    sharded.step(rank, 0)
    before = sharded.weights()
    sharded.optimizer.zero_grad()
    loss = sharded.model(Turn(rank, 1).normal(4, 8)).square().mean()
    (loss * (float("nan") if rank == 1 else 1.0)).backward()
    sharded.optimizer.step()
    assert torch.isnan(sharded.optimizer.grad_norm)
    assert_same_bits(sharded.weights(), before)
    sharded.step(rank, 2)
    torch.cuda.synchronize()
    stats = aliquot.stats(sharded.model)
    assert (stats.steps, stats.skipped) == (2, 1)
    assert all(torch.isfinite(value).all() for value in sharded.weights().values())


@pytest.mark.parametrize("stage", STAGES)
def test_a_bad_gradient_skips_the_step_on_all_ranks(stage: int, transport: Transport) -> None:
    run_ranks(2, non_finite, stage, transport=transport, timeout=60.0)


HALVES = (
    aliquot.Precision("bf16"),
    aliquot.Precision("bf16", master="fp32"),
    aliquot.Precision("fp16"),
    aliquot.Precision("fp16", grad="bf16"),
)


def train_half(rank: int, stage: int, precision: aliquot.Precision) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = aliquot.shard(LanguageModel(), stage=stage, precision=precision)
    optimizer = aliquot.AdamW(model, lr=3e-3, max_grad_norm=1.0)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        losses.append(language(model, Turn(rank, step)))
        optimizer.step()
    state = aliquot.full_state_dict(model, all_ranks=True)
    assert {NAMES[value.dtype] for value in state.values()} == {precision.param}
    return {"losses": torch.stack(losses).float().cpu(), **state}


@pytest.mark.parametrize("precision", HALVES, ids=str)
def test_16_bit_stages_give_the_same_bits(precision: aliquot.Precision, transport: Transport) -> None:
    expected = run_ranks(2, train_half, 0, precision, transport=transport, timeout=60.0)
    assert expected[0]["losses"][-5:].mean() < expected[0]["losses"][:5].mean()
    for stage in (1, 2, 3):
        for mine, other in zip(run_ranks(2, train_half, stage, precision, transport=transport), expected, strict=True):
            assert_same_bits(mine, other)


def overflow(rank: int, stage: int) -> None:
    """The scale moves as torch's does, and the host is told of it without being waited for."""
    model = aliquot.shard(LanguageModel(), stage=stage, precision="fp16")
    optimizer = aliquot.AdamW(model, lr=3e-3, max_grad_norm=1.0)
    scaler = aliquot.GradScaler(optimizer, init_scale=2.0**8, growth_interval=2)
    expected = LossScale(2.0**8)
    for step in range(12):
        optimizer.zero_grad()
        before = aliquot.full_state_dict(model, all_ranks=True)
        tokens = Turn(rank, step).tokens(LanguageModel.vocabulary, 4, 6)
        loss = torch.nn.functional.cross_entropy(model(tokens).float().flatten(0, 1), tokens.flatten())
        overflows = step % 3 == 1
        scaler.scale(loss * (1e30 if overflows and rank == 1 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        expected = LossScale(expected.scale, expected.growth_tracker, overflows).updated(ScaleRule(2.0, 0.5, 2))
        assert scaler.get_scale() == expected.scale
        assert bool(optimizer.grad_norm.isfinite()) == (not overflows)
        if overflows:
            assert_same_bits(aliquot.full_state_dict(model, all_ranks=True), before)
    torch.cuda.synchronize()
    stats = aliquot.stats(model)
    assert (stats.steps, stats.skipped) == (8, 4)


@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_scale_moves_on_the_device(stage: int, transport: Transport) -> None:
    run_ranks(2, overflow, stage, transport=transport)


def write_and_read(rank: int, stage: int) -> None:
    model = aliquot.shard(LanguageModel(), stage=stage, precision="bf16")
    state = aliquot.full_state_dict(model, all_ranks=True)
    aliquot.load_full_state_dict(model, {name: value + 1 for name, value in state.items()})
    with aliquot.gathered(model):
        for name, param in model.named_parameters():
            assert torch.equal(param.cpu(), state[name] + 1), name
    with aliquot.gathered(model, write=True), torch.no_grad():
        for param in model.parameters():
            param.fill_(2.0)
    assert all((value == 2).all() for value in aliquot.full_state_dict(model, all_ranks=True).values())


@pytest.mark.parametrize("stage", STAGES)
def test_values_between_steps(stage: int, transport: Transport) -> None:
    run_ranks(2, write_and_read, stage, transport=transport)


def ask_too_much(rank: int) -> str:
    model = torch.nn.Linear(1 << 20, 1 << 20, device="meta")
    with pytest.raises(aliquot.OutOfMemory) as refused:
        aliquot.shard(model)
    return str(refused.value)


def test_a_model_that_cannot_fit_is_refused_with_figures(transport: Transport) -> None:
    assert all("bytes" in text for text in run_ranks(2, ask_too_much, transport=transport))
