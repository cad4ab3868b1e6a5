"""Dtypes in the words of safetensors."""

from __future__ import annotations

import torch

from aliquot._core import CheckpointError

WORDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
DTYPES = {word: dtype for dtype, word in WORDS.items()}


def word_of(dtype: torch.dtype, key: str) -> str:
    """What a shard file calls the dtype of the tensor at `key`."""
    if dtype not in WORDS:
        raise CheckpointError(f"{key} is {dtype}, which safetensors has no word for: convert it")
    return WORDS[dtype]
