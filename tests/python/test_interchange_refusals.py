"""Folders from anywhere: what does not fit or is hostile is refused with nothing changed, and nothing is executed."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aliquot
import pytest
import torch
import torch.distributed.checkpoint as dcp
from aliquot.interchange import dcp_reading, hugging_face_reading
from aliquot.interchange.entry import Entry
from aliquot.interchange.tensor_file import TensorFile
from ranks import run_ranks
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from training import assert_same_bits

WORLD_SIZE = 2
STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}


def refused(rank: int, load: Callable[..., None], folder: Path, complaint: str) -> None:
    model = aliquot.shard(nn.Linear(3, 2))
    before = aliquot.full_state_dict(model, all_ranks=True)
    with pytest.raises(aliquot.CheckpointError, match=complaint):
        load(model, folder)
    assert_same_bits(aliquot.full_state_dict(model, all_ranks=True), before)


def assert_refused(load: Callable[..., None], folder: Path, complaint: str) -> None:
    """On every rank alike."""
    run_ranks(WORLD_SIZE, refused, load, folder, complaint)


MISFITS = {
    "missing": ({"weight": STATE["weight"]}, r"missing \['bias'\]"),
    "unknown": (STATE | {"other": torch.ones(1)}, r"unknown \['other'\]"),
    "mis-shaped": (STATE | {"weight": torch.ones(3, 2)}, r"weight has shape \(3, 2\), the model's is \(2, 3\)"),
    "of other numbers": (STATE | {"weight": torch.ones(2, 3, dtype=torch.int8)}, "weight is torch.int8, and torch.fl"),
    "to be scaled": (STATE | {"weight": STATE["weight"].to(torch.float8_e4m3fn)}, "weight is torch.float8_e4m3fn"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    state, complaint = MISFITS[name]
    save_file(state, tmp_path / "model.safetensors")
    assert_refused(aliquot.load_pretrained, tmp_path, complaint)
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert_refused(aliquot.load_dcp, tmp_path / "dcp", complaint)


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert_refused(aliquot.load_pretrained, tmp_path, "there is neither model.safetensors nor .*convert")
    assert_refused(aliquot.load_dcp, tmp_path, "metadata: No such file")


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    with pytest.raises(aliquot.CheckpointError, match="would both be named same"):
        hugging_face_reading.read(tmp_path).renamed(lambda _: "same")


def write_index(folder: Path, content: Any) -> None:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "model.safetensors.index.json").write_bytes(text)


INDICES: dict[str, tuple[Any, str]] = {
    "upwards": ({"weight_map": {"weight": "../model.safetensors"}}, "no plain name"),
    "absolute": ({"weight_map": {"weight": "/tmp/model.safetensors"}}, "no plain name"),
    "a folder below": ({"weight_map": {"weight": "a/model.safetensors"}}, "no plain name"),
    "zero byte": ({"weight_map": {"weight": "model\0.safetensors"}}, "no plain name"),
    "hidden": ({"weight_map": {"weight": "..safetensors"}}, "no plain name"),
    "another kind": ({"weight_map": {"weight": "model.bin"}}, "no plain name"),
    "a number": ({"weight_map": {"weight": 3}}, "no plain name"),
    "no map": ({"weight_map": ["weight"]}, "no weight_map"),
    "a list": ([], "no weight_map"),
    "deep": (b'{"a":' * 100_000, "too deep"),
    "no JSON": (b"\x80\x04.", "not JSON"),
    "twice": (b'{"weight_map":{"a":"a","a":"b"}}', "twice"),
    "missing file": ({"weight_map": {"weight": "other.safetensors"}}, "no plain file"),
    "missing tensor": ({"weight_map": {"other": "model.safetensors"}}, "has no other"),
    "a pipe": ({"weight_map": {"weight": "pipe.safetensors"}}, "no plain file"),
}


@pytest.mark.parametrize("name", INDICES)
def test_hostile_indices_are_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(STATE, folder / "model.safetensors")
    save_file(STATE, tmp_path / "model.safetensors")
    os.mkfifo(folder / "pipe.safetensors")
    content, complaint = INDICES[name]
    write_index(folder, content)
    with pytest.raises(aliquot.CheckpointError, match=complaint):
        hugging_face_reading.read(folder)


def safetensors_file(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def described(shape: list[int], end: int, dtype: str = "F32") -> bytes:
    return json.dumps({"weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}).encode()


FILES = {
    "empty": b"",
    "no header": struct.pack("<Q", 1 << 60),
    "header of 2^64": b"\xff" * 8,
    "behind the end": safetensors_file(described([1 << 40], 1 << 42)),
    "overflowing": safetensors_file(described([1 << 32, 1 << 32], 4)),
    "of another size": safetensors_file(described([2, 3], 20), bytes(20)),
    "cut off": safetensors_file(described([2, 3], 24), bytes(23)),
    "with a surplus": safetensors_file(described([2, 3], 24), bytes(25)),
    "of no dtype": safetensors_file(described([2, 3], 24, "F33"), bytes(24)),
    "pickle": pickle.dumps(STATE["bias"].tolist()),
    "deep": safetensors_file(b'{"a":' * 10_000),
}


@pytest.mark.parametrize("name", FILES)
def test_hostile_safetensors_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(FILES[name])
    with pytest.raises(aliquot.CheckpointError, match=r"model\.safetensors: "):
        hugging_face_reading.read(tmp_path)


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class Metadata:
    """A copy of what torch.distributed.checkpoint saved, to be changed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".metadata"
        dcp.save(STATE, checkpoint_id=folder, no_dist=True)
        self.content = pickle.loads(self.path.read_bytes())

    def write(self) -> None:
        self.path.write_bytes(pickle.dumps(self.content))

    @property
    def weight(self) -> Any:
        return self.content.state_dict_metadata["weight"]

    @property
    def stored(self) -> Any:
        return self.content.storage_data[MetadataIndex("weight", [0, 0])]


