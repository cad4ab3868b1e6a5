"""The files of a checkpoint are safetensors files that the library `safetensors` reads as they were written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import aliquot
import pytest
import torch
from aliquot import _core
from aliquot.checkpoint import dtypes
from safetensors import safe_open
from safetensors.torch import load_file

WORDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
}


def write(path: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[int, list[int], list[int]]:
    return _core.write_shard_file(str(path), [of(k, WORDS[t.dtype], list(t.shape), t) for k, t in tensors.items()])


def of(key: str, word: str, shape: list[int], value: torch.Tensor) -> _core.FileTensor:
    return _core.FileTensor(key, word, shape, value.data_ptr(), value.nbytes)


def random_bytes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def of_every_dtype() -> dict[str, torch.Tensor]:
    """Sizes odd on purpose: what lies behind must be aligned all the same."""
    values = {str(dtype): torch.randn(3, 5).to(dtype) for dtype in WORDS}
    return values | {"scalar": torch.tensor(1.5), "empty": torch.empty(4, 0), "none": torch.empty(0)}


def assert_same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert found[name].flatten().view(torch.uint8).equal(tensor.flatten().view(torch.uint8)), name


def test_what_python_has_a_word_for_can_be_written(tmp_path: Path) -> None:
    for number, (dtype, word) in enumerate(dtypes.WORDS.items()):
        value = torch.zeros(3, dtype=torch.uint8).repeat(dtype.itemsize).view(dtype)
        _core.write_shard_file(str(tmp_path / str(number)), [of("key", word, [3], value)])
        with safe_open(tmp_path / str(number), "pt") as file:
            assert file.get_tensor("key").dtype == dtype
    with pytest.raises(aliquot.CheckpointError, match=r"scale is torch\.float8_e5m2fnuz, which"):
        dtypes.word_of(torch.float8_e5m2fnuz, "scale")


def test_safetensors_reads_every_dtype(tmp_path: Path) -> None:
    tensors = of_every_dtype()
    write(tmp_path / "f", tensors)
    assert_same(load_file(tmp_path / "f"), tensors)


def test_safetensors_opens_a_file_of_several_chunks(tmp_path: Path) -> None:
    tensors = {"a": random_bytes(_core.chunk_bytes + 1), "b": torch.randn(1 << 20), "c": random_bytes(3)}
    write(tmp_path / "f", tensors)
    with safe_open(tmp_path / "f", framework="pt") as file:
        assert_same({name: file.get_tensor(name) for name in file.keys()}, tensors)  # noqa: SIM118 (not a dict)


@pytest.mark.parametrize(
    "name", ['a "quoted" \\ name', "line\nfeed\x00and\x1f\x7f", "ü, 中文 and 🙂", "", "/../x", "é" * 999]
)
def test_names_are_kept(tmp_path: Path, name: str) -> None:
    write(tmp_path / "f", {name: torch.ones(2)})
    assert_same(load_file(tmp_path / "f"), {name: torch.ones(2)})


def test_an_empty_file_is_one(tmp_path: Path) -> None:
    bytes_, crcs, offsets = write(tmp_path / "f", {})
    assert load_file(tmp_path / "f") == {}
    assert (bytes_, len(crcs), offsets) == ((tmp_path / "f").stat().st_size, 1, [])


def test_tensors_are_aligned_where_the_offsets_say(tmp_path: Path) -> None:
    tensors = of_every_dtype()
    _, _, offsets = write(tmp_path / "f", tensors)
    content = (tmp_path / "f").read_bytes()
    for offset, tensor in zip(offsets, tensors.values(), strict=True):
        assert offset % min(tensor.element_size(), 8) == 0
        assert content[offset : offset + tensor.nbytes] == bytes(tensor.flatten().view(torch.uint8).tolist())


def test_checksums_are_of_chunks(tmp_path: Path) -> None:
    count, crcs, _ = write(tmp_path / "f", {"a": random_bytes(2 * _core.chunk_bytes + 12345)})
    content = (tmp_path / "f").read_bytes()
    assert count == len(content)
    chunks = [content[i : i + _core.chunk_bytes] for i in range(0, count, _core.chunk_bytes)]
    assert crcs == [_core.crc32c(chunk) for chunk in chunks]


def test_ranges_are_read_back(tmp_path: Path) -> None:
    written = random_bytes(2 * _core.chunk_bytes + 777)
    count, crcs, (offset,) = write(tmp_path / "f", {"a": written})
    for begin, end in ((0, 0), (5, 6), (_core.chunk_bytes - 100, 2 * _core.chunk_bytes + 100), (0, written.numel())):
        found = torch.zeros(end - begin, dtype=torch.uint8)
        ranges = [(offset + begin, found.nbytes, found.data_ptr(), "a")]
        _core.read_ranges(str(tmp_path / "f"), count, crcs, ranges)
        assert found.equal(written[begin:end])


def test_damage_names_file_chunk_and_tensor(tmp_path: Path) -> None:
    path = tmp_path / "f"
    tensors = {"first": random_bytes(_core.chunk_bytes), "second": random_bytes(_core.chunk_bytes)}
    count, crcs, offsets = write(path, tensors)
    content = bytearray(path.read_bytes())
    content[offsets[1] + _core.chunk_bytes // 2] ^= 1
    path.write_bytes(content)
    into = torch.zeros(_core.chunk_bytes, dtype=torch.uint8)
    _core.read_ranges(str(path), count, crcs, [(offsets[0], 1000, into.data_ptr(), "first")])
    with pytest.raises(aliquot.CheckpointError, match=rf"{path} is damaged in chunk 1 .*'second'"):
        _core.read_ranges(str(path), count, crcs, [(offsets[1], into.nbytes, into.data_ptr(), "second")])
    with pytest.raises(aliquot.CheckpointError, match="chunk 1"):
        _core.verify_file(str(path), count, crcs)


def test_refuses_what_the_format_can_not_hold(tmp_path: Path) -> None:
    value = torch.ones(2)
    good = of("a", "F32", [2], value)
    for tensors, words in (
        ([good, good], "two of that name"),
        ([of("a", "F33", [2], value)], "no dtype 'F33'"),
        ([of("a", "F32", [3], value)], "needs 12 bytes"),
        ([of("a", "F32", [1 << 62, 16], value)], "larger than any memory"),
        ([of("__metadata__", "F32", [2], value)], "keeps that name"),
    ):
        with pytest.raises(aliquot.InvalidArgument, match=words):
            _core.write_shard_file(str(tmp_path / "f"), tensors)
    assert list(tmp_path.iterdir()) == []


def test_the_checksum_takes_any_buffer() -> None:
    assert _core.crc32c(b"123456789") == 0xE3069283
    assert _core.crc32c(memoryview(b"56789"), _core.crc32c(bytearray(b"1234"))) == 0xE3069283
    with pytest.raises(aliquot.InvalidArgument, match="not contiguous"):
        _core.crc32c(memoryview(b"123456789")[::2])
