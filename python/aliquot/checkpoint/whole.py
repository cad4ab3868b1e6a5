"""The model's tensors in a checkpoint, whole, by their names in a state dict."""

from __future__ import annotations

from torch import Tensor

from aliquot.checkpoint.catalog import Checkpoint
from aliquot.checkpoint.dtypes import DTYPES
from aliquot.checkpoint.reading import Reading
from aliquot.interchange.entry import Entry, Source

KINDS = ("param/", "buffer/")
"""What keys begin with: parameters, and rank 0's buffers."""


def whole_tensors(checkpoint: Checkpoint) -> Source:
    """Parameters (masters, where there were some) and buffers. Each is read when it is asked for, and its checksums
    are checked then.
    """  # fmt: skip
    keys = {key.partition("/")[2]: key for key in checkpoint.manifest.tensors if key.startswith(KINDS)}
    tensors = {name: checkpoint.manifest.tensors[key] for name, key in keys.items()}
    entries = {name: Entry(name, DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
    return Source(entries, lambda name: read_range(checkpoint, keys[name]).view(entries[name].shape))


def read_range(checkpoint: Checkpoint, key: str, begin: int = 0, end: int | None = None) -> Tensor:
    """Elements of the flattened tensor; all of them without an end."""
    reading = Reading(checkpoint)
    values = reading.want(key, begin, checkpoint.manifest.tensors[key].numel if end is None else end)
    reading.run()
    return values
