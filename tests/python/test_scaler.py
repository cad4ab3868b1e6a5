"""The loss scale: its course is that of torch.amp.GradScaler, and it shows nowhere but in what overflows."""

from __future__ import annotations

import math
import random
from collections import OrderedDict, deque
from typing import Any

import aliquot
import pytest
import torch
from aliquot._core import LossScale, ScaleRule
from cases import plain, square_loss
from models import WIDTH, Chain
from ranks import SHARED_MEMORY, TRANSPORTS, Transport, run_ranks
from torch import Tensor
from training import ADAMW, STAGES, Case, Turn, assert_same_bits, built

SEQUENCES = 10_000
STEPS = 12
CASE = Case(Chain, plain)


def test_the_rule_is_torchs_for_any_sequence_of_overflows() -> None:
    """Factors and intervals vary, and so does where they begin, up to the largest numbers of fp32."""
    chance = random.Random(0)
    for _ in range(SEQUENCES):
        growth, backoff = chance.choice((2.0, 1.1, 16.0, 1e9)), chance.choice((0.5, 0.9, 0.1, 1e-9))
        interval = chance.choice((1, 2, 3, 7))
        rule = ScaleRule(growth, backoff, interval)
        ours = LossScale(2.0 ** chance.randint(-40, 127), chance.randint(0, interval + 1))
        scale = torch.tensor(ours.scale)
        tracker = torch.tensor(ours.growth_tracker, dtype=torch.int32)
        often = chance.random()
        for _ in range(20):
            overflow = chance.random() < often
            ours = LossScale(ours.scale, ours.growth_tracker, overflow).updated(rule)
            torch._amp_update_scale_(scale, tracker, torch.tensor(float(overflow)), growth, backoff, interval)
            assert (ours.scale, ours.growth_tracker) == (scale.item(), tracker.item())


def sharded(stage: int, precision: Any = None, **adamw: Any) -> tuple[Any, aliquot.AdamW]:
    model = aliquot.shard(built(CASE), stage=stage, precision=precision)
    return model, aliquot.AdamW(model, **{**ADAMW, "max_grad_norm": 1.0, **adamw})


