"""The folder of a checkpoint: how it comes to be there as a whole or not at all, and how it goes. Only calls of the
operating system; docs/checkpoints.md says why they come in this order."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from aliquot._core import CheckpointError

MANIFEST = "manifest.json"
COMMITTED = re.compile(r"step_(0|[1-9][0-9]{0,18})")
DRAFT = re.compile(r"step_(0|[1-9][0-9]{0,18})\.tmp-[0-9a-f]{32}")

AT_FDCWD = -100
RENAME_EXCHANGE = 2


def committed(directory: Path, step: int) -> Path:
    """Where the checkpoint of `step` is."""
    return directory / f"step_{step}"


def draft(directory: Path, step: int, token: str) -> Path:
    """Where it is written, unlike any other attempt's."""
    return directory / f"step_{step}.tmp-{token}"


def new_token() -> str:
    """What tells one attempt from another."""
    return uuid.uuid4().hex


def make(path: Path) -> None:
    """The folder of a draft, for its owner alone. Another rank may have made it."""
    _make_lasting(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


def hold(path: Path) -> int:
    """A descriptor that keeps others from taking the draft for one that a dead save has left, until it is closed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return descriptor


def require_replaceable(final: Path) -> None:
    """Refuses to put a checkpoint in the place of what is none."""
    if not os.path.lexists(final):
        return
    plain = not final.is_symlink() and final.is_dir()
    if not plain or (any(final.iterdir()) and not (final / MANIFEST).is_file()):
        raise CheckpointError(f"{final} is there already, and is no checkpoint: move it away, or save elsewhere")


def _make_lasting(directory: Path) -> None:
    """Makes it where it isn't there: on the disk, name and all, since a checkpoint within is worth nothing without."""
    if directory.is_dir():
        return
    _make_lasting(directory.parent)
    directory.mkdir(exist_ok=True)
    _sync(directory.parent)


def write(path: Path, content: bytes) -> None:
    """A new file, which is on the disk on return."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path, limit: int) -> bytes:
    """A file of at most `limit` bytes, which is no link."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
            raise CheckpointError(f"{path}: it is no plain file of at most {limit} bytes")
        return file.read(limit)


def publish(path: Path, final: Path) -> None:
    """Makes the finished draft the checkpoint; one that was there before is the draft then.

    If it fails, all is as before.
    """
    require_replaceable(final)
    _sync(path)
    replaces = os.path.lexists(final)
    move: Callable[[Path, Path], object] = _exchange if replaces else Path.rename
    move(path, final)
    try:
        _sync(final.parent)
    except OSError:
        move(*((path, final) if replaces else (final, path)))
        raise


def discard(path: Path) -> None:
    """Removes a draft, if it is there."""
    with suppress(FileNotFoundError):
        shutil.rmtree(path)


def retire(directory: Path, step: int) -> None:
    """Removes a checkpoint. It stops being one before its first file goes."""
    dead = draft(directory, step, new_token())
    committed(directory, step).rename(dead)
    _sync(directory)  # or what a loss of power brings back under its old name may be half a checkpoint
    discard(dead)


def steps(directory: Path) -> list[int]:
    """Of the folders that look like checkpoints, the latest first."""
    found = (COMMITTED.fullmatch(entry.name) for entry in _folders(directory))
    return sorted((int(match[1]) for match in found if match), reverse=True)


def abandoned(directory: Path) -> list[Path]:
    """Drafts that nobody holds: saves that died have left them."""
    return [path for path in drafts(directory) if not _is_held(path)]


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True  # just published, or removed by who held it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def drafts(directory: Path) -> list[Path]:
    """What saves write at present, and what those that died have left."""
    return [Path(entry.path) for entry in _folders(directory) if DRAFT.fullmatch(entry.name)]


def _folders(directory: Path) -> Iterable[os.DirEntry[str]]:
    try:
        entries = os.scandir(directory)
    except FileNotFoundError:
        return []
    with entries:
        return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(path: Path, other: Path) -> None:
    """Each gets the name of the other, at one instant."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(path), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS):
        raise CheckpointError(
            f"{other} is there already, and its file system can't exchange two folders at one instant: remove it first"
        )
    raise OSError(number, os.strerror(number), str(path))
