"""States of Python objects as plain JSON values, and back, without pickles.

None, booleans, finite numbers, strings, lists, and dicts with string keys stand for themselves. What JSON lacks is an
object of one key that begins with `$`: `$tuple`, `$dict` and `$counter` (pairs), `$float` (inf, -inf, nan), `$bytes`
and `$tensor` (base64). Numbers of NumPy's become Python's.
"""

from __future__ import annotations

import base64
import binascii
import math
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from aliquot._core import CheckpointError
from aliquot.checkpoint.dtypes import DTYPES, word_of

MAX_DEPTH = 64
MAX_TENSOR_BYTES = 1 << 20
FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """`value` as JSON. `where` it is, for the error that refuses another kind of object."""
    if depth > MAX_DEPTH:
        raise CheckpointError(f"{where} is nested deeper than {MAX_DEPTH}")
    value = _without_numpy(value)
    match value:
        case None | bool() | str():
            return value
        case int():
            return int(value)
        case float():
            return float(value) if math.isfinite(value) else {"$float": str(float(value))}
        case list():
            return [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
        case tuple():
            return {"$tuple": [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]}
        case Mapping():
            return _plain_mapping(value, where, depth + 1)
        case bytes() | bytearray():
            return {"$bytes": base64.b64encode(value).decode()}
        case torch.Tensor():
            return {"$tensor": _plain_tensor(value, where)}
    raise CheckpointError(
        f"{where} is a {type(value).__name__}: checkpoints hold None, booleans, numbers, strings, bytes, small "
        "tensors, and lists, tuples and dicts of them. Nothing is pickled"
    )


def _without_numpy(value: Any) -> Any:
    """A number of NumPy's as Python's, which holds the same."""
    numpy = sys.modules.get("numpy")
    is_number = numpy is not None and isinstance(value, numpy.generic) and value.dtype.kind in "biuf"
    return value.item() if is_number else value


def _plain_mapping(value: Mapping[Any, Any], where: str, depth: int) -> Any:
    if not isinstance(value, Counter) and all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: plain(item, f"{where}[{key!r}]", depth) for key, item in value.items()}
    pairs = [
        [plain(key, f"a key of {where}", depth), plain(item, f"{where}[{key!r}]", depth)] for key, item in value.items()
    ]
    return {"$counter" if isinstance(value, Counter) else "$dict": pairs}


def _plain_tensor(value: torch.Tensor, where: str) -> dict[str, Any]:
    if value.layout != torch.strided or value.is_quantized or value.numel() * value.itemsize > MAX_TENSOR_BYTES:
        raise CheckpointError(
            f"{where} is a {value.layout} tensor of {value.numel()} elements: states hold dense ones of at most "
            f"{MAX_TENSOR_BYTES} bytes. Keep it in a buffer of the model"
        )
    held = value.detach().cpu().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)
    return {
        "dtype": word_of(value.dtype, where),
        "shape": list(value.shape),
        "data": base64.b64encode(bytes(held.tolist())).decode(),
    }


def unplain(value: Any) -> Any:
    """What `plain` was given."""
    try:
        return _unplain(value)
    except (KeyError, TypeError, ValueError, RuntimeError, RecursionError, OverflowError, binascii.Error) as error:
        raise CheckpointError(f"a state can't be read: {error!s:.200}") from None


def _unplain(value: Any) -> Any:
    if isinstance(value, list):
        return [_unplain(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$tuple": items}:
            return tuple(map(_unplain, items))
        case {"$dict": pairs}:
            return {_unplain(key): _unplain(item) for key, item in pairs}
        case {"$counter": pairs}:
            return Counter({_unplain(key): _unplain(item) for key, item in pairs})
        case {"$float": name}:
            return FLOATS[name]
        case {"$bytes": text}:
            return base64.b64decode(text, validate=True)
        case {"$tensor": {"dtype": word, "shape": shape, "data": text}}:
            held = bytearray(base64.b64decode(text, validate=True))
            dtype = DTYPES[word]
            sized = all(type(size) is int and size >= 0 for size in shape)
            if not sized or math.prod(shape) * dtype.itemsize != len(held):
                raise ValueError(f"{len(held)} bytes for a tensor of {dtype} and shape {shape!r:.100}")
            if not held:
                return torch.empty(shape, dtype=dtype, device="cpu")
            return torch.frombuffer(held, dtype=dtype).view(shape)
    return {key: _unplain(item) for key, item in value.items()}
