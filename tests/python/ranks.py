"""Runs a function on several ranks: processes forked from the warmed test process, so a start costs milliseconds.

The parent must not run torch's threads before it forks, hence the one thread; nor may it import torch in the children.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import aliquot
import torch
import torch._dynamo
import torch.distributed

torch.set_num_threads(1)
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Transport:
    name: str
    poison: bool = False
    """Released slots are filled with NaN, so that whoever reads one does not pass by luck."""
    hosts: int = 1
    """How many hosts the ranks take themselves to be on, as many on each."""
    gpus: bool = False
    """Of `hierarchical`, which is of either: whether it joins GPUs."""

    def __str__(self) -> str:
        return self.name + "-poison" * self.poison + f"-{self.hosts}-hosts" * (self.hosts > 1)


SHARED_MEMORY = Transport("shared_memory")
SHARED_MEMORY_POISONED = Transport("shared_memory", poison=True)
PROCESS_GROUP = Transport("process_group", poison=True)
HIERARCHICAL = Transport("hierarchical", poison=True, hosts=2)
PEER = Transport("peer")
PEER_POISONED = Transport("peer", poison=True)
NCCL = Transport("nccl")
NCCL_POISONED = Transport("nccl", poison=True)
TRANSPORTS = (SHARED_MEMORY, SHARED_MEMORY_POISONED, PROCESS_GROUP)


class RankError(AssertionError):
    """Some ranks raised, died or did not end in time; the text holds what each of them said."""


@dataclass
class _Process:
    process: Any
    pipe: Connection
    killed: bool = False


class Ranks:
    """Ranks at work: `fn(rank, *args)` in each, `aliquot.init` called before it unless `transport` is None."""

    def __init__(self, world_size: int, fn: Callable[..., Any], *args: Any, transport: Transport | None) -> None:
        job = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        transport = _on_hosts(transport, world_size)
        self._ranks = [_start(rank, job, fn, args, transport) for rank in range(world_size)]

    def kill(self, rank: int) -> float:
        """Kills it as the kernel would for want of memory; returns the time of death on the monotonic clock."""
        self._ranks[rank].killed = True
        self._ranks[rank].process.kill()
        return time.monotonic()

    def results(self, timeout: float) -> list[Any]:
        """What each rank returned, in rank order; None for a killed one."""
        answers = self.answers(timeout)
        _raise_failures(answers)
        return [answers[rank][1] if rank in answers else None for rank in range(len(self._ranks))]

    def answers(self, timeout: float, after_a_failure: float = 3.0) -> dict[int, tuple[bool, Any]]:
        """Of each rank that this job did not kill: whether it returned, and what; else why it did not.

        `after_a_failure`: seconds that the others have when one has failed.
        """
        deadline = time.monotonic() + timeout
        answers: dict[int, tuple[bool, Any]] = {}
        pending = {r.pipe: rank for rank, r in enumerate(self._ranks) if not r.killed}
        while pending and (ready := wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))):
            for pipe in ready:
                rank = pending.pop(pipe)  # type: ignore[arg-type]
                answers[rank] = self._receive(rank)
                if not answers[rank][0]:  # the others are likely to fail too: hear them, but not for long
                    deadline = min(deadline, time.monotonic() + after_a_failure)
        answers.update((rank, (False, "did not end in time")) for rank in pending.values())
        return answers

    def await_first(self, timeout: float) -> bool:
        """Returns when a rank has returned, raised or died; False if none has in time."""
        return bool(wait([r.pipe for r in self._ranks], timeout))

    def _receive(self, rank: int) -> tuple[bool, Any]:
        try:
            ok, value = pickle.loads(self._ranks[rank].pipe.recv_bytes())
            return ok, value
        except EOFError:
            self._ranks[rank].process.join()
            return False, f"died with exit code {self._ranks[rank].process.exitcode}"

    def exit_codes(self, timeout: float) -> list[int | None]:
        """Lets the ranks go, and says how their processes ended; None for one that did not in time."""
        deadline = time.monotonic() + timeout
        for r in self._ranks:
            r.pipe.close()
        for r in self._ranks:
            r.process.join(max(0.0, deadline - time.monotonic()))
        return [r.process.exitcode for r in self._ranks]

    def end(self) -> None:
        for r in self._ranks:
            r.process.kill()
            r.process.join()
            r.pipe.close()


@contextlib.contextmanager
def started(world_size: int, fn: Callable[..., Any], *args: Any, transport: Transport | None) -> Iterator[Ranks]:
    """The ranks of a job, for tests that interfere with them; none of them outlives the block."""
    ranks = Ranks(world_size, fn, *args, transport=transport)
    try:
        yield ranks
    finally:
        ranks.end()


def run_ranks(
    world_size: int,
    fn: Callable[..., Any],
    *args: Any,
    transport: Transport | None = SHARED_MEMORY,
    timeout: float = 60.0,
) -> list[Any]:
    """Results of `fn(rank, *args)` in rank order. Raises RankError with the ranks' tracebacks."""
    with started(world_size, fn, *args, transport=transport) as ranks:
        return ranks.results(timeout)


