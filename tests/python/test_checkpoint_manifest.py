"""The manifest of a checkpoint: it comes back as it was, and anything else is refused."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import aliquot
import pytest
from aliquot.checkpoint.manifest import File, Manifest, Piece, Tensor, checksum, parse
from hypothesis import given
from hypothesis import strategies as st

names = st.text(st.characters(codec="utf-8"), max_size=20)
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=10,
)


def manifest(extra: Any = None) -> Manifest:
    pieces = [
        Piece(begin=0, end=4, file="rank_0.safetensors", offset=80),
        Piece(begin=4, end=6, file="rank_1.safetensors", offset=80),
    ]
    state = {"rng": None, "loader": None}
    return Manifest.model_validate(
        {
            "aliquot": "0.1.0",
            "step": 3,
            "world_size": 2,
            "stage": 3,
            "transport": "shared_memory",
            "configuration": "digest",
            "files": {f"rank_{rank}.safetensors": File(bytes=100, crcs=[1]) for rank in range(2)},
            "tensors": {
                "param/w": Tensor(dtype="F32", shape=[2, 3], pieces=pieces),
                "param/empty": Tensor(dtype="BF16", shape=[0, 9], pieces=[]),
            },
            "tied": {"head": "w"},
            "gradients": ["w"],
            "step_counts": [3, 0, 0],
            "optimizers": [{"kind": "AdamW", "groups": [{"lr": 0.1}], "scalars": {}, "skipped_in_a_row": 0}],
            "schedulers": [],
            "scaler": None,
            "ranks": [state, state],
            "extra": extra,
        }
    )


@pytest.mark.parametrize(("was", "damaged"), [(b"1e-08", b"1E-08"), (b"\\u00e9", b"\\u00E9"), (b"[]", b"[ ]")])
def test_damage_that_changes_no_value_is_refused(was: bytes, damaged: bytes) -> None:
    text = manifest([1e-8, "\u00e9"]).text()
    assert was in text
    with pytest.raises(aliquot.CheckpointError, match="changed or damaged"):
        parse(text.replace(was, damaged, 1))


@given(plain_values)
def test_what_was_written_comes_back(extra: Any) -> None:
    written = manifest(extra)
    assert parse(written.text()) == written
    assert parse(written.text()).text() == written.text()


@given(st.data())
def test_a_changed_byte_is_found(data: st.DataObject) -> None:
    text = bytearray(manifest({"loss": 0.5}).text())
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != text[place]))
    with pytest.raises(aliquot.CheckpointError):
        parse(bytes(text))


@given(st.binary(max_size=200) | plain_values.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused(text: bytes) -> None:
    with pytest.raises(aliquot.CheckpointError):
        parse(text)


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        inside: Any = content
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = value

    return change


def renamed(name: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["files"][name] = content["files"].pop("rank_0.safetensors")
        content["tensors"]["param/w"]["pieces"][0]["file"] = name

    return change


W = ("tensors", "param/w")
HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "parent folder": (renamed("../rank_0.safetensors"), "plain name"),
    "absolute path": (renamed("/etc/passwd"), "plain name"),
    "dots": (renamed(".."), "plain name"),
    "hidden": (renamed(".ssh"), "plain name"),
    "NUL": (renamed("a\0b"), "plain name"),
    "newline": (renamed("a\n"), "plain name"),
    "long name": (renamed("a" * 300), "plain name"),
    "no name": (renamed(""), "plain name"),
    "unlisted file": (put(*W, "pieces", 0, "file", value="other"), "not listed"),
    "overflowing shape": (put(*W, "shape", value=[1 << 62, 1 << 62]), "shape"),
    "shape of 4 EiB": (put(*W, "shape", value=[1 << 62]), "shape"),
    "negative shape": (put(*W, "shape", value=[-2, -3]), "greater than or equal to 0"),
    "shape of floats": (put(*W, "shape", value=[2.0, 3.0]), "valid integer"),
    "shape of booleans": (put(*W, "shape", value=[True, 6]), "valid integer"),
    "many dimensions": (put(*W, "shape", value=[1] * 65), "at most 64"),
    "huge number": (put(*W, "shape", value=[10**4000]), "less than"),
    "dtype": (put(*W, "dtype", value="OBJECT"), "dtype"),
    "offset behind the file": (put(*W, "pieces", 0, "offset", value=96), "ends at byte 112"),
    "huge offset": (put(*W, "pieces", 0, "offset", value=(1 << 63) - 8), "ends at byte"),
    "negative offset": (put(*W, "pieces", 0, "offset", value=-8), "greater than or equal to 0"),
    "gap": (put(*W, "pieces", 1, "begin", value=5), "come behind 4"),
    "overlap": (put(*W, "pieces", 1, "begin", value=3), "come behind 4"),
    "backwards": (put(*W, "pieces", 0, "end", value=0), "come behind 0"),
    "short": (put(*W, "pieces", 1, "end", value=5), "5 of 6 elements"),
    "shared bytes": (
        put("tensors", "param/v", value={
            "dtype": "F32", "shape": [1], "pieces": [
                {"begin": 0, "end": 1, "file": "rank_0.safetensors", "offset": 84}
            ],
        }), "begins within",
    ),
    "missing checksums": (put("files", "rank_0.safetensors", "crcs", value=[]), "0 checksums for 100 bytes"),
    "large file": (put("files", "rank_0.safetensors", "bytes", value=1 << 62), "1 checksums"),
    "wrong checksums": (put("files", "rank_0.safetensors", "crcs", value=[1 << 32]), "less than"),
    "tied to nothing": (put("tied", "other", value="nobody"), "tied to nobody"),
    "states of other ranks": (put("world_size", value=3), "2 ranks"),
    "no rank": (put("world_size", value=0), "world_size"),
    "stage": (put("stage", value=4), "stage"),
    "version": (put("version", value=2), "version"),
    "format": (put("format", value="pickle"), "format"),
    "another field": (put("code", value="import os"), "code"),
    "another field of a piece": (put(*W, "pieces", 0, "seek", value=0), "seek"),
    "step": (put("step", value="3"), "step"),
}  # fmt: skip


def require_refused(text: bytes, complaint: str) -> None:
    """With little more memory than the text takes."""
    tracemalloc.start()
    try:
        with pytest.raises(aliquot.CheckpointError, match=complaint):
            parse(text)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(text) + (1 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_refused(name: str) -> None:
    change, complaint = HOSTILE[name]
    content = json.loads(manifest().text())
    del content["checksum"]
    change(content)
    require_refused(json.dumps(content | {"checksum": checksum(content)}).encode(), complaint)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b'{"a":' * 100_000, "too deep"),
        (b"[" * 10_000_000, "more in them"),
        (b'{"step":1,"step":2}', "twice"),
        (b'{"step":NaN}', "NaN"),
        (b'{"step":-Infinity}', "Infinity"),
        (b'{"step":1e999}', "no number that a float holds"),
        (b'{"step":' + b"9" * 10_000 + b"}", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b'\x80\x04\x95.', "not JSON"),
        (b"[]", "a list"),
        (b"{}", "checksum"),
        (b'{"checksum":true}', "checksum"),
        (b"", "not JSON"),
    ],
    ids=str,
)  # fmt: skip
def test_hostile_text_is_refused(text: bytes, complaint: str) -> None:
    require_refused(text, complaint)
