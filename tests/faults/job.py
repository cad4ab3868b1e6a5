"""The training whose checkpoints are put to the test, and what is found of it afterwards."""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import dataclass
from multiprocessing import RawArray
from pathlib import Path

import aliquot
import mutants
import shim
import torch
from aliquot.checkpoint import folder
from torch import nn

WORLD_SIZE = 2
PATIENCE = 20.0
"""Seconds that a rank waits for one that does not come; long enough for a machine on which others work. The dead are
known at once."""


@dataclass(frozen=True)
class Job:
    """Trains and saves behind each step, while something happens to the save of the last one."""

    directory: Path
    stage: int
    steps: int = 2
    keep: int | None = None
    wait: bool = True
    again: int = 1
    """How often each step is saved."""
    fault: shim.Fault = shim.NO_FAULT
    faulty: int = 0
    """The rank that meets it."""
    journal: Path | None = None
    mutant: str = ""


Steps = "ctypes.Array[ctypes.c_int64]"


class Progress:
    """What the ranks have come to, seen from outside even when they are dead."""

    def __init__(self) -> None:
        self.begun = RawArray(ctypes.c_int64, WORLD_SIZE)
        """The last step that each rank began to save."""
        self.saved = RawArray(ctypes.c_int64, WORLD_SIZE)
        """The last step that each rank was told is saved."""


class Small(nn.Module):
    """A rank's file of it has two chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Dropout(0.1), nn.Linear(1024, 640))
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        return self.layers(x)


def made(stage: int, seed: int = 1) -> tuple[nn.Module, aliquot.AdamW]:
    torch.manual_seed(seed)
    model = aliquot.shard(Small(), stage=stage)
    return model, aliquot.AdamW(model, lr=1e-2)


def train_step(model: nn.Module, opt: aliquot.AdamW, rank: int, step: int) -> None:
    torch.manual_seed(1000 * step + rank)
    model(torch.randn(2, 256)).square().sum().backward()
    opt.step()
    opt.zero_grad()


def run(rank: int, job: Job, progress: Progress) -> int:
    """Returns how many calls of this rank the shim counted in the save of the last step."""
    world = aliquot.init("shared_memory", timeout=PATIENCE)
    mutants.apply(job.mutant)
    model, opt = made(job.stage)
    for step in range(1, job.steps + 1):
        train_step(model, opt, rank, step)
        if step == job.steps:
            world.background.settle()  # so that the fault meets this save and not the one before
            progress.saved[rank] = step - 1
        fault = job.fault if rank == job.faulty and step == job.steps else shim.NO_FAULT
        with shim.fault(job.directory.parent, fault, job.journal, mutants.never_synced(job.mutant)):
            for _ in range(job.again):
                progress.begun[rank] = step
                aliquot.save_checkpoint(job.directory, model, opt, step=step, keep=job.keep, wait=job.wait)
                progress.saved[rank] = step if job.wait else step - 1
            if step == job.steps:
                train_step(model, opt, rank, step + 1)
                world.background.settle()
                progress.saved[rank] = step
            calls = shim.counted_calls()
    return calls


def load_again_and_again(rank: int, directory: Path, stage: int, times: int, progress: Progress) -> None:
    aliquot.init("shared_memory", timeout=PATIENCE)
    model, opt = made(stage)
    for number in range(times):
        progress.begun[rank] = number + 1
        aliquot.load_checkpoint(directory, model, opt)


def tree(directory: Path) -> dict[str, bytes]:
    """Every file's content; folders have none."""
    paths = (path for path in directory.rglob("*"))
    return {str(path.relative_to(directory)): path.read_bytes() if path.is_file() else b"" for path in paths}


def digest(model: nn.Module, opt: aliquot.AdamW) -> str:
    """Of everything that training changes, but that of the parameters only rank 0 tells. Collective."""
    found = aliquot.full_state_dict(model)
    found |= {f"{state.name} of {state.place.name}": state.value for state in opt.states()}
    found |= {f"scalars of {name}": torch.tensor(list(of.values())) for name, of in opt.scalars().items()}
    text = hashlib.sha256()
    for name, tensor in sorted(found.items()):
        text.update(name.encode() + tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return text.hexdigest()


@dataclass(frozen=True)
class Found:
    """What one rank found afterwards."""

    latest: int
    digests: dict[int, str]
    """Of every step that looks like a checkpoint."""
    saved_over: str
    """The digest of the latest, once it was saved and loaded again."""
    left: list[str]
    """What is in the directory after that save."""


def examine(rank: int, job: Job, step: int) -> Found:
    """Loads all there is; then saves the latest as `step`, keeping that alone, and loads it again."""
    aliquot.init()
    mutants.apply(job.mutant)
    model, opt = made(job.stage, seed=2)
    digests = {}
    for number in reversed(folder.steps(job.directory)):
        aliquot.load_checkpoint(job.directory, model, opt, step=number)
        digests[number] = digest(model, opt)
    latest = aliquot.load_checkpoint(job.directory, model, opt).step
    aliquot.save_checkpoint(job.directory, model, opt, step=step, keep=1)
    model, opt = made(job.stage, seed=3)
    aliquot.load_checkpoint(job.directory, model, opt)
    return Found(latest, digests, digest(model, opt), sorted(entry.name for entry in job.directory.iterdir()))