def reaching(path: Any) -> Callable[[Metadata], None]:
    return lambda metadata: setattr(metadata.stored, "relative_path", path)


def chunked(*chunks: tuple[list[int], list[int]]) -> Callable[[Metadata], None]:
    """Offsets and sizes."""

    def change(metadata: Metadata) -> None:
        metadata.weight.chunks = [ChunkStorageMetadata(torch.Size(begin), torch.Size(size)) for begin, size in chunks]
        for begin, _ in chunks:
            metadata.content.storage_data[MetadataIndex("weight", begin)] = metadata.stored

    return change


def shared(levels: int) -> tuple[Any, ...]:
    """A tuple that takes 2 bytes a level in a pickle, and 2^levels words to print."""
    value: tuple[Any, ...] = ("x",)
    for _ in range(levels):
        value = (value, value)
    return value


def put(attribute: str, value: Any) -> Callable[[Metadata], None]:
    return lambda metadata: setattr(metadata.content, attribute, value)


HOSTILE: dict[str, tuple[Callable[[Metadata], None], str]] = {
    "upwards": (reaching("../x"), "no plain name"),
    "absolute": (reaching("/etc/passwd"), "no plain name"),
    "hidden": (reaching("..x"), "no plain name"),
    "beyond the tensor": (chunked(([0, 1], [2, 3])), "is not in"),
    "too few": (chunked(([0, 0], [1, 3])), "not 6 elements"),
    "overlapping": (chunked(([0, 0], [1, 3]), ([0, 1], [1, 2]), ([1, 0], [1, 1])), "overlap"),
    "of another rank": (chunked(([0], [6])), "is not in"),
    "negative": (lambda metadata: setattr(metadata.stored, "offset", -1), "said to be at -1"),
    "absurd": (lambda metadata: setattr(metadata.stored, "length", 1 << 80), "of length"),
    "shared place": (lambda metadata: setattr(metadata.stored, "offset", shared(60)), "said to be at a tuple, of"),
    "shared name": (reaching(shared(60)), "said to be in a tuple"),
    "transformed": (lambda metadata: setattr(metadata.stored, "transform_descriptors", ["zstd"]), "extension"),
    "nothing stored": (put("storage_data", {}), "nothing stored"),
    "no dict": (put("storage_data", [1]), "a list where a dict"),
    "a set": (put("planner_data", {1, 2}), "operation EMPTY_SET"),
    "bytes": (put("planner_data", b"x"), "operation SHORT_BINBYTES"),
    "an object": (put("planner_data", random.Random(0)), "it names 'random.Random'"),
    "an extra name": (put("planner_data", os.system), "it names 'posix.system'"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata_is_refused(name: str, tmp_path: Path) -> None:
    metadata = Metadata(tmp_path)
    change, complaint = HOSTILE[name]
    change(metadata)
    metadata.write()
    with pytest.raises(aliquot.CheckpointError, match=rf"\.metadata: .*{complaint}"):
        dcp_reading.read(tmp_path)


PICKLES = {
    "nothing": b"",
    "no end": b"\x80\x04N",
    "no start": b"\x80\x04.",
    "memo of 2^32": b"\x80\x04Nr\xff\xff\xff\xff.",
    "frame of 2^63": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f" + b"N.",
    "string of 2^63": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f" + b"N.",
    "mark alone": b"\x80\x04((u.",
    "under a mark": b"\x80\x04NN(\x86.",
    "deep": b"\x80\x04" + b"(" * 1_000_000,
    "nested": b"\x80\x04)" + b"\x85" * 1_000_000 + b".",
    "doubled": b"\x80\x04)q\x00" + b"h\x00h\x00\x86q\x00" * 10_000 + b"}q\x01h\x00Ns.",
    "in itself": b"\x80\x04]q\x00h\x00a.",
    "persistent": b"\x80\x04NQ.",
    "extension": b"\x80\x04\x82\x01.",
    "many": b"\x80\x04" + b"N" * (9 << 20) + b".",
    "text": b"{}",
}


@pytest.mark.parametrize("name", PICKLES)
def test_hostile_pickles_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(PICKLES[name])
    with pytest.raises(aliquot.CheckpointError, match=r"\.metadata: "):
        dcp_reading.read(tmp_path)


def test_nothing_in_metadata_is_executed(tmp_path: Path) -> None:
    metadata = Metadata(tmp_path)
    metadata.content.planner_data = {"weight": Bomb(tmp_path / "executed")}
    metadata.write()
    assert_refused(aliquot.load_dcp, tmp_path, r"it names 'posix\.mkdir'")
    assert not (tmp_path / "executed").exists()
    pickle.loads(metadata.path.read_bytes())
    assert (tmp_path / "executed").exists()  # so it would have been


def test_nothing_in_a_tensors_file_is_executed(tmp_path: Path) -> None:
    metadata = Metadata(tmp_path)
    with (tmp_path / "hostile").open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(tmp_path / "executed"), protocol=2))
    reaching("hostile")(metadata)
    metadata.stored.offset, metadata.stored.length = 0, (tmp_path / "hostile").stat().st_size
    metadata.write()
    source = dcp_reading.read(tmp_path)
    with pytest.raises(aliquot.CheckpointError, match=r"hostile: .*it names 'posix.mkdir'"):
        source["weight"]
    assert not (tmp_path / "executed").exists()


