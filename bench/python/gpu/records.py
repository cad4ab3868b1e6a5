"""What is asked of a contender's ranks, and what they answer. Plain data that travels as JSON between processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

from timed_ranks import TimedRanks

GIB = 2**30
FLOOR = "floor"


@dataclass(frozen=True)
class Row:
    """A model's size (see llama.SIZES) and what each rank sees of the data in a step. None: the default contenders.

    `adapters`: the rank of those that train on a frozen model (adapters.py); 0: there are none, and all of it trains.
    """

    size: str
    batch: int
    context: int
    contenders: tuple[str, ...] | None = None
    adapters: int = 0

    @classmethod
    def parse(cls, text: str) -> Row:
        """Reads `374m:8x1024`, `374m:8x1024=floor,fsdp2` or `374m+lora16:8x1024`."""
        shape, _, contenders = text.partition("=")
        model, _, windows = shape.partition(":")
        size, lora, rank = model.partition("+lora")
        batch, _, context = windows.partition("x")
        names = tuple(contenders.split(",")) if contenders else None
        return cls(size, int(batch), int(context), names, int(rank) if lora else 0)

    def __str__(self) -> str:
        lora = f"+lora{self.adapters}" if self.adapters else ""
        return f"{self.size}{lora}:{self.batch}x{self.context}"


@dataclass(frozen=True)
class Job:
    """One contender's training of one row. `warmup` steps are verified but not timed, `steps` are timed.

    `text`: the tokens are bytes of real text; else they are uniformly random.
    """

    contender: str
    row: Row
    warmup: int
    steps: int
    seed: int
    lr: float
    device: str
    precision: str
    text: bool = False


@dataclass(frozen=True)
class HostTimes:
    """Seconds that a rank's host needed to enqueue each part of a step, while the GPU had little to do.

    `waited`: how long the host then stood still until the GPU was done, over all parts. Where that is more than the
    host's own time, the host may have been held back by a full launch queue, and the figures are too large.
    `hooks`: what the library itself counted of forward and backward, where it does.
    """

    forward: float
    backward: float
    update: float
    waited: float
    hooks: tuple[float, float] | None = None


@dataclass(frozen=True)
class DeviceMemory:
    """Peaks in bytes. `allocated` and `reserved`: in torch's allocator, and what the library took past it.

    `in_use`: of the whole device, whoever holds it, NCCL and this process's CUDA context (`before`) among it.
    """

    allocated: int = 0
    reserved: int = 0
    in_use: int = 0
    before: int = 0


@dataclass(frozen=True)
class RankRecord:
    """One rank's run: losses and norms of every step, seconds of the timed ones.

    `trained`: how many of the parameters train. `units`: what is gathered at once.
    """

    software: str
    parameters: int
    trained: int
    units: int
    start_seconds: float
    losses: list[float]
    grad_norms: list[float]
    forward: list[float]
    backward: list[float]
    update: list[float]
    host: HostTimes
    memory: DeviceMemory

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> RankRecord:
        values = json.loads(path.read_text())
        host, memory = HostTimes(**values.pop("host")), DeviceMemory(**values.pop("memory"))
        return cls(**values, host=host, memory=memory)


@dataclass(frozen=True)
class Run(TimedRanks):
    """All ranks of one contender in one round. `failure`: why there are none, or why their times are worth nothing."""

    ranks: list[RankRecord] = field(default_factory=list)
    failure: str | None = None

    def gib(self, part: str) -> float:
        """A field of DeviceMemory in GiB, of the rank that holds most."""
        return float(max(getattr(rank.memory, part) for rank in self.ranks)) / GIB

    def host(self, part: str) -> float:
        """A field of HostTimes, mean over the ranks."""
        return float(fmean(getattr(rank.host, part) for rank in self.ranks))
