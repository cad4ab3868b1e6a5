"""`aliquot.graph`: steps that a CUDA graph replays give the bits of those that the host gives one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import aliquot
import pytest
import torch
from cases import BATCH
from models import LanguageModel
from ranks import FORK, PEER, PEER_POISONED, Transport, run_ranks, started
from torch import Tensor, nn
from torch.nn import functional
from training import STAGES, Case, Turn, assert_same_bits, built

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_gpu")]

STEPS = 9
WARMUP = 2


class Training:
    """A language model and its step, captured or not. `factor` multiplies the loss."""

    def __init__(
        self, stage: int, precision: Any = None, captured: bool = False, lr: float = 3e-3, moment_bits: Any = 32
    ) -> None:
        case = Case(LanguageModel, lambda model, turn: turn.normal(1))
        self.model: Any = aliquot.shard(built(case), stage=stage, precision=precision)
        self.optimizer = aliquot.AdamW(self.model, lr=lr, max_grad_norm=1.0, moment_bits=moment_bits)
        self.scaler = aliquot.GradScaler(self.optimizer, init_scale=2.0**14) if precision == "fp16" else None
        self.train: Callable[[Tensor, Tensor], Tensor] = self.step
        if captured:
            self.train = aliquot.graph(self.step, self.optimizer, warmup=WARMUP)

    def step(self, tokens: Tensor, factor: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        losses = []
        for half in tokens.chunk(2):
            logits = self.model(half[:, :-1]).float()
            loss = functional.cross_entropy(logits.flatten(0, 1), half[:, 1:].flatten())
            scaled = loss * factor if self.scaler is None else self.scaler.scale(loss * factor)
            scaled.backward()
            losses.append(loss.detach())
        self.optimizer.step()
        if self.scaler is not None:
            self.scaler.update()
        return torch.stack(losses)

    def run(self, rank: int, steps: range, bad: int | None = None) -> list[Tensor]:
        """The losses; the gradients of step `bad` are not finite."""
        losses = []
        for step in steps:
            self.optimizer.param_groups[0]["lr"] = 3e-3 / (1 + step)
            tokens = Turn(rank, step).tokens(LanguageModel.vocabulary, 2 * BATCH, 6)
            factor = torch.tensor(float("nan") if step == bad else 1.0)
            losses.append(self.train(tokens, factor))
        return losses

    def weights(self) -> dict[str, Tensor]:
        return aliquot.full_state_dict(self.model, all_ranks=True)


def compare(rank: int, stage: int, precision: Any, bad: int | None, moment_bits: int = 32) -> None:
    eager, captured = (Training(stage, precision, captured=each, moment_bits=moment_bits) for each in (False, True))
    losses, expected = captured.run(rank, range(STEPS), bad), eager.run(rank, range(STEPS), bad)
    assert torch.equal(torch.stack(losses), torch.stack(expected)), (losses, expected)
    assert_same_bits(captured.weights(), eager.weights())
    assert torch.equal(captured.optimizer.grad_norm, eager.optimizer.grad_norm)
    counted = aliquot.stats(captured.model)
    assert (counted.steps, counted.skipped) == (STEPS - (bad is not None), int(bad is not None))


@pytest.mark.parametrize("transport", [PEER, PEER_POISONED], ids=str)
@pytest.mark.parametrize("precision", [None, "bf16", "fp16"], ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_replays_give_the_bits_of_the_step_itself(stage: int, precision: str | None, transport: Transport) -> None:
    run_ranks(2, compare, stage, precision, None, transport=transport)


@pytest.mark.parametrize("precision", [None, "fp16"], ids=str)
@pytest.mark.parametrize("bad", [WARMUP - 1, STEPS - 3])
def test_a_bad_gradient_is_skipped_in_a_replay(bad: int, precision: str | None) -> None:
    run_ranks(2, compare, 3, precision, bad, transport=PEER)


def go_back_and_forth(rank: int, stage: int) -> None:
    """Steps as they are between replays, on ranks of which one is slow, and parameters read behind some."""
    eager, captured = Training(stage), Training(stage, captured=True)
    replay = captured.train
    for first in range(0, 24, 4):
        eager.run(rank, range(first, first + 4))
        captured.run(rank, range(first, first + 3))
        captured.train = captured.step
        if rank == first // 4 % 2:
            torch.cuda._sleep(20_000_000)
        captured.run(rank, range(first + 3, first + 4))
        captured.train = replay
        if first % 8:
            assert_same_bits(captured.weights(), eager.weights())


@pytest.mark.parametrize("stage", STAGES)
def test_steps_may_come_between_replays(stage: int) -> None:
    run_ranks(2, go_back_and_forth, stage, transport=PEER)


def refuse(rank: int) -> None:
    training, eager = Training(3, captured=True), Training(3)
    training.run(rank, range(WARMUP + 1))
    wrong = torch.zeros(4 * BATCH, 6, dtype=torch.int64)
    with pytest.raises(aliquot.InvalidArgument, match=r"argument 0 .*\(16, 6\)"):
        training.train(wrong, torch.tensor(1.0))
    training.run(rank, range(WARMUP + 1, STEPS))
    eager.run(rank, range(STEPS))
    assert_same_bits(training.weights(), eager.weights())
    with pytest.raises(aliquot.InvalidArgument, match="TorchOptimizer"):
        aliquot.graph(training.step, aliquot.TorchOptimizer(training.model, torch.optim.SGD, lr=0.1))  # type: ignore[arg-type]


def test_other_shapes_and_optimizers_are_refused() -> None:
    run_ranks(2, refuse, transport=PEER)


def change_what_was_captured(rank: int) -> None:
    """Of an optimizer: its groups and the norm it clips to."""
    outcomes = []
    for captured in (False, True):
        training = Training(3)
        first, *rest = training.model.parameters()
        training.optimizer = aliquot.AdamW(training.model, params=[first], max_grad_norm=1.0)
        training.train = aliquot.graph(training.step, training.optimizer, WARMUP) if captured else training.step
        training.run(rank, range(4))
        training.optimizer.add_param_group({"params": rest, "lr": 1e-3})
        training.run(rank, range(4, 7))
        training.optimizer.max_grad_norm = 0.1
        training.run(rank, range(7, 10))
        outcomes.append(training.weights())
        aliquot.AdamW(training.model)
        with pytest.raises(aliquot.Error, match="another fused optimizer"):
            training.run(rank, range(10, 11))
    assert_same_bits(*outcomes)


def test_a_changed_optimizer_is_captured_anew() -> None:
    run_ranks(2, change_what_was_captured, transport=PEER)


def step_by_norms(rank: int) -> None:
    outcomes = []
    for captured in (False, True):
        training = Training(3)
        training.optimizer = aliquot.LAMB(training.model)  # type: ignore[assignment]
        training.train = aliquot.graph(training.step, training.optimizer, WARMUP) if captured else training.step
        training.run(rank, range(STEPS))
        outcomes.append(training.weights())
    assert_same_bits(*outcomes)


def test_norms_of_whole_parameters_are_in_the_graph() -> None:
    run_ranks(2, step_by_norms, transport=PEER)


def save_between_replays(rank: int, directory: str) -> None:
    eager, captured = Training(3), Training(3, captured=True)
    eager.run(rank, range(12))
    captured.run(rank, range(6))
    aliquot.save_checkpoint(directory, captured.model, captured.optimizer, step=6)
    captured.run(rank, range(6, 9))
    aliquot.load_checkpoint(directory, captured.model, captured.optimizer)
    captured.run(rank, range(6, 12))
    assert_same_bits(captured.weights(), eager.weights())


def test_checkpoints_may_come_between_replays(tmp_path: Path) -> None:
    run_ranks(2, save_between_replays, str(tmp_path), transport=PEER)


def replay_until_lost(rank: int, training_goes_on: Any) -> int:
    training = Training(3, captured=True)
    training.run(rank, range(WARMUP + 2))
    training_goes_on.release()
    try:
        for step in range(WARMUP + 2, 1 << 20):
            training.run(rank, range(step, step + 1))
    except aliquot.PeerLost as error:
        return error.rank
    return -1


def test_a_rank_that_dies_between_replays_is_named() -> None:
    goes_on = FORK.Semaphore(0)
    with started(2, replay_until_lost, goes_on, transport=PEER) as ranks:
        for _ in range(2):
            assert goes_on.acquire(timeout=60.0)
        ranks.kill(1)
        assert ranks.results(timeout=30.0) == [1, None]


def capture_what_cannot_be(rank: int) -> None:
    """Each is refused by name, and training goes on as if nothing had been."""
    training, eager = Training(3), Training(3)
    schedule = torch.optim.lr_scheduler.StepLR(training.optimizer, 1)
    plain = training.step

    def schedules(tokens: Tensor, factor: Tensor) -> Tensor:
        loss = plain(tokens, factor)
        schedule.step()
        return loss

    def never_steps(tokens: Tensor, factor: Tensor) -> Tensor:
        return training.model(tokens).sum()

    def adds_up(tokens: Tensor, factor: Tensor) -> Tensor:
        loss = training.model(tokens).sum()
        loss.backward()
        training.optimizer.step()
        return loss

    for step, words in [(schedules, "schedulers outside"), (never_steps, "no step"), (adds_up, "of before the step")]:
        training.run(rank, range(1))
        eager.run(rank, range(1))
        training.train = aliquot.graph(step, training.optimizer)
        training.train.warmup = 0  # type: ignore[attr-defined]
        with pytest.raises(aliquot.InvalidArgument, match=words):
            training.run(rank, range(1, 2))
        training.train = plain
    training.run(rank, range(2))
    eager.run(rank, range(2))
    assert_same_bits(training.weights(), eager.weights())


def test_steps_that_replays_could_not_repeat_are_refused() -> None:
    run_ranks(2, capture_what_cannot_be, transport=PEER)


class Asks(nn.Module):
    """Asks the device for a number in the middle of a forward, if told to."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.1)) for _ in range(4))
        self.asks = True

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number == 1 and self.asks:
                x.sum().item()
        return x