def train(rank: int, stage: int, precision: str, bad: tuple[int, ...], scaled: bool) -> dict[str, Tensor]:
    """Final weights and the norms; in a `bad` step, which comes besides the others, rank 1 overflows."""
    model, optimizer = sharded(stage, precision)
    scaler = aliquot.GradScaler(optimizer, init_scale=2.0**6, growth_interval=3, enabled=scaled)
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**6, growth_interval=3, enabled=scaled)
    theirs.scale(torch.ones(()))  # which makes its state
    norms = []
    for step in range(STEPS):
        for overflows in (True, False) if step in bad else (False,):
            before = aliquot.full_state_dict(model, all_ranks=True)
            optimizer.zero_grad()
            loss = square_loss(model, Turn(rank, step)).float()
            scaler.scale(loss * (1e38 if overflows and rank == 1 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            follow(theirs, overflows, scaled)
            assert scaler.state_dict() == theirs.state_dict()
            if overflows:
                assert_same_bits(aliquot.full_state_dict(model, all_ranks=True), before)
                assert optimizer.grad_norm.isnan()
            else:
                norms.append(optimizer.grad_norm)
    stats = aliquot.stats(model)
    assert (stats.steps, stats.skipped) == (STEPS, len(bad))
    return aliquot.full_state_dict(model, all_ranks=True) | {"norms": torch.stack(norms)}


def follow(theirs: torch.amp.GradScaler, overflows: bool, scaled: bool) -> None:
    """Torch's scaler takes a step with a gradient that is infinite, or not."""
    if not scaled:
        return
    param = torch.nn.Parameter(torch.zeros(()))
    param.grad = torch.tensor(math.inf if overflows else 0.0)
    optimizer = torch.optim.SGD([param], lr=0.0)
    theirs.step(optimizer)
    theirs.update()


def with_and_without(rank: int, stage: int, precision: str) -> dict[str, Tensor]:
    """A scale that is a power of 2 changes no bit, unless a gradient would be too small for the format without it."""
    mine = train(rank, stage, precision, (0, 1, 5, 9), scaled=True)
    if precision != "fp16":
        assert_same_bits(mine, train(rank, stage, precision, (), scaled=False))
    return mine


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_overflows_skip_and_scales_leave_no_trace(precision: str, transport: Transport) -> None:
    first, *others = [run_ranks(2, with_and_without, stage, precision, transport=transport) for stage in STAGES]
    for other in others:
        for mine, expected in zip(other, first, strict=True):
            assert_same_bits(mine, expected)


def other_optimizers(rank: int, name: str, params: Any, scaled: bool) -> dict[str, Tensor]:
    """Those that step pieces: the scale is taken out of the gradients in the store."""
    model: Any = aliquot.shard(built(CASE), stage=2, precision=aliquot.Precision(params, master="fp32"))
    matrices = [param for param in model.parameters() if param.dim() == 2]
    optimizer: Any = {
        "SGD": lambda: aliquot.TorchOptimizer(model, torch.optim.SGD, lr=0.1, momentum=0.9, max_grad_norm=0.5),
        "LAMB": lambda: aliquot.LAMB(model, lr=1e-2),
        "Muon": lambda: aliquot.Muon(model, lr=1e-2, params=matrices, max_grad_norm=0.5),
    }[name]()
    scaler = aliquot.GradScaler(optimizer, init_scale=2.0**6, growth_interval=3, enabled=scaled)
    scales = []
    for step in range(8):
        for overflows in (True, False) if scaled and step in (2, 3) else (False,):
            before = aliquot.full_state_dict(model, all_ranks=True)
            optimizer.zero_grad()
            loss = square_loss(model, Turn(rank, step)).float()
            scaler.scale(loss * (math.inf if overflows and rank == 1 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
            if overflows:
                assert_same_bits(aliquot.full_state_dict(model, all_ranks=True), before)
    assert scales == ([64, 64, 32, 32, 16, 16, 16, 32, 32, 32] if scaled else [1] * 8)
    return aliquot.full_state_dict(model, all_ranks=True)


def other_with_and_without(rank: int, name: str, params: str) -> None:
    mine, expected = (other_optimizers(rank, name, params, scaled) for scaled in (True, False))
    for tensor in mine if params == "fp32" else ():
        assert torch.equal(mine[tensor], expected[tensor]), tensor


@pytest.mark.parametrize("name", ["SGD", "LAMB", "Muon"])
@pytest.mark.parametrize("params", ["fp32", "fp16"])
def test_every_optimizer_takes_the_scale_out(params: str, name: str) -> None:
    run_ranks(2, other_with_and_without, name, params)


def small_gradients(rank: int, enabled: bool) -> bool:
    """Of 2^-30, which fp16 can't hold."""
    model = aliquot.shard(torch.nn.Linear(WIDTH, WIDTH), precision="fp16")
    optimizer = aliquot.AdamW(model, lr=0.1, weight_decay=0.0, eps=1e-15)
    scaler = aliquot.GradScaler(optimizer, init_scale=2.0**20, growth_interval=None, enabled=enabled)
    before = aliquot.full_state_dict(model, all_ranks=True)
    scaler.scale(model(torch.ones(1, WIDTH)).float().sum() * 2.0**-30).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == (2.0**20 if enabled else 1.0)
    if enabled:
        norm = 2.0**-30 * math.sqrt(WIDTH * WIDTH + WIDTH)
        assert optimizer.grad_norm.item() == pytest.approx(norm)
    after = aliquot.full_state_dict(model, all_ranks=True)
    return not torch.equal(after["weight"], before["weight"])


def overflow_in_torchs_adamw(rank: int) -> None:
    """An optimizer of torch's over the shards: the same scale is in its gradients, and the same step is skipped."""
    weights = []
    for scaled in (False, True):
        model = aliquot.shard(built(CASE), precision=aliquot.Precision("bf16", master="fp32"))
        optimizer = aliquot.TorchOptimizer(model, torch.optim.AdamW, lr=1e-2, max_grad_norm=0.1)
        scaler = aliquot.GradScaler(optimizer, init_scale=2.0**6, growth_interval=3, enabled=scaled)
        for step in range(STEPS):
            for bad in (True, False) if step == 2 else (False,):
                optimizer.zero_grad()
                loss = square_loss(model, Turn(rank, step)).float()
                scaler.scale(loss * (math.inf if bad and rank == 1 else 1.0)).backward()
                scaler.step(optimizer)
                scaler.update()
                assert (optimizer.skipped_in_a_row == 1) == bad
        weights.append(aliquot.full_state_dict(model, all_ranks=True))
        assert aliquot.stats(model).skipped == 1
    assert_same_bits(*weights)


def test_overflows_skip_the_step_of_torchs_optimizers() -> None:
    run_ranks(2, overflow_in_torchs_adamw)


def test_small_gradients_survive_fp16() -> None:
    assert run_ranks(2, small_gradients, True) == [True, True]
    assert run_ranks(2, small_gradients, False) == [False, False]


def clip_by_hand(rank: int, stage: int) -> None:
    (model, optimizer), (other, fused) = sharded(stage, max_grad_norm=None), sharded(stage, max_grad_norm=0.25)
    scaler = aliquot.GradScaler(optimizer, init_scale=1000.0, growth_interval=None)
    for step in range(3):
        for net, opt, scale in ((model, optimizer, scaler.scale), (other, fused, lambda loss: loss)):
            opt.zero_grad()
            scale(square_loss(net, Turn(rank, step))).backward()
        norm = aliquot.clip_grad_norm_(model, 0.25)
        scaler.step(optimizer)
        scaler.update()
        fused.step()
        assert norm.item() == pytest.approx(fused.grad_norm.item(), rel=1e-5)
        assert optimizer.grad_norm.item() == pytest.approx(0.25, rel=1e-5)
    expected = aliquot.full_state_dict(other)
    for name, value in aliquot.full_state_dict(model).items():
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("stage", STAGES)
def test_clipping_by_hand_is_of_unscaled_gradients(stage: int) -> None:
    run_ranks(2, clip_by_hand, stage)


def exchange_states(rank: int) -> None:
    _, optimizer = sharded(3)
    ours = aliquot.GradScaler(optimizer, init_scale=8.0, growth_factor=3.0, backoff_factor=0.25, growth_interval=5)
    theirs = torch.amp.GradScaler("cpu")
    theirs.load_state_dict(ours.state_dict())
    assert theirs.state_dict() == ours.state_dict()
    other = aliquot.GradScaler(optimizer)
    assert other.get_scale() == 65536.0
    other.load_state_dict(theirs.state_dict())
    assert other.state_dict() == theirs.state_dict()
    other.update(5.0)
    assert other.get_scale() == 5.0
    assert aliquot.GradScaler(optimizer, enabled=False).state_dict() == {}


def test_states_are_exchanged_with_torch() -> None:
    run_ranks(1, exchange_states)


def mistakes(rank: int) -> None:
    model, optimizer = sharded(3)
    _, another = sharded(3)
    scaler: Any = aliquot.GradScaler(optimizer)
    for mistake in (
        lambda: aliquot.GradScaler(torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])),  # type: ignore[arg-type]
        lambda: aliquot.GradScaler(another, growth_factor=0.5),
        lambda: aliquot.GradScaler(another, init_scale=0.0),
        lambda: aliquot.GradScaler(another, growth_interval=0),
        lambda: scaler.load_state_dict({}),
        lambda: scaler.step(another),
        lambda: scaler.unscale_(optimizer),
        lambda: scaler.update(),
        lambda: optimizer.step(),  # of a loss that was not scaled
    ):
        with pytest.raises(aliquot.Error):
            mistake()
    scaler.scale(square_loss(model, Turn(rank, 0))).backward()
    scaler.step(optimizer)
    scaler.scale(square_loss(model, Turn(rank, 0))).backward()
    with pytest.raises(aliquot.Error, match="update"):
        scaler.step(optimizer)


def test_mistakes_are_refused() -> None:
    run_ranks(2, mistakes, transport=SHARED_MEMORY)


def move_the_scale(rank: int) -> None:
    model, optimizer = sharded(3)
    scaler = aliquot.GradScaler(optimizer, growth_interval=1)
    scaler.scale(square_loss(model, Turn(rank, 0))).backward()
    scaler.step(optimizer)
    scaler.update()
    with pytest.raises(aliquot.Error, match="loss scale before"):
        aliquot.clip_grad_norm_(model, 1.0)
    optimizer.zero_grad()
    for _ in range(2):  # in either order of zero_grad and update
        scaler.scale(square_loss(model, Turn(rank, 1))).backward()
        scaler.step(optimizer)
        optimizer.zero_grad()
        scaler.update()
    assert aliquot.stats(model).steps == 3


def test_gradients_of_a_scale_that_moved_are_refused() -> None:
    run_ranks(2, move_the_scale)


def two_optimizers(rank: int) -> None:
    """A scale that is a power of 2 changes no bit, whoever steps, and whoever is made when."""
    weights = []
    for scaled in (False, True):
        model = aliquot.shard(built(CASE))
        matrices = [param for param in model.parameters() if len(param.shape) == 2]
        rest = [param for param in model.parameters() if len(param.shape) != 2]
        first = aliquot.Muon(model, params=matrices)
        scaler = aliquot.GradScaler(first, init_scale=2.0**6, growth_interval=2, enabled=scaled)
        second = aliquot.AdamW(model, params=rest)
        for step in range(5):
            for optimizer in (first, second):
                optimizer.zero_grad()
            scaler.scale(square_loss(model, Turn(rank, step))).backward()
            scaler.step(first)
            scaler.step(second)
            scaler.update()
        assert scaler.get_scale() == (2.0**8 if scaled else 1.0)
        weights.append(aliquot.full_state_dict(model, all_ranks=True))
    assert_same_bits(*weights)


def test_a_scaler_serves_all_optimizers_of_a_model() -> None:
    run_ranks(2, two_optimizers)


def scale_strange_things(rank: int) -> None:
    _, optimizer = sharded(3)
    scaler = aliquot.GradScaler(optimizer, init_scale=4.0)
    given = OrderedDict(loss=torch.ones(()))
    assert scaler.scale(given)["loss"] == 4
    assert given["loss"] == 1
    for nothing in (1.0, deque([torch.ones(())]), iter([torch.ones(())])):
        with pytest.raises(aliquot.InvalidArgument, match="found none"):
            scaler.scale(nothing)
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(aliquot.InvalidArgument, match="positive and finite"):
            scaler.update(bad)
        with pytest.raises(aliquot.InvalidArgument, match="positive and finite"):
            aliquot.GradScaler(optimizer, init_scale=bad)
        assert optimizer.model.scaler is scaler


def test_what_is_not_scaled_is_refused() -> None:
    run_ranks(1, scale_strange_things)
