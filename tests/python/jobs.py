"""Jobs whose ranks end by themselves, as those of a user do: their exit codes, and what they wrote to stderr."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ranks import FORK, die_with_parent, free_port

STDERR = 2


@dataclass(frozen=True)
class End:
    """How a rank ended."""

    code: int
    text: str

    @property
    def last_line(self) -> str:
        return self.text.strip().rpartition("\n")[2]

    @property
    def error(self) -> str:
        """The class of the error that ended it; empty if none did."""
        name = self.last_line.partition(":")[0]
        return name.rpartition(".")[2] if self.code > 0 else ""


class Job:
    """Ranks at work: `script(rank, *args)` is all that each does, in a process forked from this one."""

    def __init__(self, folder: Path, world_size: int, script: Callable[..., None], *args: Any, patience: float) -> None:
        environment = {
            "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
            "ALIQUOT_PATIENCE": str(patience), "ALIQUOT_DEBUG": "",
        }  # fmt: skip
        self._outputs = [folder / f"rank{rank}" for rank in range(world_size)]
        self._processes = [
            FORK.Process(target=_live, args=(rank, environment, self._outputs[rank], script, args))
            for rank in range(world_size)
        ]
        for process in self._processes:
            process.start()

    def send(self, rank: int, number: int) -> None:
        pid = self._processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def ends(self, ranks: Iterator[int] | list[int], timeout: float) -> dict[int, End]:
        """Waits for these ranks, and fails if they take longer."""
        deadline = time.monotonic() + timeout
        ends = {}
        for rank in ranks:
            self._processes[rank].join(max(0.0, deadline - time.monotonic()))
            code = self._processes[rank].exitcode
            text = self._outputs[rank].read_text()
            assert code is not None, f"rank {rank} did not end in {timeout} s:\n{text}"
            ends[rank] = End(code, text)
        return ends

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


@contextmanager
def started(world_size: int, script: Callable[..., None], *args: Any, patience: float = 10.0) -> Iterator[Job]:
    """A job, of which nothing outlives the block."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), world_size, script, *args, patience=patience)
        try:
            yield job
        finally:
            job.kill()


def _live(rank: int, environment: dict[str, str], output: Path, script: Callable[..., None], args: Any) -> None:
    die_with_parent()
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), STDERR)
    sys.stderr = os.fdopen(STDERR, "w", buffering=1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    os.environ.update(environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    script(rank, *args)
