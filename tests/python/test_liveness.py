"""Faults of one rank, at each place of a training loop: every rank ends soon, by the right error, and says whose it is.

docs/design.md, "The control channel". `make faults` runs the long form.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import aliquot
import aliquot.world
import pytest
import torch
from aliquot import _core
from aliquot.checkpoint.catalog import latest_checkpoint
from aliquot.checkpoint.reading import Reading
from jobs import End, started
from models import WIDTH, Chain
from torch import Tensor
from torch.autograd import Function

CHECKPOINT_PLACES = ("save", "load")
PLACES = ("init", "forward", "backward", "step", *CHECKPOINT_PLACES)
TRANSPORTS = ("shared_memory", "process_group")
WORLD_SIZE = int(os.environ.get("ALIQUOT_FAULT_RANKS", "2"))
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


def fail() -> NoReturn:
    raise BadBatchError("too long for this model")


def fail_as_disks_do(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


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
    """Has a fault in its middle, once `place` says where; or leaves something out, once `skipped` says what."""

    place = ""
    skipped = ""
    fault = staticmethod(fail)

    def forward(self, x: Tensor, order: Any = None) -> Tensor:
        x = self.first(x)
        x = self.middle(x)
        if self.place == "forward":
            self.fault()
        if self.place == "backward":
            x = InBackward.apply(x, self.fault)
        return self.last(self.blocks[1](x))

    def middle(self, x: Tensor) -> Tensor:
        if self.skipped == "forward":
            return x
        return x + self.blocks[0](x).detach() if self.skipped == "backward" else self.blocks[0](x)

    def set_trap(self, place: str, fault: Callable[[], None] | None) -> None:
        """`fault`: what happens at that place of this process; None: it is left out."""
        if fault is None:
            self.skipped = place
            return
        self.place, self.fault = place, fault  # type: ignore[method-assign]
        if place == "save":
            _core.write_shard_file = lambda *_: fault()  # type: ignore[assignment, return-value]
        if place == "load":
            Reading.run = lambda *_: fault()  # type: ignore[method-assign]


def train(
    rank: int, transport: str, culprit: int, place: str, fault: Callable[[], None] | None, directory: Path | None = None
) -> None:
    """Two good steps, then the fault of one rank, unless that comes before; the others would go on for long.

    `directory`: where each step is saved; for the place "load" it is loaded again.
    """
    if rank == culprit and place == "init" and fault is not None:
        aliquot.world.require_same = lambda *_: fault()
    aliquot.init(transport=transport, timeout=60.0)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = Trapped()
    aliquot.shard(model)
    optimizer = aliquot.AdamW(model)
    for step in range(100_000):
        if rank == culprit and step == 2:
            model.set_trap(place, fault)
        model(torch.ones(2, WIDTH)).square().mean().backward()
        if model.place == "step":
            model.fault()
        if model.skipped != "step":
            optimizer.step()
        optimizer.zero_grad()
        if directory is not None and model.skipped != "save":
            aliquot.save_checkpoint(directory, model, optimizer, step=step, keep=1)
        if directory is not None and place == "load" and model.skipped != "load":
            aliquot.load_checkpoint(directory, model, optimizer)


def cases(places: tuple[str, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("transport", "place", "culprit"),
        [
            pytest.param(transport, place, culprit, id=f"{transport}-{place}-{culprit}")
            for transport in TRANSPORTS
            for place in places
            for culprit in range(WORLD_SIZE)
        ],
    )


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


@pytest.fixture
def directory(place: str, tmp_path: Path) -> Iterator[Path | None]:
    """For checkpoints, where they matter. The latest is whole afterwards."""
    if place not in CHECKPOINT_PLACES:
        yield None
        return
    yield tmp_path
    assert latest_checkpoint(tmp_path).manifest.step >= 1


@cases(PLACES)
def test_a_killed_rank(transport: str, place: str, culprit: int, directory: Path | None) -> None:
    with started(WORLD_SIZE, train, transport, culprit, place, kill, directory) as job:
        for end in job.ends(others(culprit), SECONDS).values():
            assert_names(end, culprit, "is gone")


@cases(PLACES[:4])
def test_a_rank_that_raises(transport: str, place: str, culprit: int) -> None:
    with started(WORLD_SIZE, train, transport, culprit, place, fail) as job:
        ends = job.ends(list(range(WORLD_SIZE)), SECONDS)
        assert ends[culprit].error == "BadBatchError"
        for rank in others(culprit):
            assert_names(ends[rank], culprit, "BadBatchError: too long for this model")


def assert_all_refuse(
    transport: str, place: str, culprit: int, directory: Path, fault: Callable[[], None], words: str
) -> None:
    """Every rank has the same CheckpointError, which quotes the culprit's, and nothing is left of what failed."""
    with started(WORLD_SIZE, train, transport, culprit, place, fault, directory) as job:
        for end in job.ends(list(range(WORLD_SIZE)), SECONDS).values():
            assert (end.code, end.error) == (1, "CheckpointError"), end.text
            assert end.last_line.endswith(f"rank {culprit}: {words}")
    assert [path.name for path in directory.iterdir()] == ["step_1" if place == "save" else "step_2"]


@cases(CHECKPOINT_PLACES)
def test_a_rank_that_raises_in_a_checkpoint(transport: str, place: str, culprit: int, directory: Path) -> None:
    words = "BadBatchError: too long for this model"
    assert_all_refuse(transport, place, culprit, directory, fail, words)


