"""Writes folders that torch.distributed.checkpoint loads, by torch's own writer."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.state_dict_saver import save

from aliquot._core import CheckpointError
from aliquot.interchange.entry import Entry, Named


def write(folder: Path, entries: Iterable[Entry], values: Named) -> None:
    """Fills the folder. `values` come in the order of `entries`, and are cast to their dtypes."""
    described = {entry.name: torch.empty(entry.shape, dtype=entry.dtype, device="meta") for entry in entries}
    # A file for each tensor: torch's writer holds all tensors of a file until it is closed.
    writer = FileSystemWriter(folder, single_file_per_rank=False, thread_count=1, overwrite=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is")  # which is meant to be so here
        try:
            save(described, storage_writer=writer, planner=_Streaming(values), no_dist=True)
        except CheckpointException as error:  # which is no Exception
            raise CheckpointError(_reason(error)) from None


def _reason(error: CheckpointException) -> str:
    """What happened, without the traceback that torch makes of it."""
    return "; ".join(f"{type(failure).__name__}: {failure}" for failure, _ in error.failures.values())


class _Streaming(DefaultSavePlanner):
    """Plans with shapes alone, and takes the tensors as the writer asks for them, one after the other."""

    def __init__(self, values: Named) -> None:
        super().__init__()
        self._values = values

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The next one."""
        name, value = next(self._values)
        described: Any = self.lookup_object(write_item.index)
        if (name, value.shape) != (write_item.index.fqn, described.shape):
            raise CheckpointError(f"torch's writer asks for {write_item.index.fqn}, and {name} comes next")
        return value.detach().to("cpu", described.dtype).contiguous()