def test_links_among_the_files_of_a_dcp_folder_are_refused(tmp_path: Path) -> None:
    Metadata(tmp_path)
    (tmp_path / "__0_0.distcp").rename(tmp_path / "elsewhere")
    (tmp_path / "__0_0.distcp").symlink_to("elsewhere")
    with pytest.raises(aliquot.CheckpointError, match=r"__0_0\.distcp: .*link"):
        dcp_reading.read(tmp_path)["weight"]


def read_all(folder: Path) -> dict[str, Tensor]:
    return dict(dcp_reading.read(folder))


def test_no_flipped_bit_of_a_tensor_passes(tmp_path: Path) -> None:
    """The archives that torch writes have checksums, which are used."""
    Metadata(tmp_path)
    path = tmp_path / "__0_0.distcp"
    whole = path.read_bytes()
    data = STATE["weight"].numpy().tobytes()
    at = whole.index(data)
    for byte in range(len(data)):
        damaged = bytearray(whole)
        damaged[at + byte] ^= 1 << byte % 8
        path.write_bytes(damaged)
        with pytest.raises(aliquot.CheckpointError, match="CRC"):
            read_all(tmp_path)


SECONDS = float(os.environ.get("ALIQUOT_FUZZ_SECONDS", "1"))
READERS = {
    ".metadata": dcp_reading.read,
    "__0_0.distcp": dcp_reading.read,
    "model.safetensors": hugging_face_reading.read,
    "model.safetensors.index.json": hugging_face_reading.read,
}


