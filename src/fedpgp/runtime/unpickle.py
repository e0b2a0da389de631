"""Interpret pickles of other programs as data.

Python's unpickler calls functions that a pickle names, and lets a pickle change any object. This interpreter knows only
the operations that make plain containers, texts and numbers. Everything that a pickle names goes to the methods of a
subclass, which decide from an exact list of names.
"""

import pickle
import pickletools
from io import BytesIO
from typing import Any, NamedTuple

OPERATIONS = 2_000_000  # most operations of a pickle; CIFAR-100 has 200,000, and each may take 200 bytes of memory
LARGEST_KEY = 2**31  # largest integer key of a dictionary; larger keys could be chosen so that their hashes collide
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
CONTAINERS = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
GIVEN = {"INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"}
GIVEN |= {"SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"}
GIVEN |= {"BINUNICODE8"}  # operations whose argument is the value
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class Name(NamedTuple):
    """A class or function that a pickle names; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Unpickler:
    """Interpreter of a pickle; bytes of Python 2 are read as Latin-1."""

    def named(self, name: Name) -> object:
        """Return a stand-in for a class or function.

        Raises
        ------
        pickle.UnpicklingError
            If the pickle must not name it.
        """
        raise pickle.UnpicklingError(f"it names {name}")

    def called(self, function: Any, arguments: tuple[Any, ...]) -> object:
        """Return the result of a call of a stand-in."""
        raise pickle.UnpicklingError("it calls a function")

    def built(self, value: Any, state: Any) -> None:
        """Set the state of a value that `called` returned."""
        raise pickle.UnpicklingError("it changes an object")

    def persistent(self, identifier: Any) -> object:
        """Return the value outside the pickle with this identifier."""
        raise pickle.UnpicklingError("it reads a value from elsewhere")

    def load(self, file: BytesIO) -> Any:
        """Return the content of the next pickle in a file.

        Raises
        ------
        pickle.UnpicklingError
            If the pickle contains an operation or a name that is not allowed.
        Exception
            Damaged pickles also raise ValueError, IndexError, KeyError and TypeError.
        """
        stack: list[Any] = []
        memo: dict[int, Any] = {}

        def since_mark() -> list[Any]:
            start = len(stack) - 1
            while stack[start] is not _MARK:
                start -= 1
                if start < 0:
                    raise pickle.UnpicklingError("an operation finds no mark")
            values = stack[start + 1 :]
            del stack[start:]
            return values

        def popped() -> Any:
            value = stack.pop()
            if value is _MARK:
                raise pickle.UnpicklingError("an operation finds a mark")
            return value

        argument: Any
        for number, (operation, argument, _) in enumerate(pickletools.genops(file)):
            name = operation.name
            if number >= OPERATIONS:
                raise pickle.UnpicklingError(f"it has more than {OPERATIONS:,} operations")
            if name in GIVEN:
                stack.append(argument)
            elif name in VALUES:
                stack.append(VALUES[name])
            elif name in CONTAINERS:
                stack.append(CONTAINERS[name]())
            elif name in TUPLES:
                stack.append(tuple(reversed([popped() for _ in range(TUPLES[name])])))
            elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "MARK":
                stack.append(_MARK)
            elif name == "TUPLE":
                stack.append(tuple(since_mark()))
            elif name == "LIST":
                stack.append(since_mark())
            elif name == "DICT":
                stack.append(_filled({}, since_mark()))
            elif name in ("APPEND", "APPENDS"):
                values = [popped()] if name == "APPEND" else since_mark()
                _checked(stack[-1], list).extend(values)
            elif name in ("SETITEM", "SETITEMS"):
                values = [popped(), popped()][::-1] if name == "SETITEM" else since_mark()
                _filled(_checked(stack[-1], dict), values)
            elif name == "GLOBAL":
                stack.append(self.named(Name(*argument.split(" ", 1))))
            elif name == "STACK_GLOBAL":
                text = _checked(popped(), str)
                stack.append(self.named(Name(_checked(popped(), str), text)))
            elif name in ("REDUCE", "NEWOBJ"):
                arguments = _checked(popped(), tuple)
                stack.append(self.called(popped(), arguments))
            elif name == "BUILD":
                state = popped()
                self.built(stack[-1], state)
            elif name == "BINPERSID":
                stack.append(self.persistent(popped()))
            elif name == "STOP":
                return popped()
            elif name not in ("PROTO", "FRAME"):
                raise pickle.UnpicklingError(f"it has the operation {name}")
        raise pickle.UnpicklingError("it has no end")


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise pickle.UnpicklingError(f"an operation finds no {kind.__name__}")
    return value


def _filled(content: dict[Any, Any], values: list[Any]) -> dict[Any, Any]:
    """Return a dictionary after adding keys and values, which alternate."""
    for key, value in zip(values[::2], values[1::2], strict=True):
        if type(key) is not str and not (type(key) is int and abs(key) < LARGEST_KEY):
            raise pickle.UnpicklingError("a dictionary has a key that is neither a text nor a small integer")
        content[key] = value
    return content
