"""Manifests that somebody has changed, checksum and all: refused, and then nothing has changed; or loaded, and right.

Its checksum is no protection against whoever wants to deceive, so all that a manifest says is to be doubted.
ALIQUOT_FUZZ_SECONDS makes it longer (`make faults`).
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aliquot
import torch
from aliquot.checkpoint import manifest
from aliquot.checkpoint.cli import main
from checkpoints import Broken, everything, train_step
from ranks import run_ranks

SECONDS = float(os.environ.get("ALIQUOT_FUZZ_SECONDS", "1"))
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 7, 2**31, 2**62, 2**63 - 1, 10**30, -0.5, 1e308, "", "x", "F64", "I8", "../x", "param/x", [],
    [[]], [0, 1, 2], {}, {"": 0}, {"$float": "nan"}, {"$float": "inf"}, {"$tuple": [1, 2]}, {"$tuple": 5}, {"$dict": 3},
    {"$dict": [[[], 1]]}, {"$bytes": "AAAA"}, {"$tensor": {"dtype": "F32", "shape": [1], "data": "AACAPw=="}},
    {"$tensor": {"dtype": "U8", "shape": [1 << 40], "data": ""}},
)  # fmt: skip


def places(inside: Any) -> Iterator[tuple[Any, Any]]:
    """Every container, with each of its keys or indices."""
    keys = list(inside) if isinstance(inside, dict) else range(len(inside)) if isinstance(inside, list) else ()
    for key in keys:
        yield inside, key
        yield from places(inside[key])


def changed(content: dict[str, Any], choose: random.Random) -> dict[str, Any]:
    """At one to three places something else: an odd value, a neighbour's, a number that is near, or nothing."""
    content = copy.deepcopy(content)
    for _ in range(choose.choice((1, 1, 1, 2, 3))):
        inside, key = choose.choice(list(places(content)))
        other, its_key = choose.choice(list(places(content)))
        match choose.randrange(4):
            case 0:
                inside[key] = copy.deepcopy(choose.choice(ODD))
            case 1:
                inside[key] = copy.deepcopy(other[its_key])
            case 2 if type(inside[key]) in (int, float):
                inside[key] += choose.choice((-1, 1, 4096, 0.5))
            case _:
                del inside[key]
    return content


def write(path: Path, content: dict[str, Any]) -> bool:
    """With a checksum that is right. False for what JSON can't hold."""
    content.pop("checksum", None)
    try:
        content["checksum"] = manifest.checksum(content)
        path.write_bytes(manifest._canonical(content))
    except ValueError:
        return False
    return True


class Mine:
    """All that a load may change."""

    def __init__(self) -> None:
        self.model, self.optimizer = everything(3)
        self.loader, self.schedule = Broken(False), Broken(False)

    def save(self, directory: Path, step: int) -> None:
        aliquot.save_checkpoint(
            directory, self.model, self.optimizer, step=step, loader=self.loader, schedulers=self.schedule
        )

    def load(self, directory: Path, step: int) -> None:
        aliquot.load_checkpoint(
            directory, self.model, self.optimizer, step=step, loader=self.loader, schedulers=self.schedule
        )


def fuzz(rank: int, directory: Path) -> tuple[int, int]:
    """How many were loaded, and refused."""
    mine, choose = Mine(), random.Random(0)
    train_step(mine.model, mine.optimizer, rank, 0)
    mine.save(directory, 1)
    path = directory / "step_1" / "manifest.json"
    pristine = json.loads(path.read_bytes())
    outcomes = [0, 0]
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if not write(path, changed(pristine, choose)):
            continue
        before = torch.get_rng_state()
        try:
            mine.load(directory, 1)
        except aliquot.CheckpointError:
            outcomes[1] += 1
            assert torch.equal(torch.get_rng_state(), before)
            assert mine.loader.state == mine.schedule.state == {"place": 3}
        else:
            outcomes[0] += 1
            with contextlib.suppress(aliquot.Error):  # numbers that are not finite, in a row
                train_step(mine.model, mine.optimizer, rank, 1)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main("fuzz", ["verify", str(directory)]) in (0, 1)
            assert main("fuzz", ["inspect", "--json", str(directory), "--step", "1"]) in (0, 1)
        write(path, pristine)
        mine.load(directory, 1)
    return outcomes[0], outcomes[1]


def test_whatever_a_manifest_says_only_a_checkpoint_error_comes(tmp_path: Path, tally: Any) -> None:
    loaded, refused = run_ranks(1, fuzz, tmp_path, timeout=SECONDS + 60.0)[0]
    assert loaded > 0
    assert refused > 0
    tally("changed manifests that raise nothing but a CheckpointError", loaded + refused)
