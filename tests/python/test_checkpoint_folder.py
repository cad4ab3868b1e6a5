"""Folders of checkpoints: there as a whole or not at all, and nothing else is touched."""

from __future__ import annotations

import os
from pathlib import Path

import aliquot
import pytest
from aliquot.checkpoint import folder


def make_draft(directory: Path, step: int, content: bytes) -> Path:
    path = folder.draft(directory, step, folder.new_token())
    folder.make(path)
    folder.write(path / folder.MANIFEST, content)
    return path


def saved(directory: Path, step: int) -> bytes:
    return (folder.committed(directory, step) / folder.MANIFEST).read_bytes()


def test_a_draft_becomes_a_checkpoint(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "there"
    draft = make_draft(directory, 7, b"new")
    assert folder.steps(directory) == []
    folder.publish(draft, folder.committed(directory, 7))
    assert folder.steps(directory) == [7]
    assert saved(directory, 7) == b"new"
    assert [path.name for path in directory.iterdir()] == ["step_7"]
    assert folder.committed(directory, 7).stat().st_mode & 0o777 == 0o700
    assert (folder.committed(directory, 7) / folder.MANIFEST).stat().st_mode & 0o777 == 0o600


def test_a_checkpoint_of_the_same_step_is_replaced_at_one_instant(tmp_path: Path) -> None:
    for content in (b"old", b"new"):
        draft = make_draft(tmp_path, 7, content)
        folder.publish(draft, folder.committed(tmp_path, 7))
        assert saved(tmp_path, 7) == content
    assert (draft / folder.MANIFEST).read_bytes() == b"old"
    folder.discard(draft)
    assert [path.name for path in tmp_path.iterdir()] == ["step_7"]


@pytest.mark.parametrize("there", [False, True])
def test_what_fails_after_the_rename_is_taken_back(
    tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        folder.publish(make_draft(tmp_path, 7, b"old"), folder.committed(tmp_path, 7))
    draft = make_draft(tmp_path, 7, b"new")
    sync = folder._sync

    def fail(path: Path) -> None:
        if path == tmp_path:
            raise OSError("the disk is gone")
        sync(path)

    monkeypatch.setattr(folder, "_sync", fail)
    with pytest.raises(OSError, match="gone"):
        folder.publish(draft, folder.committed(tmp_path, 7))
    assert folder.drafts(tmp_path) == [draft]
    assert folder.steps(tmp_path) == [7] * there
    if there:
        assert saved(tmp_path, 7) == b"old"


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    folder.write(tmp_path / "file", b"old")
    (tmp_path / "link").symlink_to("elsewhere")
    for name in ("file", "link"):
        with pytest.raises(FileExistsError):
            folder.write(tmp_path / name, b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert not (tmp_path / "elsewhere").exists()


def test_only_plain_files_are_read(tmp_path: Path) -> None:
    folder.write(tmp_path / "file", b"12345")
    assert folder.read(tmp_path / "file", 5) == b"12345"
    with pytest.raises(aliquot.CheckpointError, match="at most 4"):
        folder.read(tmp_path / "file", 4)
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="link"):
        folder.read(tmp_path / "link", 5)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(aliquot.CheckpointError, match="no plain file"):
        folder.read(tmp_path / "pipe", 5)


def test_folders_of_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("step_1", "step_10", "step_02", "step_-1", "step_x", "step_3.tmp-x", "step_4.old", "5"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_6").symlink_to("step_1")
    (tmp_path / "step_8").write_bytes(b"a file")
    assert folder.steps(tmp_path) == [10, 1]
    assert folder.drafts(tmp_path) == []


def test_a_retired_checkpoint_goes_as_a_whole(tmp_path: Path) -> None:
    for step in (1, 2):
        folder.publish(make_draft(tmp_path, step, b""), folder.committed(tmp_path, step))
    folder.retire(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_2"]
