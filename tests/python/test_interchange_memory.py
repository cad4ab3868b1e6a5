"""A model goes out and comes in with about one of its tensors in memory."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import aliquot
import pytest
import torch
from aliquot.__main__ import main
from ranks import run_ranks
from torch import nn

COUNT = 16
WIDTH = 1448
TENSOR = 4 * WIDTH * WIDTH
M_MMAP_THRESHOLD = -3
SLACK = 8 << 20
"""For buffers of files and what Python needs."""


def model() -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(COUNT)))


def resident(what: str) -> int:
    """VmRSS or VmHWM, in bytes."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def give_back_at_once() -> None:
    """Lets memory of a tensor go to the system when it is freed, so that what is resident is what is in use."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


def peak(work: Callable[[], Any]) -> int:
    """How much the resident set was larger meanwhile than before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def growth(rank: int, work: Callable[[Any, Path], None], folders: tuple[Path, Path]) -> int:
    """By the second of two folders: what is imported and set up by the first does not count."""
    give_back_at_once()
    sharded = aliquot.shard(model())
    work(sharded, folders[0])
    return peak(lambda: work(sharded, folders[1]))


@pytest.mark.parametrize("save", [aliquot.save_pretrained, aliquot.save_dcp])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_model_is_saved_unit_by_unit(save: Callable[..., None], dtype: Any, tmp_path: Path) -> None:
    folders = (tmp_path / "warm", tmp_path / "out")
    (grown,) = run_ranks(1, growth, partial(save, dtype=dtype), folders)
    assert grown < 3 * TENSOR + SLACK


WAYS = [(aliquot.save_pretrained, aliquot.load_pretrained), (aliquot.save_dcp, aliquot.load_dcp)]


@pytest.mark.parametrize(("save", "load"), WAYS)
def test_a_model_is_loaded_tensor_by_tensor(
    save: Callable[..., None], load: Callable[..., None], tmp_path: Path
) -> None:
    run_ranks(1, lambda rank: save(aliquot.shard(model()), tmp_path / "out"))
    (grown,) = run_ranks(1, growth, load, (tmp_path / "out", tmp_path / "out"))
    assert grown < 3 * TENSOR + SLACK


COMMANDS = {
    "export": ["export", "checkpoints", "out"],
    "export to dcp": ["export", "checkpoints", "out", "--format", "dcp"],
    "reshard": ["reshard", "checkpoints", "--files", "3"],
    "verify": ["verify", "checkpoints"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_work_tensor_by_tensor(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(rank: int) -> None:
        aliquot.save_checkpoint(tmp_path / "checkpoints", aliquot.shard(model()), step=1)

    def run(rank: int) -> int:
        give_back_at_once()
        main(["checkpoint", *("warm" if word == "out" else word for word in COMMANDS[name])])
        return peak(lambda: main(["checkpoint", *COMMANDS[name]]))

    monkeypatch.chdir(tmp_path)
    run_ranks(2, save)
    (grown,) = run_ranks(1, run, transport=None)
    threads = 8 * (4 << 20) if name == "verify" else 0
    assert grown < 3 * TENSOR + SLACK + threads
