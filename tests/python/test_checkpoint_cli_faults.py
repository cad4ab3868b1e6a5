"""Whatever ends or fails in a command, at whichever call, there is the checkpoint of before or the one of after."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import aliquot
import pytest
import torch
from aliquot.__main__ import main
from aliquot.checkpoint import folder
from checkpoints import assert_same_content, content_of
from ranks import RankError, run_ranks
from torch import nn

CALLS = ("open", "write", "pwrite", "fsync", "posix_fallocate", "mkdir", "rename", "unlink", "rmdir")
"""Those of `os` that a command changes something by, or waits for the disk with."""


def save(rank: int, directory: Path) -> None:
    torch.manual_seed(0)
    model = aliquot.shard(nn.Linear(5, 3))
    for step in (1, 2):
        aliquot.save_checkpoint(directory, model, step=step)


def die() -> NoReturn:
    os._exit(9)


def fail() -> NoReturn:
    raise OSError(errno.EIO, "Input/output error")


def run(rank: int, number: int, fault: Callable[[], NoReturn], arguments: list[str]) -> tuple[int, bool]:
    """With a fault at that call. Returns the exit code, and whether it came to that."""
    calls = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                fault()
            return call(*args, **kwargs)

        return wrapped

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    return main(["checkpoint", *arguments]), calls >= number


def run_with_fault(number: int, fault: Callable[[], NoReturn], *arguments: object) -> tuple[int, bool]:
    """In a process of its own."""
    try:
        ((code, came),) = run_ranks(1, run, number, fault, list(map(str, arguments)), transport=None)
    except RankError as error:
        if "died with exit code 9" not in str(error):
            raise
        return 9, True
    return code, came


@pytest.mark.parametrize("fault", [die, fail])
def test_resharding_loses_nothing(fault: Callable[[], NoReturn], tmp_path: Path) -> None:
    run_ranks(2, save, tmp_path)
    before = content_of(tmp_path / "step_2")
    for number in count(1):
        code, came = run_with_fault(number, fault, "reshard", tmp_path, "--files", 1 + number % 3)
        assert_same_content(content_of(tmp_path / "step_2"), before)
        assert folder.steps(tmp_path) == [2, 1]
        assert main(["checkpoint", "verify", str(tmp_path)]) == 0
        if not came:
            break
        for draft in folder.drafts(tmp_path):
            folder.discard(draft)
    assert code == 0
    assert number > 20


@pytest.mark.parametrize("fault", [die, fail])
@pytest.mark.parametrize("to", ["safetensors", "dcp"])
def test_an_export_is_there_as_a_whole_or_not_at_all(to: str, fault: Callable[[], NoReturn], tmp_path: Path) -> None:
    run_ranks(1, save, tmp_path)
    whole: set[str] = set()
    for number in (*range(1, 60, 3), 10_000):
        out = tmp_path / f"out {number}"
        code, came = run_with_fault(number, fault, "export", tmp_path, out, "--format", to)
        found = {path.name for path in out.iterdir()} if out.exists() else set()
        whole = whole or found
        assert found in (set(), whole)
        assert bool(found) >= (code == 0)
    assert (code, came) == (0, False)
    assert found == whole != set()


@pytest.mark.parametrize("fault", [die, fail])
def test_pruning_takes_whole_checkpoints(fault: Callable[[], NoReturn], tmp_path: Path) -> None:
    for number in count(1):
        directory = tmp_path / str(number)
        run_ranks(1, save, directory)
        before = content_of(directory / "step_2")
        code, came = run_with_fault(number, fault, "prune", directory, "--keep", 1)
        assert folder.steps(directory) in ([2, 1], [2])
        assert main(["checkpoint", "verify", str(directory)]) == 0
        assert_same_content(content_of(directory / "step_2"), before)
        if not came:
            break
    assert code == 0
    assert folder.steps(directory) == [2]
    assert folder.drafts(directory) == []
    assert number > 3
