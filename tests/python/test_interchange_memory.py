"""A model goes out and comes in with about one of its tensors in memory."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
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
SLACK = 8 << 20
"""For buffers of files and what Python needs."""


def model() -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(COUNT)))


def resident(what: str) -> int:
    """VmRSS or VmHWM, in bytes."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def peak(work: Callable[[], Any]) -> int:
    """How much the resident set was larger meanwhile than before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def growth(rank: int, work: Callable[[Any, Path], Any], folder: Path) -> int:
    sharded = aliquot.shard(model())
    aliquot.save_pretrained(sharded, folder / "warm")
    return peak(lambda: work(sharded, folder))


@pytest.mark.parametrize("save", [aliquot.save_pretrained, aliquot.save_dcp])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_model_is_saved_unit_by_unit(save: Callable[..., None], dtype: Any, tmp_path: Path) -> None:
    (grown,) = run_ranks(1, growth, lambda model, folder: save(model, folder / "out", dtype=dtype), tmp_path)
    assert grown < 3 * TENSOR + SLACK


@pytest.mark.parametrize("load", [aliquot.load_pretrained, aliquot.load_dcp])
def test_a_model_is_loaded_tensor_by_tensor(load: Callable[..., None], tmp_path: Path) -> None:
    def save(rank: int) -> None:
        sharded = aliquot.shard(model())
        (aliquot.save_pretrained if load is aliquot.load_pretrained else aliquot.save_dcp)(sharded, tmp_path / "out")

    run_ranks(1, save)
    (grown,) = run_ranks(1, growth, lambda model, folder: load(model, folder / "out"), tmp_path)
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
        main(["checkpoint", *("warm" if word == "out" else word for word in COMMANDS[name])])
        return peak(lambda: main(["checkpoint", *COMMANDS[name]]))

    monkeypatch.chdir(tmp_path)
    run_ranks(2, save)
    (grown,) = run_ranks(1, run, transport=None)
    threads = 8 * (4 << 20) if name == "verify" else 0
    assert grown < 3 * TENSOR + SLACK + threads
