"""Pickles of strangers, read without calling anything.

A pickle is a program that may call any function there is. Those that hold a face's metadata or a model's weights need
few of its instructions and call nothing but what makes NumPy's arrays. A little machine here carries out those
instructions (see Python's `pickletools`) and compares the few names as words: it looks nothing up, so there is nothing
to get around.
"""

import math
import pickletools
import re
import struct
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from faceswap.errors import FacesetError, FaceswapError

ENUMS = ("samplelib.", "facelib.")  # packages of DeepFaceLab, whose classes are numbers with a name
RECONSTRUCT = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
SCALAR = {"numpy.core.multiarray scalar", "numpy._core.multiarray scalar"}
FROM_BUFFER = {"numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer"}
NDARRAY, DTYPE, ENCODE = "numpy ndarray", "numpy dtype", "_codecs encode"
KNOWN = {NDARRAY, DTYPE, ENCODE} | RECONSTRUCT | SCALAR | FROM_BUFFER
LONGEST_SIDE = 1 << 40  # of an array


def read(
    data: bytes,
    where: str,
    content: str = "metadata",  # what it should hold, for messages
    need: str = "face",  # and what for
    error: type[FaceswapError] = FacesetError,
) -> Any:
    """What a pickle holds, if that is nothing but plain values and arrays of numbers.

    A number with a name of DeepFaceLab's own becomes the number. `error`, which names the file `where`, if the
    pickle asks for anything else; `ValueError` if it is damaged.
    """
    try:
        return _Machine(where, content, need, error).run(data)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, struct.error) as trouble:
        raise ValueError(f"damaged pickle, {str(trouble)[:80]}") from None


class _Name(str):
    """What a pickle would look up; here it stays a word."""


class _Unfinished:
    """An array, or the type of its numbers, whose content comes later."""

    def __init__(self, what: str) -> None:
        self.what = what  # "array", or the type's code
        self.places: list[int] = []  # in the memo


class _Mark:
    """Where several things begin on the stack."""


class _Arguments(tuple[Any, ...]):
    """A tuple that holds what is no plain value: of use for calls only."""


