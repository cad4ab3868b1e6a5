"""Runs a contender in fresh processes, one per rank, within a time limit.

They are forked from this process, which has imported torch but never touches a GPU: so each starts at once, and what
it holds of the GPU is its own. `spawn` starts them from nothing instead, which costs the import of torch every time.
"""

from __future__ import annotations

import atexit
import faulthandler
import os
import socket
import time
import traceback
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gpu.rank import train
from gpu.records import FLOOR, Job, RankRecord, Run

LAST_WORDS = 4000  # characters of what the ranks printed that a failure shows


def run_job(job: Job, ranks: int, timeout: float, start: str) -> Run:
    """A contender that fails is a run without records: it may not fit, and the others are still worth measuring."""
    ranks = 1 if job.contender == FLOOR else ranks
    with TemporaryDirectory() as name:
        folder = Path(name)
        environment = {
            "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()),
            "DS_ACCELERATOR": job.device, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        context: Any = get_context(start)
        inputs = (environment, folder, timeout)
        processes = [context.Process(target=_enter, args=(job, rank, *inputs), daemon=True) for rank in range(ranks)]
        for process in processes:
            process.start()
        in_time = _await_all(processes, timeout)
        if all(process.exitcode == 0 for process in processes):
            return Run([RankRecord.read(folder / f"rank{rank}.json") for rank in range(ranks)])
        return Run(failure=_reason(folder) if in_time else f"not done after {timeout:.0f} s\n{_last_words(folder)}")


def _await_all(processes: list[BaseProcess], timeout: float) -> bool:
    """Waits until all have ended, one has failed, or the time is up (False); ends those that are left."""
    deadline = time.monotonic() + timeout
    running = list(processes)
    while running and all(process.exitcode in (None, 0) for process in processes) and time.monotonic() < deadline:
        wait([process.sentinel for process in running], timeout=max(0.0, deadline - time.monotonic()))
        running = [process for process in processes if process.exitcode is None]
    in_time = time.monotonic() < deadline
    for process in running:
        process.kill()
    for process in processes:
        process.join()
    return in_time


def _enter(job: Job, rank: int, environment: dict[str, str], folder: Path, timeout: float) -> None:
    """Where a rank's process begins."""
    atexit._clear()  # what the parent does at its end
    output = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.dump_traceback_later(0.95 * timeout)  # where it hangs, should it be ended for being late
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)  # as torchrun has it
    try:
        train(job, rank).write(folder / f"rank{rank}.json")
    except Exception as error:
        (folder / f"rank{rank}.error").write_text(f"{type(error).__name__}: {error}")
        traceback.print_exc()
        raise SystemExit(1) from None
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    atexit._run_exitfuncs()  # a library's good-byes: multiprocessing skips them


def _reason(folder: Path) -> str:
    """What the first rank that raised an error says; a rank that was killed says nothing."""
    for error in sorted(folder.glob("rank*.error"), key=lambda path: path.stat().st_mtime_ns):
        return f"{error.read_text()}\n{_last_words(folder, error.stem)}"
    return f"a rank was killed\n{_last_words(folder)}"


def _last_words(folder: Path, rank: str = "rank*") -> str:
    return "\n".join(path.read_text(errors="replace")[-LAST_WORDS:] for path in sorted(folder.glob(f"{rank}.log")))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