def ask_in_a_forward(rank: int) -> None:
    model: Any = aliquot.shard(built(Case(Asks, lambda model, turn: turn.normal(1))))
    optimizer = aliquot.AdamW(model)

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    for asks in (True, False):
        model.asks = asks
        captured = aliquot.graph(step, optimizer, warmup=1)
        captured(torch.ones(2, 16))
        if asks:
            with pytest.raises(aliquot.Error, match="must not wait"):
                captured(torch.ones(2, 16))
            step(torch.ones(2, 16))
    assert all(torch.isfinite(captured(torch.ones(2, 16))) for _ in range(4))


def test_a_forward_that_asks_is_an_error_and_the_next_capture_is_fine() -> None:
    run_ranks(2, ask_in_a_forward, transport=PEER)


def wait_in_a_step(rank: int) -> None:
    training, eager = Training(3), Training(3)
    plain = training.step

    def waits(tokens: Tensor, factor: Tensor) -> Tensor:
        plain(tokens, factor).sum().item()
        return tokens

    training.train = aliquot.graph(waits, training.optimizer, warmup=1)
    training.run(rank, range(1))
    with pytest.raises(aliquot.Error, match="must not wait"):
        training.run(rank, range(1, 2))
    training.train = plain
    training.run(rank, range(1, 4))
    eager.run(rank, range(4))
    assert_same_bits(training.weights(), eager.weights())


def test_a_step_that_waits_is_an_error_and_training_goes_on() -> None:
    run_ranks(2, wait_in_a_step, transport=PEER)


def compiled(rank: int) -> None:
    """Each block is compiled, the hooks are outside."""
    outcomes = []
    for captured in (False, True):
        training = Training(3, captured=captured)
        for block in training.model.blocks:
            block.compile()
        training.run(rank, range(STEPS))
        outcomes.append(training.weights())
    assert_same_bits(*outcomes)


def test_composes_with_compiled_blocks() -> None:
    run_ranks(2, compiled, transport=PEER, timeout=180.0)


def captured_dropout(rank: int) -> None:
    """Every replay draws anew."""
    with torch.device("cpu"):
        model: Any = aliquot.shard(nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 1)))
    optimizer = aliquot.AdamW(model, lr=0.0, weight_decay=0.0)

    @partial(aliquot.graph, optimizer=optimizer)
    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    losses = {float(step(torch.ones(4, 8))) for _ in range(8)}
    assert len(losses) == 8


def test_dropout_draws_anew_in_each_replay() -> None:
    run_ranks(2, captured_dropout, transport=PEER)
