"""Files of a checkpoint that are not what was written: each is refused by name, and the model stays as it is."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aliquot
import mutants
from aliquot._core import chunk_bytes
from aliquot.checkpoint import folder
from checks import clean
from job import PATIENCE, WORLD_SIZE, Job, Progress, digest, made, run
from ranks import run_ranks
from torch import nn

PAGE = 4096

Content = dict[Path, bytes]


@dataclass(frozen=True)
class Damage:
    """Files that are changed, and the places that the error must name."""

    files: Content
    named: tuple[Path, ...]
    """Of one step; one of them."""
    chunk: int | None = None


def corruptions(job: Job, flips: int, others: int, seed: int) -> int:
    """Refuses so many flipped bits, and so many truncations, zeroed pages and swapped files each."""
    clean(job)
    run_ranks(WORLD_SIZE, run, job, Progress(), transport=None)
    return run_ranks(1, refuse_all, job, flips, others, seed, transport=None, timeout=3600.0)[0]


def refuse_all(rank: int, job: Job, flips: int, others: int, seed: int) -> int:
    aliquot.init()
    mutants.apply(job.mutant)
    model, opt = made(job.stage, seed=5)
    mine = digest(model, opt)
    chance = random.Random(seed)
    pristine = {path: path.read_bytes() for path in job.directory.glob("*/*")}
    kinds: list[tuple[Callable[[random.Random, Content], Damage], int]] = [
        (flipped, flips),
        (truncated, others),
        (zeroed, others),
        (swapped, others),
    ]
    for kind, count in kinds:
        for number in range(count):
            damage = kind(chance, pristine)
            put(damage.files)
            require_refused(job, model, opt, damage, f"{kind.__name__} {number}")
            put({path: pristine[path] for path in damage.files})
    assert digest(model, opt) == mine, "a load that was refused has changed the model"
    aliquot.load_checkpoint(job.directory, model, opt, step=2)
    return flips + 3 * others


def damage_of_one(job: Job) -> None:
    """What only one rank reads is damaged: the others must refuse too, and stay as they are."""
    clean(job)
    run_ranks(WORLD_SIZE, run, job, Progress(), transport=None)
    path = job.directory / "step_2" / "rank_00001.safetensors"
    content = path.read_bytes()
    put({path: content[:-1] + bytes([content[-1] ^ 1])})
    messages = run_ranks(WORLD_SIZE, refuse_one, job, transport=None)
    assert len(set(messages)) == 1, messages
    assert str(path) in messages[0]
    assert "rank 1" in messages[0]


def refuse_one(rank: int, job: Job) -> str:
    """What the error said. At stage 3 a rank reads its own file."""
    aliquot.init("shared_memory", timeout=PATIENCE)
    mutants.apply(job.mutant)
    model, opt = made(stage=3, seed=5)
    mine = digest(model, opt)
    said = refusal(job, model, opt, step=2)
    assert said, "it was loaded"
    assert digest(model, opt) == mine, "a load that was refused has changed the model"
    aliquot.load_checkpoint(job.directory, model, opt, step=1)
    return said


def put(files: Content) -> None:
    for path, content in files.items():
        path.write_bytes(content)


def require_refused(job: Job, model: nn.Module, opt: aliquot.AdamW, damage: Damage, what: str) -> None:
    step = int(damage.named[0].parent.name.removeprefix("step_"))
    said = refusal(job, model, opt, step)
    assert said, f"{what} was loaded: {damage.named}"
    assert any(str(path) in said for path in damage.named), f"{what}: {said}"
    if damage.chunk is not None:
        assert re.search(rf"chunk {damage.chunk} .*tensor.* '(param/layers|optimizer/0/exp_avg)", said), (
            f"{what}: {said}"
        )


def refusal(job: Job, model: nn.Module, opt: aliquot.AdamW, step: int) -> str:
    try:
        aliquot.load_checkpoint(job.directory, model, opt, step=step)
    except aliquot.CheckpointError as error:
        return str(error)
    return ""


def chunk_of(path: Path, place: int) -> int | None:
    return None if path.name == folder.MANIFEST else place // chunk_bytes


def flipped(chance: random.Random, pristine: Content) -> Damage:
    path = chance.choice(list(pristine))
    content = bytearray(pristine[path])
    place = chance.randrange(len(content))
    content[place] ^= 1 << chance.randrange(8)
    return Damage({path: bytes(content)}, (path,), chunk_of(path, place))


def truncated(chance: random.Random, pristine: Content) -> Damage:
    path = chance.choice(list(pristine))
    return Damage({path: pristine[path][: chance.randrange(len(pristine[path]))]}, (path,))


def zeroed(chance: random.Random, pristine: Content) -> Damage:
    while True:
        path = chance.choice(list(pristine))
        content = bytearray(pristine[path])
        page = chance.randrange(len(content)) // PAGE * PAGE
        size = len(content[page : page + PAGE])
        if any(content[page : page + PAGE]):
            content[page : page + size] = bytes(size)
            return Damage({path: bytes(content)}, (path,), chunk_of(path, page))


def swapped(chance: random.Random, pristine: Content) -> Damage:
    """Of two ranks, of two steps, a manifest and a shard file."""
    one, other = chance.sample(list(pristine), 2)
    together = (one, other) if one.parent == other.parent else (one,)
    return Damage({one: pristine[other], other: pristine[one]}, together)
