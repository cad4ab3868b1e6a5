"""One rank of one contender: trains, and answers with a record of what it saw."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from byte_text import Windows, read_bytes, standard_library
from contenders import Contender
from llama import SIZES, next_token_loss
from torch import Tensor, nn

from gpu.clocks import Clock, clock
from gpu.contenders import CONTENDERS, device_of, meta_model, trained
from gpu.host import host_times
from gpu.records import DeviceMemory, Job, RankRecord

Batch = tuple[Tensor, Tensor]
PARTS = 3  # forward, backward, update


class Trainer:
    """Makes steps. Nothing here waits for the GPU; what the steps showed is read when all are made."""

    def __init__(self, contender: Contender, clock: Clock) -> None:
        self._contender, self._clock = contender, clock
        self._losses: list[Tensor] = []
        self._norms: list[Any] = []
        clock.mark()

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        loss = next_token_loss(self._contender.forward(inputs), targets)
        self._clock.mark()
        self._contender.backward(loss)
        self._clock.mark()
        norm = self._contender.update()
        self._clock.mark()
        self._losses.append(loss.detach())
        self._norms.append(norm.detach().clone() if isinstance(norm, Tensor) else norm)

    def losses(self) -> list[float]:
        return [float(loss) for loss in self._losses]

    def norms(self) -> list[float]:
        """Takes tensors, floats (DeepSpeed), or DTensors whose parts still have to be summed (FSDP2)."""
        whole = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in self._norms)
        return [float(norm) for norm in whole if norm is not None]


def train(job: Job, rank: int) -> RankRecord:
    began = time.perf_counter()
    device = device_of(job)
    before = _used(device)
    contender = CONTENDERS[job.contender](job)
    data = [(inputs.to(device), targets.to(device)) for inputs, targets in _batches(job, rank)]
    _forget_peak(device)
    start_seconds = time.perf_counter() - began

    ticks = clock(device)
    trainer = Trainer(contender, ticks)
    for inputs, targets in data:
        trainer.step(inputs, targets)
    forward, backward, update = (ticks.seconds()[part::PARTS][job.warmup :] for part in range(PARTS))
    memory = _memory(device, before, contender.own_bytes())
    return RankRecord(
        software=_software(device), parameters=_numel(meta_model(job).parameters()),
        trained=_numel(trained(meta_model(job))),
        units=contender.units, start_seconds=start_seconds, losses=trainer.losses(), grad_norms=trainer.norms(),
        forward=forward, backward=backward, update=update, host=host_times(contender, *data[0]), memory=memory,
    )  # fmt: skip


def _numel(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _batches(job: Job, rank: int) -> Iterator[Batch]:
    """Inputs and targets of every step; each rank and step has windows of its own."""
    seed, row, count = job.seed * 10_007 + rank, job.row, job.warmup + job.steps
    if job.text:
        windows = Windows(read_bytes(standard_library(), 8 << 20), row.batch, row.context, seed)
        return (windows.draw() for _ in range(count))
    shape = (count, row.batch, row.context + 1)
    tokens = torch.randint(SIZES[row.size].vocabulary, shape, generator=torch.Generator().manual_seed(seed))
    return ((step[:, :-1], step[:, 1:]) for step in tokens)


def _software(device: torch.device) -> str:
    if device.type != "cuda":
        return f"CPU, torch {torch.__version__}"
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, NCCL {nccl}"


def _used(device: torch.device) -> int:
    """Bytes of the whole device that anyone holds."""
    if device.type != "cuda":
        return 0
    torch.cuda.set_device(device)
    free, total = torch.cuda.mem_get_info()
    return total - free


def _forget_peak(device: torch.device) -> None:
    """What drawing the weights took is no part of training."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _memory(device: torch.device, before: int, own: int) -> DeviceMemory:
    """Peaks. What lies outside torch's allocator does not shrink while training."""
    if device.type != "cuda":
        return DeviceMemory()
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    outside_torch = _used(device) - torch.cuda.memory_reserved()
    return DeviceMemory(allocated + own, reserved + own, reserved + outside_torch, before)
