"""One rank of one contender: trains, and writes what it saw. Started by compare.py through torchrun.

worker.py CONTENDER SETTINGS_AS_JSON FOLDER      writes FOLDER/rank<r>.json
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import resident
import torch
from byte_lm import ByteLM, Shape, next_byte_loss
from byte_text import Windows, read_bytes, standard_library
from contenders import CONTENDERS, Contender
from records import RankRecord, Settings
from torch import Tensor


def as_float(norm: object) -> float:
    """Takes a tensor, a float (DeepSpeed), or a DTensor whose parts still have to be summed (FSDP2)."""
    whole: Any = getattr(norm, "full_tensor", lambda: norm)()
    return float(whole)


class Trainer:
    """Makes steps and keeps what each of them showed."""

    def __init__(self, contender: Contender, windows: Windows, device: str) -> None:
        self._contender, self._windows, self._device = contender, windows, device
        self.losses: list[float] = []
        self.grad_norms: list[float] = []
        self.instants: list[tuple[float, ...]] = []
        self.pss: list[int] = []

    def step(self) -> None:
        inputs, targets = self._draw()
        start = time.perf_counter()
        loss = next_byte_loss(self._contender.forward(inputs), targets)
        forward = time.perf_counter()
        self._contender.backward(loss)
        backward = time.perf_counter()
        norm = self._contender.update()
        if self._device == "cuda":
            torch.cuda.synchronize()
        self.instants.append((start, forward, backward, time.perf_counter()))
        self.losses.append(loss.item())
        self.grad_norms.append(as_float(norm))

    def weigh_step(self) -> None:
        """A step that nobody times: reading PSS walks every page."""
        inputs, targets = self._draw()
        loss = next_byte_loss(self._contender.forward(inputs), targets)
        self.pss.append(resident.pss())
        self._contender.backward(loss)
        self.pss.append(resident.pss())
        self._contender.update()
        self.pss.append(resident.pss())

    def _draw(self) -> tuple[Tensor, Tensor]:
        inputs, targets = self._windows.draw()
        return inputs.to(self._device), targets.to(self._device)


def train(name: str, settings: Settings, rank: int) -> RankRecord:
    if settings.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.manual_seed(settings.seed)
    model = ByteLM(Shape(settings.dim, settings.layers, settings.heads, settings.context)).to(settings.device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    text = read_bytes(standard_library(), 1 << 20)
    windows = Windows(text, settings.batch, settings.context, seed=settings.seed * 10_007 + rank)
    trainer = Trainer(CONTENDERS[name](model, settings.device), windows, settings.device)
    del model

    for _ in range(settings.warmup):
        trainer.step()
    resident.reset_peak()
    for _ in range(settings.steps):
        trainer.step()
    peak_rss = resident.peak_rss()
    trainer.weigh_step()

    starts, forwards, backwards, ends = zip(*trainer.instants[settings.warmup :], strict=True)
    return RankRecord(
        parameters=parameters,
        losses=trainer.losses,
        grad_norms=trainer.grad_norms,
        forward=[end - start for start, end in zip(starts, forwards, strict=True)],
        backward=[end - start for start, end in zip(forwards, backwards, strict=True)],
        update=[end - start for start, end in zip(backwards, ends, strict=True)],
        peak_rss=peak_rss,
        peak_pss=max(trainer.pss),
        peak_device=torch.cuda.max_memory_allocated() if settings.device == "cuda" else 0,
    )


def main() -> None:
    name, settings, folder = sys.argv[1:]
    rank = int(os.environ["RANK"])
    train(name, Settings.from_json(settings), rank).write(Path(folder) / f"rank{rank}.json")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