@pytest.mark.parametrize(("place", "number"), [("save", errno.ENOSPC), ("load", errno.EIO)])
@pytest.mark.parametrize("culprit", range(WORLD_SIZE))
def test_a_disk_that_fails_on_one_rank(place: str, culprit: int, directory: Path, number: int) -> None:
    """By the file system's word; tests/faults has a disk that fails at each single call."""
    words = f"OSError: [Errno {number}] {os.strerror(number)}"
    assert_all_refuse("shared_memory", place, culprit, directory, partial(fail_as_disks_do, number), words)


@cases(PLACES)
def test_a_frozen_rank(transport: str, place: str, culprit: int, directory: Path | None) -> None:
    """It also learns of it when it wakes, and blames nobody else."""
    with started(WORLD_SIZE, train, transport, culprit, place, freeze, directory, patience=PATIENCE) as job:
        for end in job.ends(others(culprit), SECONDS).values():
            assert_names(end, culprit, "is frozen")
        job.send(culprit, signal.SIGCONT)
        assert_names(job.ends([culprit], SECONDS)[culprit], culprit, "is frozen")


def assert_disagree(ends: dict[int, End], culprit: int) -> None:
    """Each rank names two, and what they do."""
    for end in ends.values():
        assert end.code == 1
        assert end.error in ("CommunicatorError", "PeerLost"), end.text  # a rank that ends first is quoted
        assert re.search(r"ranks (disagree|took different paths)", end.last_line), end.text
        assert len(named := set(re.findall(r"rank \d", end.last_line))) == 2, end.text
        assert f"rank {culprit}" in named


@pytest.mark.parametrize("place", ["forward", "backward"])
@pytest.mark.parametrize("culprit", range(WORLD_SIZE))
def test_a_rank_that_skips_a_module(place: str, culprit: int) -> None:
    """Where it can't be right; `test_different_paths.py` is about where it can."""
    with started(WORLD_SIZE, train, "process_group", culprit, place, None) as job:
        ends = job.ends(list(range(WORLD_SIZE)), SECONDS)
        assert_disagree(ends, culprit)
        for end in ends.values():
            assert len(set(re.findall(r"unit '([^']+)'", end.last_line))) == 2, end.text


@cases(("step", *CHECKPOINT_PLACES))
def test_a_rank_that_skips_a_call(transport: str, place: str, culprit: int, directory: Path | None) -> None:
    """Of step, of save_checkpoint or of load_checkpoint; it goes on to train."""
    with started(WORLD_SIZE, train, transport, culprit, place, None, directory) as job:
        assert_disagree(job.ends(list(range(WORLD_SIZE)), SECONDS), culprit)


def stay_away(rank: int, culprit: int) -> None:
    if rank != culprit:
        aliquot.init(timeout=2.0)


@pytest.mark.parametrize("culprit", range(WORLD_SIZE))
def test_a_rank_that_does_not_come(culprit: int) -> None:
    with started(WORLD_SIZE, stay_away, culprit) as job:
        for end in job.ends(others(culprit), SECONDS).values():
            assert_names(end, culprit, "waited for all ranks to join, in vain", f"not arrived: rank {culprit}")


def differ(rank: int, transport: str, culprit: int, what: str, directory: Path) -> None:
    other = rank == culprit
    started_as = {"shared_memory": "process_group", "process_group": "shared_memory"}[transport]
    aliquot.init(transport=started_as if other and what == "transport" else transport)  # type: ignore[arg-type]
    model = Chain(depth=3 if other and what == "depth" else 2)
    aliquot.shard(model, stage=2 if other and what == "stage" else 3)
    optimizer = aliquot.AdamW(model, lr=2.0 if other and what == "lr" else 1.0)
    for step in (1, 2):
        aliquot.save_checkpoint(directory, model, optimizer, step=step, keep=5 if other and what == "save" else 4)
    aliquot.load_checkpoint(directory, model, optimizer, step=1 if other and what == "load" else 2)


CALLS = r"ranks disagree about a checkpoint: rank 0 calls \['{0}_checkpoint', .*, rank \d \['{0}_checkpoint'"
DIFFERENCES = {
    "transport": r"ranks are started differently: rank 0 has 'transport '\w+'', rank \d has 'transport '\w+''",
    "depth": r"ranks shard different models: rank 0 has 'unit .*', rank \d has 'unit .*'",
    "stage": r"ranks shard different models: rank 0 has 'stage \d.*', rank \d has 'stage \d.*'",
    "lr": r"ranks make different optimizers: rank 0 has .*'lr': \d.*, rank \d has .*'lr': \d",
    "save": CALLS.format("save"),
    "load": CALLS.format("load"),
}


@pytest.mark.parametrize("culprit", range(WORLD_SIZE))
@pytest.mark.parametrize("what", DIFFERENCES)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_rank_that_is_configured_differently(transport: str, what: str, culprit: int, tmp_path: Path) -> None:
    kind = "CheckpointError" if what in CHECKPOINT_PLACES else "CommunicatorError"
    with started(WORLD_SIZE, differ, transport, culprit, what, tmp_path) as job:
        for end in job.ends(list(range(WORLD_SIZE)), SECONDS).values():
            assert (end.code, end.error) == (1, kind), end.text
            assert re.search(DIFFERENCES[what], end.last_line), end.text
