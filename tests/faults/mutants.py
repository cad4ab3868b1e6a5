"""Protocols that lack a step. The tests of each must fail, or they show nothing of the step."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aliquot import _core
from aliquot.checkpoint import folder, load, manifest, reading, save
from aliquot.checkpoint.save import Save
from aliquot.checkpoint.snapshot import Snapshot

MUTANTS: dict[str, Callable[[], None]] = {}


def mutant(change: Callable[[], None]) -> Callable[[], None]:
    MUTANTS[change.__name__] = change
    return change


def apply(name: str) -> None:
    """Makes this process follow the protocol that `name` stands for; "" for the real one."""
    if name:
        MUTANTS[name]()


def never_synced(name: str) -> str:
    """How the files end that are not synced in it."""
    return {"unsynced_shard": ".safetensors", "unsynced_manifest": folder.MANIFEST}.get(name, "")


@mutant
def unsynced_shard() -> None:
    """A shard file is not synced."""


@mutant
def unsynced_manifest() -> None:
    """The manifest is not synced."""


def sync_only(wanted: Callable[[Path], bool]) -> None:
    sync = folder._sync
    folder._sync = lambda path: sync(path) if wanted(path) else None


@mutant
def unsynced_draft() -> None:
    """The folder with the shard files is not synced."""
    sync_only(lambda path: not folder.DRAFT.fullmatch(path.name))


@mutant
def unsynced_directory() -> None:
    """The directory is not synced behind the rename."""
    sync_only(lambda path: bool(folder.DRAFT.fullmatch(path.name)) or not list(path.glob("step_*")))


@mutant
def unsynced_new_directory() -> None:
    """The directory is made, but not synced in its own."""
    sync_only(lambda path: bool(folder.DRAFT.fullmatch(path.name)) or bool(list(path.glob("step_*"))))


@mutant
def unsynced_retirement() -> None:
    """A checkpoint that is pruned may have its old name again, but not all of its files."""

    def retire(directory: Path, step: int) -> None:
        dead = folder.draft(directory, step, folder.new_token())
        folder.committed(directory, step).rename(dead)
        folder.discard(dead)

    folder.retire = retire


@mutant
def verdict_before_shard() -> None:
    """A rank says that its file is there, and then gives it its name."""
    write, exchange = _core.write_shard_file, save.exchange
    late: list[str] = []

    def write_late(path: str, *rest: Any) -> Any:
        late.append(path)
        return write(path + ".late", *rest)

    def exchange_first(*args: Any) -> list[bytes]:
        said = exchange(*args)
        for path in late:
            os.rename(path + ".late", path)  # noqa: PTH104
        late.clear()
        return said

    _core.write_shard_file, save.exchange = write_late, exchange_first


@mutant
def renamed_before_manifest() -> None:
    """The folder gets its name, and then its manifest."""
    write, publish = folder.write, folder.publish
    contents: dict[Path, bytes] = {}

    def publish_first(path: Path, final: Path) -> None:
        publish(path, final)
        write(final / folder.MANIFEST, contents.pop(path))

    folder.write = lambda path, content: contents.update({path.parent: content})
    folder.publish = publish_first


@mutant
def pruned_before_commit() -> None:
    """Older checkpoints go before the new one is there."""
    run = Save.run

    def prune_first(self: Save) -> None:
        if self.world.rank == 0:
            for step in folder.steps(self.directory):
                folder.retire(self.directory, step)
        run(self)

    Save.run = prune_first  # type: ignore[method-assign]


@mutant
def overwritten_in_place() -> None:
    """The checkpoint of the same step goes before the new one gets its name."""
    publish = folder.publish

    def remove_first(path: Path, final: Path) -> None:
        if final.exists():
            shutil.rmtree(final)
        publish(path, final)

    folder.publish = remove_first


@mutant
def unchecked_chunks() -> None:
    """Chunks are read without a look at their checksums."""
    read = _core.read_ranges

    def read_anything(path: str, _size: int, _crcs: Any, *rest: Any) -> None:
        content = Path(path).read_bytes()
        chunks = (content[i : i + _core.chunk_bytes] for i in range(0, len(content), _core.chunk_bytes))
        read(path, len(content), [_core.crc32c(chunk) for chunk in chunks], *rest)

    _core.read_ranges = read_anything
    assert reading._core is _core


@mutant
def unchecked_manifest() -> None:
    """The manifest's checksum is not looked at."""
    checksum, loads = manifest.checksum, manifest.parse_json
    found: list[int] = []

    def loads_and_notes(text: bytes) -> Any:
        content = loads(text)
        found[:] = [content.get("checksum")] if isinstance(content, dict) else []
        return content

    manifest.parse_json = loads_and_notes
    manifest.checksum = lambda content: found.pop() if found else checksum(content)


@mutant
def loaded_alone() -> None:
    """A rank does not ask whether the others' checksums were right."""
    agree = load.agree

    def agree_with_oneself(world: Any, name: str, mine: Any, problem: str) -> Any:
        if not name.endswith("/read"):
            return agree(world, name, mine, problem)
        if problem:
            raise _core.CheckpointError(problem)
        return [mine]

    load.agree = agree_with_oneself


@mutant
def one_name_for_drafts() -> None:
    """What a dead save has left is in the way of the next one."""
    folder.new_token = lambda: "0" * 32


@mutant
def drafts_stay() -> None:
    """A save that failed does not clear up."""
    save._discard = lambda draft: None


@mutant
def outcome_not_told() -> None:
    """Only rank 0 knows that a save has failed."""
    exchange = save.exchange

    def tell_rank_0(world: Any, name: str, payload: bytes) -> list[bytes]:
        said = exchange(world, name, payload)
        return [payload] if world.rank and name.endswith("/outcome") else said

    save.exchange = tell_rank_0


@mutant
def no_snapshot() -> None:
    """A save behind training writes what training has made of the values by then; the disk is slow."""
    write = Save._write

    def write_late(self: Save) -> Any:
        time.sleep(0.3)
        return write(self)

    Snapshot.detach, Save._write = lambda self: None, write_late  # type: ignore[method-assign]