def changed(whole: bytes, choose: random.Random) -> bytes:
    """Some bytes others, some moved, perhaps cut off."""
    damaged = bytearray(whole)
    for _ in range(choose.choice((1, 1, 1, 8))):
        damaged[choose.randrange(len(damaged))] = choose.randrange(256)
    if not choose.randrange(4):
        begin, to = choose.randrange(len(damaged)), choose.randrange(len(damaged))
        damaged[to:to] = damaged[begin : begin + 20]
    return bytes(damaged[: choose.choice((len(damaged), choose.randrange(len(damaged))))])


@pytest.mark.parametrize("base", READERS)
def test_whatever_is_changed_only_a_checkpoint_error_comes(base: str, tmp_path: Path, tally: Any) -> None:
    """ALIQUOT_FUZZ_SECONDS makes it longer (`make faults`)."""
    Metadata(tmp_path)
    save_file(STATE, tmp_path / "model.safetensors")
    if base.endswith("json"):
        write_index(tmp_path, {"metadata": {}, "weight_map": dict.fromkeys(STATE, "model.safetensors")})
    whole = (tmp_path / base).read_bytes()
    choose = random.Random(0)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        tally("changed files of others that raise nothing but a CheckpointError", 1)
        (tmp_path / base).write_bytes(changed(whole, choose))
        try:
            found = dict(READERS[base](tmp_path))
        except aliquot.CheckpointError:
            continue
        assert all(isinstance(value, Tensor) for value in found.values())


def test_a_damaged_tensor_is_an_error_on_every_rank(tmp_path: Path) -> None:
    """It can't be known before it is read."""

    def damage(rank: int) -> None:
        model = aliquot.shard(nn.Linear(3, 2))
        message = "(weight|bias) can't be read, and part of the model has new values"
        with pytest.raises(aliquot.CheckpointError, match=message):
            aliquot.load_dcp(model, tmp_path)
        aliquot.load_full_state_dict(model, STATE)
        assert_same_bits(aliquot.full_state_dict(model, all_ranks=True), STATE)

    Metadata(tmp_path)
    path = tmp_path / "__0_0.distcp"
    path.write_bytes(path.read_bytes().replace(STATE["bias"].numpy().tobytes(), b"damaged!"))
    run_ranks(WORLD_SIZE, damage)


@pytest.mark.parametrize("name", ["__metadata__", "complex"])
def test_tensors_that_the_format_can_not_hold_are_refused(name: str, tmp_path: Path) -> None:
    entry = Entry(name, torch.complex128 if name == "complex" else torch.float32, (1,))
    with pytest.raises(aliquot.CheckpointError, match=f"{name}.*safetensors"):
        TensorFile(tmp_path / "file", [entry])
    assert not (tmp_path / "file").exists()


def test_nothing_is_overwritten_and_nothing_left_behind(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        model = aliquot.shard(nn.Linear(3, 2))
        for save in (aliquot.save_pretrained, aliquot.save_dcp):
            for taken in ("folder", "link"):
                with pytest.raises(aliquot.CheckpointError, match=f"{taken} is there already"):
                    save(model, tmp_path / taken)
            with pytest.raises(aliquot.CheckpointError, match=r"rank 0: .*file"):
                save(model, tmp_path / "folder" / "file" / "out")
        with pytest.raises(aliquot.InvalidArgument, match="a size is '5XB'"):
            aliquot.save_pretrained(model, tmp_path / "out", max_shard_size="5XB")
        with pytest.raises(aliquot.InvalidArgument, match=r"dtype is torch\.int8"):
            aliquot.save_pretrained(model, tmp_path / "out", dtype=torch.int8)
        aliquot.save_pretrained(model, tmp_path / "empty")

    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    (tmp_path / "link").symlink_to("elsewhere")
    run_ranks(WORLD_SIZE, work)
    assert (tmp_path / "folder" / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "folder", "link"]
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("save", [aliquot.save_pretrained, aliquot.save_dcp])
def test_a_full_disk_is_an_error_on_every_rank(save: Callable[..., None], tmp_path: Path) -> None:
    def work(rank: int) -> None:
        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        model = aliquot.shard(nn.Linear(3, 2))
        if rank == 0:
            os.fsync = fail
        with pytest.raises(aliquot.CheckpointError, match=r"rank 0: .*No space left"):
            save(model, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    run_ranks(WORLD_SIZE, work)
    assert list(tmp_path.iterdir()) == []
