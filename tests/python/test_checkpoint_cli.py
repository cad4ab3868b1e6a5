"""`python -m aliquot checkpoint`: what it prints, changes and leaves with."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import aliquot
import pytest
from aliquot import _core
from aliquot.__main__ import main
from aliquot.checkpoint import folder
from aliquot.checkpoint.catalog import Checkpoint, latest_checkpoint, open_checkpoint
from aliquot.checkpoint.cli import listing
from aliquot.checkpoint.manifest import Tensor, parse
from aliquot.checkpoint.resharding import Cut, cuts
from checkpoints import assert_same_content, content_of, everything, manifest_of, train
from hypothesis import given
from hypothesis import strategies as st
from ranks import run_ranks
from torch import nn

WORLD_SIZE = 2
STEPS = (1, 2, 30)
CHUNK = _core.chunk_bytes


def save_some(rank: int, directory: Path) -> None:
    model, optimizer = everything(3, precision="bf16")
    for step in STEPS:
        train(model, optimizer, rank, range(1))
        aliquot.save_checkpoint(directory, model, optimizer, step=step, extra={"note": step})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    run_ranks(WORLD_SIZE, save_some, directory)
    return directory


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    """A copy, with a checkpoint that was damaged, a save that died, and things that are none of ours."""
    directory = tmp_path / "run"
    shutil.copytree(saved, directory)
    shutil.copytree(directory / "step_1", directory / "step_9")
    folder.draft(directory, 4, folder.new_token()).mkdir()
    (directory / "step_5.old").mkdir()
    (directory / "notes.txt").write_text("mine")
    return directory


class Said:
    """Runs a command in this process; `said(...)` is what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.code = 0

    def __call__(self, *arguments: object) -> str:
        self.capsys.readouterr()
        self.code = main(["checkpoint", *map(str, arguments)])
        self.out, self.err = self.capsys.readouterr()
        return self.out

    def json(self, *arguments: object) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(capsys)


def test_list_says_what_is_there(directory: Path, said: Said) -> None:
    lines = said("list", directory).splitlines()
    assert said.code == 0
    assert [line.split()[0] for line in lines[1:5]] == ["30", "9", "2", "1"]
    assert lines[0].split() == ["step", "size", "files", "ranks", "stage", "saved", "state"]
    assert lines[1].endswith("complete")
    assert "not complete: " in lines[2]
    assert "it is of step 1" in lines[2]
    assert len(lines) == 6
    assert "step_4.tmp-" in lines[5]

    found = said.json("list", directory)
    assert [(each["step"], each["complete"]) for each in found["checkpoints"]] == [
        (30, True), (9, False), (2, True), (1, True),
    ]  # fmt: skip
    first = found["checkpoints"][0]
    assert (first["world_size"], first["stage"], first["files"]) == (WORLD_SIZE, 3, WORLD_SIZE)
    assert first["bytes"] == sum(file.stat().st_size for file in (directory / "step_30").glob("*.safetensors"))
    assert len(found["leftovers"]) == 1


