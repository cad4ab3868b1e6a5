"""One rank of one contender of checkpoints.py: trains a step, saves, loads. Started through torchrun.

saving_rank.py CONTENDER SIZE DEVICE FOLDER      writes FOLDER/rank<r>.json
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from contenders import Contender
from gpu.contenders import CONTENDERS, device_of
from gpu.records import Job, Row
from llama import SIZES, next_token_loss
from savers import SAVERS, Saver
from torch import distributed

CONTEXT = 64


class Training:
    """The same batch in every step."""

    def __init__(self, contender: Contender, job: Job) -> None:
        self._contender = contender
        seeded = torch.Generator().manual_seed(int(os.environ["RANK"]))
        shape = (1, job.row.context + 1)
        self._tokens = torch.randint(SIZES[job.row.size].vocabulary, shape, generator=seeded).to(device_of(job))

    def step(self) -> float:
        loss = next_token_loss(self._contender.forward(self._tokens[:, :-1]), self._tokens[:, 1:])
        self._contender.backward(loss)
        self._contender.update()
        return loss.item()


def timed(work: Callable[[], object]) -> float:
    distributed.barrier()
    begin = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def forget(folder: Path) -> None:
    """Takes the files out of the kernel's cache, where a run that begins anew would not find them; from a disk, that
    is, and not from a file system that has no other place."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def copied(device: torch.device, size: int) -> Callable[[], object]:
    """One copy to host memory that was written before; pinned where there is a device."""
    here = torch.zeros(size, dtype=torch.uint8, device=device)
    host = torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    return lambda: host.copy_(here)


def warm_up(saver: Saver, folder: Path) -> None:
    """Imports, thread pools, and host memory that is kept from one save behind training to the next."""
    saver.save(folder / "waited")
    saver.load(folder / "waited")
    shutil.rmtree(folder / "waited", ignore_errors=True)  # another rank may have been first
    if saver.behind is not None:
        saver.behind(folder / "behind")()
        shutil.rmtree(folder / "behind", ignore_errors=True)


def measure(name: str, job: Job, folder: Path) -> dict[str, float]:
    contender_name, make = SAVERS[name]
    contender = CONTENDERS[contender_name](job)
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    training, saver = Training(contender, job), make(contender)
    training.step()
    warm_up(saver, folder / "first")
    found = {"save": timed(lambda: saver.save(folder / "waited"))}
    expected = [training.step() for _ in range(2)]
    forget(folder / "waited")
    found["load"] = timed(lambda: saver.load(folder / "waited"))
    if (losses := [training.step() for _ in range(2)]) != expected:
        raise RuntimeError(f"{name}: behind the load the losses are {losses}, behind the save they were {expected}")
    found["bytes"] = bytes_below(folder / "waited")
    found["stall"] = float("nan")
    if saver.behind is not None:
        waits: list[Callable[[], object]] = []
        found["stall"] = timed(lambda: waits.append(saver.behind(folder / "behind")))
        waits[0]()
    size = int(found["bytes"]) // distributed.get_world_size()
    found["copy"] = timed(copied(device_of(job), size))
    return found


def main() -> None:
    name, size, device, folder = sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.use_deterministic_algorithms(True)
        # Else what saves and loads allocate would be written once more within their times.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    precision = "bf16" if device == "cuda" else "fp32"
    contender = SAVERS[name][0]
    job = Job(contender, Row(size, 1, CONTEXT), 0, 1, seed=1, lr=3e-4, device=device, precision=precision)
    found = measure(name, job, folder)
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