def _start(
    rank: int, job: dict[str, str], fn: Callable[..., Any], args: tuple[Any, ...], transport: Transport | None
) -> _Process:
    here, there = FORK.Pipe()
    environment = job | {"RANK": str(rank), "LOCAL_RANK": str(_gpu(rank, transport, int(job["WORLD_SIZE"])))}
    process = FORK.Process(target=_work, args=(rank, environment, fn, args, transport, here, there), daemon=True)
    process.start()
    there.close()  # so that the end of the rank is the end of the file
    return _Process(process, here)


def _on_hosts(transport: Transport | None, world_size: int) -> Transport | None:
    """NCCL gives a GPU to one rank of a host only: where there are too few, each rank plays a host."""
    if transport is None or transport.name != "nccl" or torch.cuda.device_count() >= world_size:
        return transport
    return replace(transport, hosts=world_size)


def _gpu(rank: int, transport: Transport | None, world_size: int) -> int:
    """Each host that is played has all GPUs, and ranks of `peer` share them where there are too few."""
    if transport is None:
        return rank
    place = rank % (world_size // transport.hosts)
    return place % max(1, torch.cuda.device_count()) if transport.name == "peer" or transport.gpus else place


def _work(
    rank: int,
    environment: dict[str, str],
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    transport: Transport | None,
    parents_end: Connection,
    pipe: Connection,
) -> None:
    parents_end.close()
    die_with_parent()
    torch.set_num_threads(1)  # makes torch's threads anew, before several of autograd's would do so at once
    os.environ.update(environment)
    try:
        if transport is not None:
            os.environ["ALIQUOT_DEBUG"] = "poison" if transport.poison else ""
            if transport.hosts > 1:
                play_host(rank * transport.hosts // int(environment["WORLD_SIZE"]))
            if transport.name == "hierarchical" and not transport.gpus:
                aliquot.gpu.usable = lambda index: False
            torch.set_default_device(aliquot.init(transport=transport.name, timeout=20.0).device)
        answer = (True, fn(rank, *args))
    except BaseException:  # pytest's own outcomes among them
        answer = (False, traceback.format_exc())
    pipe.send_bytes(pickle.dumps(answer))  # not pipe.send(): torch would send tensors as handles of shared memory
    with contextlib.suppress(EOFError, ConnectionResetError):
        pipe.recv_bytes()  # stay until the parent ends the job: rank 0 may hold the store that the others talk to


def play_host(number: int) -> None:
    """Takes this rank to be on a host of that number. NCCL believes it too, and goes through sockets."""
    host = f"host{number}"
    os.environ.update(ALIQUOT_HOST_ID=host, NCCL_HOSTID=host, NCCL_P2P_DISABLE="1", NCCL_SHM_DISABLE="1")


def die_with_parent() -> None:
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


_RESERVED: deque[socket.socket] = deque()
_MOST_RESERVED = 64


def free_port() -> int:
    """No other job of this machine is given it: it stays bound here for some jobs more, so that rank 0 can listen."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    _RESERVED.append(reserved)
    if len(_RESERVED) > _MOST_RESERVED:
        _RESERVED.popleft().close()
    return int(reserved.getsockname()[1])


def _raise_failures(answers: dict[int, tuple[bool, Any]]) -> None:
    failures = [f"rank {rank}: {text}" for rank, (ok, text) in sorted(answers.items()) if not ok]
    if failures:
        raise RankError("\n".join(failures))
