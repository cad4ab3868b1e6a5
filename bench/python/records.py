"""What is asked of a rank, and what a rank answers. Plain data that travels as JSON between processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from timed_ranks import TimedRanks

MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """One training job: the model, the data each rank sees, and how long. `steps` are timed, `warmup` are not."""

    dim: int
    layers: int
    heads: int
    context: int
    batch: int
    warmup: int
    steps: int
    seed: int
    device: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class RankRecord:
    """One rank's run. Losses and norms of every step, seconds of the timed ones, bytes of memory."""

    parameters: int
    losses: list[float]
    grad_norms: list[float]
    forward: list[float]
    backward: list[float]
    update: list[float]
    peak_rss: int
    peak_pss: int
    peak_device: int

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Run(TimedRanks):
    """All ranks of one contender in one round."""

    ranks: list[RankRecord]

    @classmethod
    def read(cls, folder: Path, ranks: int) -> Run:
        return cls([RankRecord(**json.loads((folder / f"rank{rank}.json").read_text())) for rank in range(ranks)])

    def mib(self, field: str) -> float:
        """A memory field of RankRecord in MiB, mean over the ranks."""
        return fmean(getattr(rank, field) for rank in self.ranks) / MIB
