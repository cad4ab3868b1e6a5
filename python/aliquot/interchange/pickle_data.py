"""Pickles read as data. Nothing is called, imported or unpickled: what a pickle would call comes out as a `Call`."""

from __future__ import annotations

import pickletools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from aliquot._core import CheckpointError

MAX_OPERATIONS = 1 << 24
MAX_STACK = 1 << 16
"""What waits to be put into something: Python's own pickles put a thousand things at a time into one."""
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
ARGUMENTS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"
}  # fmt: skip
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(eq=False)
class Global:
    """What would be imported."""

    name: str


@dataclass(eq=False)
class Call:
    """What would be made by calling `of`, and then given `state`."""

    of: str
    args: tuple[Any, ...]
    state: Any = None


class Pairs(list[tuple[Any, Any]]):
    """A dict as it was written: its keys may be anything, so nobody hashes them."""


def read_pickle(data: bytes, allowed: Collection[str]) -> Any:
    """None, booleans, numbers, strings, tuples, lists, and the classes above.

    `allowed`: names that may be in it. Any other is refused, though nothing would be called either way.
    """
    try:
        return _Reader(allowed).read(data)
    except (IndexError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"it can't be read as data: {error!s:.200}") from None


class _Reader:
    """The stack machine that pickles are written for, without the operations that other data needs."""

    def __init__(self, allowed: Collection[str]) -> None:
        self.allowed = allowed
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
            if operation.name == "STOP":
                return self.stack.pop()
            self._do(operation.name, argument)
            if number >= MAX_OPERATIONS or len(self.stack) + len(self.marks) > MAX_STACK:
                raise ValueError(f"it takes more than {MAX_OPERATIONS} operations, or {MAX_STACK} places")
        raise ValueError("it has no end")

    def _do(self, name: str, argument: Any) -> None:
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in ARGUMENTS:
            self.stack.append(argument)
        elif name in TUPLES:
            self.stack.append(tuple(self._popped(len(self.stack) - TUPLES[name])))
        elif operation := getattr(self, f"_{name.lower()}", None):
            operation(argument)
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"it has the operation {name}")

    def _popped(self, begin: int) -> list[Any]:
        if begin < (self.marks[-1] if self.marks else 0):
            raise IndexError("it takes more than it has put there")
        items = self.stack[begin:]
        del self.stack[begin:]
        return items

    def _marked(self) -> list[Any]:
        begin = self.marks.pop()
        return self._popped(begin)

    def _top(self, kind: type[Any]) -> Any:
        top = self.stack[-1]
        if type(top) is not kind:
            raise TypeError(f"it uses a {type(top).__name__} as a {kind.__name__}")
        return top

    def _mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._marked()))

    def _empty_list(self, _: Any) -> None:
        self.stack.append([])

    def _empty_dict(self, _: Any) -> None:
        self.stack.append(Pairs())

    def _append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._marked())

    def _extend(self, items: list[Any]) -> None:
        self._top(list).extend(items)

    def _setitem(self, _: Any) -> None:
        self._set(self._popped(len(self.stack) - 2))

    def _setitems(self, _: Any) -> None:
        self._set(self._marked())

    def _set(self, items: list[Any]) -> None:
        self._top(Pairs).extend(_paired(items))

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _long_binput = _binput

    def _binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _long_binget = _binget

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._name(module, name)

    def _stack_global(self, _: Any) -> None:
        self._name(*self._popped(len(self.stack) - 2))

    def _name(self, *path: Any) -> None:
        name = ".".join(path)
        if name not in self.allowed:
            raise ValueError(f"it names {name!r:.200}")
        self.stack.append(Global(name))

    def _reduce(self, _: Any) -> None:
        args = self.stack.pop()
        if not isinstance(args, tuple):
            raise TypeError("it calls something without a tuple")
        self.stack[-1] = Call(self._top(Global).name, args)

    _newobj = _reduce

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        self._top(Call).state = state

    def _binpersid(self, _: Any) -> None:
        self.stack.append(Call("persistent", (self.stack.pop(),)))


def _paired(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)