@pytest.mark.parametrize("instant", ["before it is opened", "behind it"])
def test_list_passes_over_what_a_running_job_removes(
    instant: str, directory: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_while_pruned(where: Path, step: int) -> Checkpoint:
        if step == 2 and instant.startswith("before"):
            shutil.rmtree(where / "step_2")
        checkpoint = open_checkpoint(where, step)
        if step == 2:
            shutil.rmtree(where / "step_2")
        return checkpoint

    monkeypatch.setattr(listing, "open_checkpoint", open_while_pruned)
    assert [each["step"] for each in said.json("list", directory)["checkpoints"]] == [30, 9, 1]
    assert said.code == 0


def test_list_passes_over_files_that_a_running_save_renames(
    directory: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And over whole drafts."""
    (draft,) = folder.drafts(directory)
    (draft / "stays").write_bytes(b"12345")
    seen = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: iter([*seen(path), path / "has gone"]))
    monkeypatch.setattr(folder, "drafts", lambda _: [draft, directory / "has gone"])
    assert [each["bytes"] for each in said.json("list", directory)["leftovers"]] == [5, 0]


def test_list_goes_on_past_a_folder_that_may_not_be_read(
    directory: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(call: Callable[..., Any]) -> Callable[..., Any]:
        """As of a folder of mode 0: tests may run as root, who may read it."""

        def wrapped(path: Any, *rest: Any) -> Any:
            if "step_2" in str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *rest)

        return wrapped

    for owner, name in ((os, "open"), (Path, "iterdir")):
        monkeypatch.setattr(owner, name, denied(getattr(owner, name)))
    found = {each["step"]: each for each in said.json("list", directory)["checkpoints"]}
    assert said.code == 0
    assert list(found) == [30, 9, 2, 1]
    assert "Permission denied" in found[2]["problem"]
    assert found[1]["complete"]


def test_what_is_no_directory_is_an_error(tmp_path: Path, said: Said) -> None:
    for command in (["list"], ["verify"], ["inspect"], ["export", tmp_path / "out"], ["prune", "--keep", "1"]):
        said(command[0], tmp_path / "missing", *command[1:])
        assert said.code == 1
        assert "missing is no folder" in said.err
    assert said("list", tmp_path).endswith("no checkpoints\n")
    for command in ("verify", "inspect"):
        said(command, tmp_path)
        assert said.code == 1


def test_what_is_a_checkpoint_itself_is_pointed_at(saved: Path, tmp_path: Path, said: Said) -> None:
    shutil.copytree(saved / "step_2", tmp_path / "backup")
    for command in (["list"], ["verify"], ["inspect"], ["inspect", "--step", "2"], ["prune", "--keep", "1"]):
        said(command[0], tmp_path / "backup", *command[1:])
        assert said.code == 1
        assert "backup is a checkpoint itself: give the folder that it is in, where it is named step_N" in said.err
    for open_it in (latest_checkpoint, partial(open_checkpoint, step=2)):
        with pytest.raises(aliquot.CheckpointError, match="step_2 is a checkpoint itself"):
            open_it(saved / "step_2")


def test_another_manifest_beside_checkpoints_is_nobody_s_business(directory: Path, said: Said) -> None:
    (directory / "manifest.json").write_text("{}")
    assert said.json("inspect", directory)["step"] == 30


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["checkpoint"], ["checkpoint", "list"], ["checkpoint", "frobnicate", "x"],
        ["checkpoint", "prune", "x"], ["checkpoint", "prune", "x", "--keep", "0"],
        ["checkpoint", "reshard", "x", "--files", "-1"], ["checkpoint", "inspect", "x", "--step", "-1"],
        ["checkpoint", "export", "x", "y", "--max-shard-size", "5XB"],
        ["checkpoint", "export", "x", "y", "--dtype", "int8"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_call_that_is_none_leaves_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2


@pytest.mark.parametrize("name", ["inspect", "verify"])
def test_a_checkpoint_and_another_step_are_a_call_that_is_none(
    name: str, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["checkpoint", name, str(saved / "step_2"), "--step", "30"])
    assert left.value.code == 2
    assert "step_2 is one checkpoint: leave out --step" in capsys.readouterr().err


def flip(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


def test_verify_finds_nothing_where_nothing_is(saved: Path, said: Said) -> None:
    lines = said("verify", saved).splitlines()
    assert said.code == 0
    assert len(lines) == len(STEPS)
    assert all("chunks are right" in line for line in lines)
    assert said.json("verify", saved / "step_2") == said.json("verify", saved, "--step", 2)


def test_verify_names_every_damage(tmp_path: Path, said: Said) -> None:
    """In a checkpoint of several chunks: each chunk that is damaged, and which tensors have bytes in it."""

    def save(rank: int) -> None:
        model = aliquot.shard(nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(5))))
        aliquot.save_checkpoint(tmp_path, model, step=1)

    run_ranks(1, save)
    path = tmp_path / "step_1" / "rank_00000.safetensors"
    manifest = manifest_of(path.parent)
    assert manifest["files"][path.name]["bytes"] > 5 * CHUNK
    for byte in (CHUNK + 5, 3 * CHUNK, 4 * CHUNK - 1, path.stat().st_size - 1):
        flip(path, byte)
    (report,) = said.json("verify", tmp_path)
    assert said.code == 1
    assert [damage["chunk"] for damage in report["damages"]] == [1, 3, 5]
    for damage in report["damages"]:
        begin, end = damage["chunk"] * CHUNK, (damage["chunk"] + 1) * CHUNK
        inside = {
            key
            for key, tensor in manifest["tensors"].items()
            for piece in tensor["pieces"]
            if piece["offset"] < end and piece["offset"] + 4 * (piece["end"] - piece["begin"]) > begin
        }
        assert set(damage["tensors"]) == inside != set()
        assert damage["file"] == path.name
    line = said("verify", tmp_path).splitlines()[0]
    assert line.startswith("step_1: DAMAGED rank_00000.safetensors: chunk 1: its checksum is wrong; in it: param/")


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 1)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


DAMAGES: dict[str, tuple[Callable[[Path], object], str, list[int | None]]] = {
    "cut off": (cut_off, "bytes, and the manifest says", [None, 0]),
    "too long": (lengthen, "bytes, and the manifest says", [None]),
    "gone": (Path.unlink, "No such file", [None]),
    "a link": (link, "symbolic links", [None]),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "no plain file", [None]),
    "zeroed": (lambda path: path.write_bytes(bytes(path.stat().st_size)), "checksum is wrong", [0]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_verify_finds_damaged_files(name: str, directory: Path, said: Said) -> None:
    damage, problem, chunks = DAMAGES[name]
    damage(directory / "step_30" / "rank_00001.safetensors")
    (report,) = said.json("verify", directory, "--step", 30)
    assert said.code == 1
    assert [found["chunk"] for found in report["damages"]] == chunks
    assert all(found["file"] == "rank_00001.safetensors" for found in report["damages"])
    assert problem in report["damages"][0]["problem"]
    said("inspect", directory, "--step", 30)
    assert said.code == int(name != "zeroed")
    said("export", directory, directory / "out", "--step", 30)
    assert said.code == 1
    assert not (directory / "out").exists()
    assert [path for path in directory.iterdir() if path.name.startswith("out")] == []


def test_verify_finds_a_damaged_manifest(directory: Path, said: Said) -> None:
    flip(directory / "step_2" / "manifest.json", 100)
    out = said("verify", directory)
    assert said.code == 1
    assert "step_2: DAMAGED manifest.json: " in out
    assert "step_30: all" in out


def test_inspect_says_what_is_in_it(saved: Path, said: Said) -> None:
    out = said("inspect", saved)
    assert said.code == 0
    assert out.startswith("step        30\n")
    assert "param/blocks.0.up.weight" in out
    found = said.json("inspect", saved, "--step", 2)
    manifest = manifest_of(saved / "step_2")
    assert found["extra"] == {"note": 2}
    assert found["optimizers"] == ["AdamW"]
    assert found["tied"] == {"head.weight": "embedding.weight"}
    assert {key: (each["dtype"], each["shape"]) for key, each in found["tensors"].items()} == {
        key: (each["dtype"], each["shape"]) for key, each in manifest["tensors"].items()
    }


def test_inspect_takes_patterns(saved: Path, said: Said) -> None:
    found = said.json("inspect", saved, "optimizer/0/exp_avg/*", "param/empty")["tensors"]
    assert "param/empty" in found
    assert {key.rpartition("/")[0] for key in found} == {"param", "optimizer/0/exp_avg"}
    assert said("inspect", saved, "nothing*").endswith("no such tensor\n")


@pytest.mark.parametrize("files", [1, 2, 3, 7])
def test_reshard_changes_nothing_but_files(files: int, directory: Path, said: Said) -> None:
    before = content_of(directory / "step_2"), content_of(directory / "step_30")
    said("reshard", directory, "--files", files, "--step", 2)
    said("reshard", directory, "--files", files, "--to", directory / "other")
    assert said.code == 0
    for path, content in zip((directory / "step_2", directory / "other" / "step_30"), before, strict=True):
        assert_same_content(content_of(path), content)
        manifest = manifest_of(path)
        assert len(manifest["files"]) == files
        assert sorted(manifest["files"]) == sorted(file.name for file in path.glob("*.safetensors"))
        assert manifest["world_size"] == WORLD_SIZE
        sizes = [file["bytes"] for file in manifest["files"].values()]
        assert max(sizes) - min(sizes) < 4096  # what differs is the headers
    said("verify", directory, "--step", 2)
    assert said.code == 0
    assert len(folder.drafts(directory)) == 1


def test_reshard_says_how_many_files_there_are(directory: Path, said: Said) -> None:
    out = said("reshard", directory, "--files", 100_000, "--step", 2)
    files = len(manifest_of(directory / "step_2")["files"])
    assert out == f"{directory / 'step_2'}: in {files} files\n"
    assert files < 100_000


def test_what_was_resharded_is_loaded(directory: Path, said: Said) -> None:
    def resave(rank: int) -> None:
        model, optimizer = everything(3, seed=1, precision="bf16")
        assert aliquot.load_checkpoint(directory, model, optimizer).extra == {"note": 30}
        aliquot.save_checkpoint(directory / "again", model, optimizer, step=30, extra={"note": 30})

    before = content_of(directory / "step_30")
    said("reshard", directory, "--files", 3)
    run_ranks(WORLD_SIZE, resave)
    assert_same_content(content_of(directory / "again" / "step_30"), before)


def test_names_can_not_command_the_terminal(directory: Path, said: Said) -> None:
    manifest = parse((directory / "step_2" / "manifest.json").read_bytes())
    renamed = {key.replace("param/unused", "param/\x1b[2J"): tensor for key, tensor in manifest.tensors.items()}
    (directory / "step_2" / "manifest.json").write_bytes(manifest.model_copy(update={"tensors": renamed}).text())
    assert "param/\\x1b[2J" in said("inspect", directory, "--step", 2)
    assert "\x1b" not in said.out
    for name in ("rank_00000.safetensors", "rank_00001.safetensors"):
        flip(directory / "step_2" / name, 0)
    assert "\x1b" not in said("verify", directory, "--step", 2)


def test_reshard_refuses_damage_and_overwrites_nothing(directory: Path, said: Said) -> None:
    said("reshard", directory, "--files", 3, "--to", directory / "other")
    there = manifest_of(directory / "other" / "step_30")
    said("reshard", directory, "--files", 2, "--to", directory / "other")
    assert said.code == 1
    assert "nothing is overwritten" in said.err
    path = directory / "step_2" / "rank_00001.safetensors"
    flip(path, path.stat().st_size - 1)
    content = path.read_bytes()
    for to in (directory, directory / "other"):
        said("reshard", directory, "--files", 3, "--step", 2, "--to", to)
        assert said.code == 1
        assert "rank_00001.safetensors" in said.err
    assert path.read_bytes() == content
    assert folder.steps(directory / "other") == [30]
    assert manifest_of(directory / "other" / "step_30") == there
    assert len(folder.drafts(directory)) == 1
    assert folder.drafts(directory / "other") == []


@given(
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["F64", "F32", "BF16", "U8"])), max_size=9),
    st.integers(1, 9),
)
def test_files_get_every_element_once_and_equal_parts(sizes: list[tuple[int, str]], files: int) -> None:
    tensors = {str(number): Tensor(dtype=word, shape=[numel], pieces=[]) for number, (numel, word) in enumerate(sizes)}
    parts = list(cuts(tensors, files))
    assert len(parts) <= files
    for key, tensor in tensors.items():
        mine = [cut for part in parts for cut in part if cut.key == key]
        ends = [0, *(cut.end for cut in mine)]
        assert mine == [Cut(key, begin, end) for begin, end in pairwise(ends)]
        assert ends[-1] == tensor.numel
    total = sum(tensor.numel * tensor.width for tensor in tensors.values())
    for part in parts:
        size = sum((cut.end - cut.begin) * tensors[cut.key].width for cut in part)
        assert abs(size - total / files) < 16 or size < total / files


def entries(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_prune_keeps_the_latest_and_what_is_not_its_own(directory: Path, said: Said) -> None:
    before = entries(directory)
    assert said.json("prune", directory, "--keep", 1, "--dry-run", "--leftovers")["removed"][:2] == ["step_1", "step_2"]
    assert entries(directory) == before
    said("prune", directory, "--keep", 3)
    assert entries(directory) == before
    assert said("prune", directory, "--keep", 2) == "removed step_1\n"
    assert said.code == 0
    assert before - entries(directory) == {"step_1"}
    said("prune", directory, "--keep", 1, "--leftovers")
    assert entries(directory) == {"step_30", "step_9", "step_5.old", "notes.txt"}
    assert said("prune", directory, "--keep", 1) == "nothing to remove\n"


def test_prune_takes_a_directory_and_not_one_checkpoint(directory: Path, said: Said) -> None:
    before = entries(directory)
    said("prune", directory / "step_2", "--keep", 1)
    assert said.code == 1
    assert "takes the directory" in said.err
    assert entries(directory) == before


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "aliquot", "checkpoint", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=100, check=False, **options)


def test_it_runs_as_a_program(directory: Path) -> None:
    done = command("verify", directory, "--step", 30, "--json")
    assert (done.returncode, json.loads(done.stdout)[0]["damages"]) == (0, [])
    assert "verify step_30: 100 %" in done.stderr
    flip(directory / "step_30" / "rank_00000.safetensors", 0)
    done = command("verify", directory)
    assert done.returncode == 1
    assert "DAMAGED rank_00000.safetensors: chunk 0" in done.stdout


@pytest.mark.parametrize("name", ["list", "verify", "inspect"])
def test_a_reader_that_has_had_enough_is_no_error(name: str, saved: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    line = [sys.executable, "-m", "aliquot", "checkpoint", name, str(saved)]
    done = subprocess.run(line, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=100, check=False)
    os.close(writing)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if not line.startswith("verify step_")] == []


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Our end and theirs."""
    ends = pty.openpty()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


WITHOUT_RICH = "import sys; sys.modules['rich'] = None; from aliquot.__main__ import main; sys.exit(main())"


@pytest.mark.parametrize("line", [["-m", "aliquot"], ["-c", WITHOUT_RICH]], ids=["rich", "without rich"])
def test_a_terminal_sees_how_far_it_is(line: list[str], saved: Path) -> None:
    with terminal() as (ours, theirs):
        done = subprocess.run(
            [sys.executable, *line, "checkpoint", "verify", saved, "--step", "2"],
            stdout=subprocess.PIPE, stderr=theirs, text=True, timeout=100, check=True,
        )  # fmt: skip
        os.set_blocking(ours, False)
        seen = os.read(ours, 1 << 16).decode()
    assert "chunks are right" in done.stdout
    assert "verify step_2" in seen
    assert ("\x1b[" in seen) == (line[0] == "-m")
    assert "100 % of" in seen if line[0] == "-c" else "━" in seen
