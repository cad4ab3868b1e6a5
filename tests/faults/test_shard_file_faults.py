"""A disk that fails at the k-th call of a write, for every k: an error that says so, and no file; or none of both."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import aliquot
import pytest
import shim
import torch
from aliquot import _core
from safetensors.torch import load_file

Run = Any


def values() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
        for name, size in (("a", 2 * _core.chunk_bytes), ("b", 1000), ("c", 4096))
    }


def write(path: Path) -> tuple[int, list[int], list[int]]:
    kept = values()
    tensors = [_core.FileTensor(name, "U8", t.shape, t.data_ptr(), t.nbytes) for name, t in kept.items()]
    return _core.write_shard_file(str(path), tensors)


def read(path: Path, written: tuple[int, list[int], list[int]]) -> dict[str, torch.Tensor]:
    count, crcs, offsets = written
    found = {name: torch.zeros_like(t) for name, t in values().items()}
    ranges = [(offset, t.nbytes, t.data_ptr(), name) for offset, (name, t) in zip(offsets, found.items(), strict=True)]
    _core.read_ranges(str(path), count, crcs, ranges)
    return found


def is_right(found: dict[str, torch.Tensor]) -> bool:
    return all(found[name].equal(t) for name, t in values().items())


def write_with(fault: shim.Fault, path: Path) -> tuple[str, int]:
    """What the error said, or "", and how many calls there were."""
    with shim.fault(path.parent, fault):
        try:
            written = write(path)
        except aliquot.CheckpointError as error:
            return str(error), shim.counted_calls()
        calls = shim.counted_calls()
    assert is_right(read(path, written))
    assert is_right(load_file(path))
    path.unlink()
    return "", calls


def read_with(fault: shim.Fault, path: Path) -> tuple[str, int]:
    written = write(path)
    try:
        with shim.fault(path.parent, fault):
            found = read(path, written)
            calls = shim.counted_calls()
        assert is_right(found)
    except aliquot.CheckpointError as error:
        return str(error), 0
    finally:
        path.unlink()
    return "", calls


def killed_at(fault: shim.Fault, path: Path) -> int:
    """The signal that ended a process which was to write."""
    child = os.fork()
    if child == 0:
        with shim.fault(path.parent, fault):
            write(path)
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


@pytest.fixture
def calls(on_failing_disk: Run, tmp_path: Path) -> range:
    """The numbers of the calls that a write makes: create, reserve, three chunks, fsync."""
    message, count = on_failing_disk(write_with, shim.Fault(), tmp_path / "f")
    assert message == ""
    assert count == 6
    return range(1, count + 1)


@pytest.mark.parametrize("error", shim.ERRORS, ids=errno.errorcode.__getitem__)
def test_an_error_at_any_call_leaves_no_file(on_failing_disk: Run, tmp_path: Path, calls: range, error: int) -> None:
    path = tmp_path / "f"
    for at in calls:
        message, _ = on_failing_disk(write_with, shim.Fault(at, error), path)
        assert str(path) in message, at
        assert os.strerror(error) in message, at
        assert list(tmp_path.iterdir()) == [], at


@pytest.mark.parametrize("action", [shim.DO_PART, errno.EINTR], ids=["part", "interrupted"])
def test_a_write_in_part_or_interrupted_goes_on(
    on_failing_disk: Run, tmp_path: Path, calls: range, action: int
) -> None:
    for at in calls:
        message, count = on_failing_disk(write_with, shim.Fault(at, action), tmp_path / "f")
        assert message == "", at
        assert count >= len(calls)


def test_a_file_system_that_can_not_reserve_is_written_to(on_failing_disk: Run, tmp_path: Path) -> None:
    reserve = 2
    assert on_failing_disk(write_with, shim.Fault(reserve, errno.EOPNOTSUPP), tmp_path / "f") == ("", 6)


def test_a_disk_that_takes_nothing_past_the_cache_is_written_to(on_failing_disk: Run, tmp_path: Path) -> None:
    first_chunk = 3
    assert on_failing_disk(write_with, shim.Fault(first_chunk, errno.EINVAL), tmp_path / "f") == ("", 7)


def test_a_kill_at_any_call_leaves_nothing_that_looks_whole(on_failing_disk: Run, tmp_path: Path, calls: range) -> None:
    path = tmp_path / "f"
    written = write(path)
    path.unlink()
    for at in calls:
        for action in (shim.KILL_BEFORE, shim.KILL_MIDWAY):
            assert on_failing_disk(killed_at, shim.Fault(at, action), path) == signal.SIGKILL
            if path.exists():
                all_is_written = at == calls[-1] or (at == calls[-2] and action == shim.KILL_MIDWAY)
                if not all_is_written:
                    with pytest.raises(aliquot.CheckpointError):
                        _core.verify_file(str(path), *written[:2])
                path.unlink()


def test_errors_and_parts_while_reading(on_failing_disk: Run, tmp_path: Path) -> None:
    path = tmp_path / "f"
    chunks = 3
    assert on_failing_disk(read_with, shim.Fault(reads=True), path) == ("", chunks)
    for at in range(1, chunks + 1):
        message, _ = on_failing_disk(read_with, shim.Fault(at, errno.EIO, reads=True), path)
        assert str(path) in message
        assert os.strerror(errno.EIO) in message
        assert on_failing_disk(read_with, shim.Fault(at, shim.DO_PART, reads=True), path) == ("", chunks + 1)
        assert on_failing_disk(read_with, shim.Fault(at, errno.EINTR, reads=True), path) == ("", chunks + 1)
