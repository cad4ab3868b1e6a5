"""A run that was cut off and resumed is the run that was not, bit by bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aliquot
import numpy
import pytest
import torch
from checkpoints import assert_same_content, content_of
from models import WIDTH
from ranks import SHARED_MEMORY, TRANSPORTS, Transport, run_ranks
from torch import Tensor, nn
from training import STAGES

MICRO_STEPS = 24
ACCUMULATED = 3
"""Micro-steps to a step."""
SAMPLES = 10
RESUMES = 20

PRECISIONS = {"fp32": None, "bf16": "bf16", "master": aliquot.Precision("bf16", master="fp32"), "fp16": "fp16"}


class Shuffled:
    """Samples of this rank in an order of its own, a new one each epoch."""

    def __init__(self, rank: int) -> None:
        self.generator = torch.Generator("cpu").manual_seed(rank)
        self.order: list[int] = []

    def __iter__(self) -> Iterator[int]:
        while True:
            self.order = self.order or torch.randperm(SAMPLES, generator=self.generator, device="cpu").tolist()
            yield self.order.pop()

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order = list(state["order"])
        self.generator.set_state(state["generator"])


class Run:
    """Dropout, noise of three generators, shuffling, accumulation, a schedule, a loss scale."""

    def __init__(self, rank: int, stage: int, precision: Any, seed: int) -> None:
        for generator in (torch.manual_seed, random.seed, numpy.random.seed):
            generator(seed)
        model = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), *(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.3)) for _ in range(2))
        )
        self.data = torch.linspace(-1, 1, SAMPLES * WIDTH).view(SAMPLES, 1, WIDTH) + rank
        self.model: Any = aliquot.shard(model, stage=stage, precision=precision)
        self.optimizer = aliquot.AdamW(self.model, lr=0.01, max_grad_norm=1.0)
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [2, 5, 6])
        self.scaler = aliquot.GradScaler(self.optimizer, growth_interval=3)
        self.loader = Shuffled(rank)
        self.done = 0

    def micro_step(self) -> Tensor:
        sample = next(iter(self.loader))
        x = self.data[sample] * random.random() + numpy.random.rand() + torch.rand(WIDTH)
        loss = self.model(x).float().square().mean()
        self.scaler.scale(loss / ACCUMULATED).backward()
        self.done += 1
        if self.done % ACCUMULATED == 0:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.schedule.step()
            self.optimizer.zero_grad()
        return loss.detach()

    def parts(self) -> dict[str, Any]:
        return {"schedulers": self.schedule, "loader": self.loader, "scaler": self.scaler}

    def save(self, directory: Path, wait: bool) -> None:
        aliquot.save_checkpoint(
            directory, self.model, self.optimizer, step=self.done, extra={"done": self.done}, wait=wait, **self.parts()
        )

    def resume(self, directory: Path, step: int) -> None:
        loaded = aliquot.load_checkpoint(directory, self.model, self.optimizer, step=step, **self.parts())
        assert (loaded.step, loaded.extra) == (step, {"done": step})
        self.done = loaded.extra["done"]

    def state(self) -> dict[str, Any]:
        return aliquot.full_state_dict(self.model, all_ranks=True) | {
            "lr": torch.tensor(self.optimizer.param_groups[0]["lr"]),
            "scale": torch.tensor(self.scaler.get_scale()),
            "norm": self.optimizer.grad_norm.clone(),
            "random": torch.tensor([random.random(), numpy.random.rand(), torch.rand(()).item()]),
        }


def cut_off_and_resume(rank: int, directory: Path, stage: int, precision: Any, cuts: list[int], wait: bool) -> None:
    whole = Run(rank, stage, precision, seed=0)
    losses = []
    for _ in range(MICRO_STEPS):
        losses.append(whole.micro_step())
        if whole.done in cuts:
            whole.save(directory, wait)
    expected = whole.state()
    for cut in cuts:
        run = Run(rank, stage, precision, seed=1)
        for _ in range(2):  # what there is before counts for nothing
            run.micro_step()
        run.resume(directory, cut)
        again = [run.micro_step() for _ in range(MICRO_STEPS - cut)]
        assert [i for i, (a, b) in enumerate(zip(again, losses[cut:], strict=True)) if not torch.equal(a, b)] == []
        actual = run.state()
        assert [name for name in expected if not torch.equal(actual[name], expected[name])] == [], f"cut at {cut}"


def random_cuts(count: int) -> list[int]:
    """Some between micro-steps of one step, some between steps."""
    return sorted(random.Random(0).sample(range(1, MICRO_STEPS), count))


@pytest.mark.parametrize("stage", STAGES)
def test_resumes_at_20_random_instants(stage: int, tmp_path: Path) -> None:
    run_ranks(2, cut_off_and_resume, tmp_path, stage, None, random_cuts(RESUMES), True)


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_resumes_in_any_precision(precision: str, transport: Transport, tmp_path: Path) -> None:
    cuts = [5, 12]
    run_ranks(2, cut_off_and_resume, tmp_path, 3, PRECISIONS[precision], cuts, True, transport=transport)


def test_resumes_from_what_was_saved_behind_training(tmp_path: Path) -> None:
    for stage in STAGES:
        run_ranks(2, cut_off_and_resume, tmp_path / str(stage), stage, "bf16", random_cuts(6), False)


def test_resumes_alone(tmp_path: Path) -> None:
    run_ranks(1, cut_off_and_resume, tmp_path, 3, None, random_cuts(6), True, transport=SHARED_MEMORY)


def cut_between_backward_and_step(rank: int, directory: Path, stage: int) -> None:
    """The gradients are there again, to read, to save once more, and to step with, scaled as they are."""
    run, other = Run(rank, stage, "fp16", seed=0), Run(rank, stage, "fp16", seed=1)
    run.scaler.scale(run.model(run.data[0]).float().square().mean()).backward()
    run.save(directory / "first", wait=True)
    other.resume(directory / "first", 0)
    other.save(directory / "second", wait=True)
    first, second = (content_of(directory / name / "step_0") for name in ("first", "second"))
    assert len(first["gradients"]) == 6
    assert_same_content(second, first)
    for each in (run, other):
        gradients = [param.grad for param in each.model.parameters()]
        if stage < 2:
            expected = run.model[0].weight.grad
            assert torch.equal(gradients[0], expected)
        assert all(gradient is not None for gradient in gradients)
        each.scaler.step(each.optimizer)
        each.scaler.update()
    expected, actual = run.state(), other.state()
    assert torch.isfinite(expected["norm"])
    assert [name for name in expected if name != "random" and not torch.equal(actual[name], expected[name])] == []


@pytest.mark.parametrize("stage", STAGES)
def test_resumes_between_backward_and_step(stage: int, tmp_path: Path) -> None:
    run_ranks(2, cut_between_backward_and_step, tmp_path, stage)
