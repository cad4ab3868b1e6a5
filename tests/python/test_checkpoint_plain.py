"""States as plain JSON values: they come back as they were, and nothing is pickled."""

from __future__ import annotations

import json
import math
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from typing import Any

import aliquot
import numpy
import pytest
import torch
from aliquot.checkpoint.plain import plain, unplain
from hypothesis import given
from hypothesis import strategies as st

keys = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["$tuple", "$float", "$"])
values = st.recursive(
    keys | st.floats(allow_nan=False) | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), st.integers(), max_size=3).map(Counter)
    ),
    max_leaves=10,
)


@given(values)
def test_values_come_back(value: Any) -> None:
    text = json.dumps(plain(value, "it"), allow_nan=False)
    back = unplain(json.loads(text))
    assert back == value
    assert type(back) is type(value)


def test_nan_comes_back() -> None:
    assert math.isnan(unplain(plain(math.nan, "it")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_small_tensors_come_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value = torch.arange(math.prod(shape), device="cpu").reshape(shape).to(dtype)
    back = unplain(json.loads(json.dumps(plain(value, "it"))))
    assert (back.dtype, back.shape) == (dtype, shape)
    assert torch.equal(back, value)


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: 0, torch.empty(1 << 20), torch.eye(2).to_sparse()])
def test_other_objects_are_refused_by_name(value: object) -> None:
    with pytest.raises(aliquot.CheckpointError, match=r"loader\['where'\]\[1\]"):
        plain({"where": [0, value]}, "loader")


@pytest.mark.parametrize(
    "value", [Fraction(1, 3), Decimal("0.1"), 1j, numpy.complex64(1), numpy.longdouble(1), numpy.timedelta64(5, "ns")]
)
def test_numbers_that_would_come_back_as_others_are_refused(value: object) -> None:
    with pytest.raises(aliquot.CheckpointError, match="extra is a"):
        plain(value, "extra")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (numpy.float32(0.1), float(numpy.float32(0.1))), (numpy.float64(0.1), 0.1), (numpy.float16(math.inf), math.inf),
        (numpy.int64(-3), -3), (numpy.uint64(2**64 - 1), 2**64 - 1), (numpy.bool_(True), True),
    ],
)  # fmt: skip
def test_scalars_of_numpy_come_back_as_python_s(value: object, expected: object) -> None:
    back = unplain(json.loads(json.dumps(plain(value, "extra"))))
    assert back == expected
    assert type(back) is type(expected)


def test_what_refers_to_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(aliquot.CheckpointError, match="deeper"):
        plain(endless, "extra")


@pytest.mark.parametrize(
    "value",
    [
        {"$tuple": 3},
        {"$dict": [[[], 1]]},
        {"$dict": [1]},
        {"$float": "one"},
        {"$bytes": "?"},
        {"$tensor": {"dtype": "OBJECT", "shape": [], "data": ""}},
        {"$tensor": {"dtype": "F32", "shape": [1 << 40], "data": "AAAA"}},
        {"$tensor": {"dtype": "F32", "shape": [2], "data": "AAAAAA=="}},
        {"$tensor": {"dtype": "F32", "shape": [1 << 40], "data": ""}},
    ],
    ids=str,
)
def test_hostile_values_are_refused(value: Any) -> None:
    with pytest.raises(aliquot.CheckpointError):
        unplain(value)