class _Machine:
    """The state of reading: a stack, and a memo of what is referred to again."""

    def __init__(self, where: str, content: str, need: str, error: type[FaceswapError]) -> None:
        self.where, self.content, self.need, self.error = where, content, need, error
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for code, argument, _ in pickletools.genops(data):
            name = code.name
            if name == "STOP":
                return _plain(self.stack.pop())
            if name in VALUES:
                self.stack.append(argument)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name]())
            elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                self.remember(len(self.memo) if argument is None else int(argument))
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                self.stack.append(self.memo[int(argument)])  # type: ignore[arg-type]
            elif name in ("GLOBAL", "STACK_GLOBAL"):
                self.name(argument)
            elif name in ACTIONS:
                ACTIONS[name](self)
            elif name not in ("PROTO", "FRAME"):
                self.refuse(f"the instruction {name}")
        raise ValueError("it ends too early")

    def refuse(self, what: str) -> NoReturn:
        raise self.error(
            f"{self.where}: its pickled {self.content} asks for {' '.join(what.split())[:80]}, which no {self.need} "
            "needs and which may be an attack; nothing was run, delete the file"
        )

    def remember(self, place: int) -> None:
        value = self.memo[place] = self.stack[-1]
        if isinstance(value, _Unfinished):
            value.places.append(place)

    def name(self, argument: Any) -> None:
        if argument is None:
            name, module = self.stack.pop(), self.stack.pop()
            if not isinstance(module, str) or not isinstance(name, str):
                raise ValueError("a name that is no word")
            argument = f"{module} {name}"
        if argument not in KNOWN and not argument.startswith(ENUMS):
            self.refuse(argument.replace(" ", "."))
        self.stack.append(_Name(argument))

    def above_mark(self) -> list[Any]:
        """What lies above the last mark; both go from the stack."""
        marks = (place for place in range(len(self.stack) - 1, -1, -1) if isinstance(self.stack[place], _Mark))
        place = next(marks, None)
        if place is None:
            raise ValueError("a mark is missing")
        above = self.stack[place + 1 :]
        del self.stack[place:]
        return above

    def pack(self, values: list[Any]) -> None:
        """A tuple."""
        rough = any(isinstance(value, _NOT_PLAIN) for value in values)
        self.stack.append(_Arguments(values) if rough else tuple(values))

    def top(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("the stack is empty")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("no list to append to")
        self.stack[-1].extend(map(_plain, values))

    def fill(self, pairs: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise ValueError("no dictionary to fill")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) not in (str, int, float, bytes):  # nested tuples exhaust the C stack where they are hashed
                raise ValueError("a key that is no plain value")
            self.stack[-1][key] = _plain(value)

    def make(self, empty: Callable[[], Any], put: "Callable[[_Machine, list[Any]], None]") -> None:
        above = self.above_mark()
        self.stack.append(empty())
        put(self, above)

    def call(self) -> None:
        """A call, of which we know what it would return."""
        name, given = self.top(2)
        if not isinstance(name, _Name) or not isinstance(given, tuple):
            self.refuse("a call of what has no name")
        if name in RECONSTRUCT and len(given) == 3 and isinstance(given[0], _Name) and given[0] == NDARRAY:
            self.stack.append(_Unfinished("array"))
        elif name == DTYPE and given and type(given[0]) is str:
            if not re.fullmatch(r"[iuf][1248]|b1", given[0]):
                self.refuse(f"an array of the type {given[0]}")
            self.stack.append(_Unfinished(given[0]))
        elif name in SCALAR and len(given) == 2:
            self.stack.append(_array(_kind(given[0]), (), given[1], "C").item())
        elif name in FROM_BUFFER and len(given) == 4:
            content, kind, shape, order = given
            self.stack.append(_array(_kind(kind), shape, content, order))
        elif name == ENCODE and len(given) == 2 and type(given[0]) is str and given[1:] in (("latin1",), ("latin-1",)):
            self.stack.append(given[0].encode("latin-1"))
        elif name.startswith(ENUMS) and len(given) == 1 and type(given[0]) is int:
            self.stack.append(given[0])
        else:
            self.refuse(f"a call of {name.replace(' ', '.')} in a way of its own")

    def build(self) -> None:
        """The content of an array, or of the type of its numbers."""
        what, state = self.top(2)
        if not isinstance(what, _Unfinished) or not isinstance(state, tuple):
            self.refuse("attributes to be set")
        done: Any
        if what.what == "array":
            _, shape, kind, fortran, content = state
            done = _array(_kind(kind), shape, content, "F" if fortran is True else "C")
        else:
            if len(state) < 5 or any(part is not None for part in state[2:5]) or state[1] not in ("<", ">", "|", "="):
                self.refuse("an array of a type of its own")
            done = np.dtype(what.what).newbyteorder(state[1])
        for place in what.places:
            self.memo[place] = done
        self.stack.append(done)


_NOT_PLAIN = (_Name, _Unfinished, _Mark, _Arguments, np.dtype)


def _plain(value: Any) -> Any:
    if isinstance(value, _NOT_PLAIN):
        raise ValueError("something unfinished where a value belongs")
    return value


def _kind(value: Any) -> np.dtype[Any]:
    """The type of an array's numbers."""
    if isinstance(value, _Unfinished) and value.what != "array":
        return np.dtype(value.what)
    if isinstance(value, np.dtype):
        return value
    raise ValueError("no type of numbers")


def _array(kind: np.dtype[Any], shape: Any, content: Any, order: Any) -> NDArray[Any]:
    """An array, all of whose content is there: it takes no more memory than the pickle."""
    if not isinstance(content, bytes | bytearray) or type(shape) is not tuple or len(shape) > 8:
        raise ValueError("an array without content or shape")
    if not all(type(side) is int and 0 <= side < LONGEST_SIDE for side in shape) or order not in ("C", "F"):
        raise ValueError("an array without a shape")
    if math.prod(shape) * kind.itemsize != len(content):
        raise ValueError("an array whose content does not fill it")
    return np.frombuffer(bytes(content), kind).reshape(shape, order=order).copy()


VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "MARK": _Mark,
}
ACTIONS: dict[str, Callable[[_Machine], Any]] = {
    "POP": lambda machine: machine.stack.pop(),
    "POP_MARK": _Machine.above_mark,
    "TUPLE": lambda machine: machine.pack(machine.above_mark()),
    "TUPLE1": lambda machine: machine.pack(machine.top(1)),
    "TUPLE2": lambda machine: machine.pack(machine.top(2)),
    "TUPLE3": lambda machine: machine.pack(machine.top(3)),
    "LIST": lambda machine: machine.make(list, _Machine.extend),
    "DICT": lambda machine: machine.make(dict, _Machine.fill),
    "APPEND": lambda machine: machine.extend(machine.top(1)),
    "APPENDS": lambda machine: machine.extend(machine.above_mark()),
    "SETITEM": lambda machine: machine.fill(machine.top(2)),
    "SETITEMS": lambda machine: machine.fill(machine.above_mark()),
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}
