"""The two tables that close a run: what a rank held beside the unsharded model, and where the time went."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from display import mebibytes
from rich.table import Table

FP32 = 4
# Title of the row, the roles that it sums, and the copies of the model that an unsharded fp32 AdamW run keeps of them.
ROWS = (
    ("parameters", ("param", "master"), 1),
    ("gradients", ("grad",), 1),
    ("optimizer states", ("exp_avg", "exp_avg_sq"), 2),
    ("slots (full units on their way)", ("slot", "outbox"), 0),
)


class StopWatch:
    """Seconds spent in the named parts of a loop, on this rank's host."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.parts[name] += time.perf_counter() - start

    def seconds(self, *names: str) -> float:
        return sum(self.parts[name] for name in names)


def memory_table(held: Mapping[str, int], parameters: int, world_size: int) -> Table:
    """`held`: this rank's bytes by role. Roles that no row names get a row of their own: nothing is left out."""
    rows = [(title, sum(held.get(role, 0) for role in roles), copies) for title, roles, copies in ROWS]
    named = {role for _, roles, _ in ROWS for role in roles}
    rows += [(role, count, 0) for role, count in held.items() if role not in named and count]
    rows += [("total", sum(count for _, count, _ in rows), sum(copies for _, _, copies in rows))]

    table = Table("bytes", title=f"memory of one rank of {world_size}")
    for heading in ("this rank", "unsharded", "part"):
        table.add_column(heading, justify="right")
    for title, count, copies in rows:
        whole = copies * FP32 * parameters
        part = f"{count / whole:.0%}" if whole else ""
        table.add_row(title, mebibytes(count), mebibytes(whole), part, end_section=title == rows[-2][0])
    return table


def time_table(watch: StopWatch, inside: Mapping[str, float]) -> Table:
    """`inside`: seconds that the library counted itself; they are part of the rows above them, not added to them."""
    total = watch.seconds(*watch.parts)
    table = Table("time", title="where rank 0's time went")
    for heading in ("seconds", "part"):
        table.add_column(heading, justify="right")
    for title, seconds in watch.parts.items():
        table.add_row(title, f"{seconds:.2f}", f"{seconds / total:.0%}")
    table.add_row("total", f"{total:.2f}", "", end_section=True)
    for title, seconds in inside.items():
        table.add_row(f"of which Aliquot: {title}", f"{seconds:.2f}", f"{seconds / total:.0%}")
    return table
