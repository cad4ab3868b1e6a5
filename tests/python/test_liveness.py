"""Faults of one rank, at each place of a training loop: every rank ends soon, by the right error, and says whose it is.

docs/design.md, "The control channel". `make faults` runs the long form.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aliquot
import aliquot.world
import pytest
import torch
from jobs import End, started
from models import WIDTH, Chain
from torch import Tensor
from torch.autograd import Function

PLACES = ("init", "forward", "backward", "step")
TRANSPORTS = ("shared_memory", "process_group")
PATIENCE = 1.5
"""Seconds, so that a frozen rank costs a test little."""
SECONDS = 15.0
SHARED_MEMORY_FILES = Path("/dev/shm")


class BadBatchError(Exception):
    pass


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def fail() -> None:
    raise BadBatchError("too long for this model")


class InBackward(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fault: Callable[[], None]) -> Tensor:
        ctx.fault = fault
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        ctx.fault()
        return gradient, None


class Trapped(Chain):
    """Has a fault in its middle, once `place` says where."""

    place = ""
    fault = staticmethod(fail)

    def forward(self, x: Tensor, order: Any = None) -> Tensor:
        x = self.first(x)
        if self.place != "skip":
            x = self.blocks[0](x)
        if self.place == "forward":
            self.fault()
        if self.place == "backward":
            x = InBackward.apply(x, self.fault)
        return self.last(self.blocks[1](x))


def train(rank: int, transport: str, culprit: int, place: str, fault: Callable[[], None]) -> None:
    """Two good steps, then the fault of one rank, unless that comes before; the others would go on for long."""
    if rank == culprit and place == "init":
        aliquot.world.require_same = lambda *_: fault()
    aliquot.init(transport=transport, timeout=60.0)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = Trapped()
    aliquot.shard(model)
    optimizer = aliquot.AdamW(model)
    for step in range(100_000):
        if rank == culprit and step == 2:
            model.place, model.fault = place, fault  # type: ignore[method-assign]
        model(torch.ones(2, WIDTH)).square().mean().backward()
        if model.place == "step":
            fault()
        optimizer.step()
        optimizer.zero_grad()


def cases(count: int) -> list[Any]:
    return [
        pytest.param(transport, place, culprit, id=f"{transport}-{place}-{culprit}")
        for transport in TRANSPORTS
        for place in PLACES
        for culprit in range(count)
    ]


WORLD_SIZE = int(os.environ.get("ALIQUOT_FAULT_RANKS", "2"))


def assert_names(end: End, culprit: int, *words: str) -> None:
    assert end.error == "PeerLost", end.text
    assert end.code == 1
    for word in (f"rank {culprit}", *words):
        assert word in end.last_line, end.text


def others(culprit: int) -> list[int]:
    return [rank for rank in range(WORLD_SIZE) if rank != culprit]


def left_behind() -> set[Path]:
    """Semaphores are not the ranks' but those of whatever else runs on the machine."""
    return {path for path in SHARED_MEMORY_FILES.iterdir() if not path.name.startswith("sem.")}


@pytest.fixture(autouse=True, scope="module")
def nothing_left_behind() -> Iterator[None]:
    before, children = left_behind(), Path(f"/proc/self/task/{os.getpid()}/children")
    others = children.read_text()
    yield
    assert left_behind() <= before
    assert children.read_text() == others


@pytest.mark.parametrize(("transport", "place", "culprit"), cases(WORLD_SIZE))
def test_a_killed_rank(transport: str, place: str, culprit: int) -> None:
    with started(WORLD_SIZE, train, transport, culprit, place, kill) as job:
        for end in job.ends(others(culprit), SECONDS).values():
            assert_names(end, culprit, "is gone")


@pytest.mark.parametrize(("transport", "place", "culprit"), cases(WORLD_SIZE))
def test_a_rank_that_raises(transport: str, place: str, culprit: int) -> None:
    with started(WORLD_SIZE, train, transport, culprit, place, fail) as job:
        ends = job.ends(list(range(WORLD_SIZE)), SECONDS)
        assert ends[culprit].error == "BadBatchError"
        for rank in others(culprit):
            assert_names(ends[rank], culprit, "BadBatchError: too long for this model")


@pytest.mark.parametrize(("transport", "place", "culprit"), cases(WORLD_SIZE))
def test_a_frozen_rank(transport: str, place: str, culprit: int) -> None:
    """It also learns of it when it wakes, and blames nobody else."""
    with started(WORLD_SIZE, train, transport, culprit, place, freeze, patience=PATIENCE) as job:
        for end in job.ends(others(culprit), SECONDS).values():
            assert_names(end, culprit, "is frozen")
        job.send(culprit, signal.SIGCONT)
        assert_names(job.ends([culprit], SECONDS)[culprit], culprit, "is frozen")


@pytest.mark.parametrize("culprit", range(WORLD_SIZE))
def test_a_rank_that_skips_a_module(culprit: int) -> None:
    """Where it can't be right; `test_different_paths.py` is about where it can."""
    with started(WORLD_SIZE, train, "process_group", culprit, "skip", fail) as job:
        for end in job.ends(list(range(WORLD_SIZE)), SECONDS).values():
            assert end.code == 1
            assert end.error in ("CommunicatorError", "PeerLost"), end.text  # a rank that ends first is quoted
            named = set(re.findall(r"rank \d", end.last_line))
            assert len(named) == 2
            assert f"rank {culprit}" in named
            assert len(set(re.findall(r"unit '([^']+)'", end.last_line))) == 2, end.text


def differ(rank: int, transport: str, culprit: int, what: str) -> None:
    other = rank == culprit
    started_as = {"shared_memory": "process_group", "process_group": "shared_memory"}[transport]
    aliquot.init(transport=started_as if other and what == "transport" else transport)  # type: ignore[arg-type]
    model = Chain(depth=3 if other and what == "depth" else 2)
    aliquot.shard(model, stage=2 if other and what == "stage" else 3)
    aliquot.AdamW(model, lr=2.0 if other and what == "lr" else 1.0)


DIFFERENCES = {
    "transport": r"ranks are started differently: rank 0 has 'transport '\w+'', rank \d has 'transport '\w+''",
    "depth": r"ranks shard different models: rank 0 has 'unit .*', rank \d has 'unit .*'",
    "stage": r"ranks shard different models: rank 0 has 'stage \d.*', rank \d has 'stage \d.*'",
    "lr": r"ranks make different optimizers: rank 0 has .*'lr': \d.*, rank \d has .*'lr': \d",
}


@pytest.mark.parametrize("culprit", range(WORLD_SIZE))
@pytest.mark.parametrize("what", DIFFERENCES)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_rank_that_is_configured_differently(transport: str, what: str, culprit: int) -> None:
    with started(WORLD_SIZE, differ, transport, culprit, what) as job:
        for end in job.ends(list(range(WORLD_SIZE)), SECONDS).values():
            assert (end.code, end.error) == (1, "CommunicatorError"), end.text
            assert re.search(DIFFERENCES[what], end.last_line), end.text
