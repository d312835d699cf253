"""A pickle, read as data: its values are rebuilt here, and nothing that it names is looked up, imported or called.

A pickle is a program for a small stack machine, and Python's own reader runs it: it calls whatever the file names.
`torch.load(weights_only=True)` calls only what is on its list, but on that list are functions that take any amount of
memory (`torch.Tensor(10**6, 10**6)`, `bytearray(10**12)`) or time (`_codecs.encode` of any codec). This reader has a
table of names, and beside each what a call of it means when its arguments are what `torch.save` would write.
Instructions are told apart by `pickletools` of Python's library.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from libra_det.weights.plain_numpy import ArrayInTheMaking, DType, scalar

MOST_INSTRUCTIONS = 500_000
"""A detector with its optimizer takes some ten thousand; so many take two or three seconds."""
_LARGEST_KEY = 2**63  # of integers: larger ones can be chosen so that all of them collide in a dictionary

_LONGEST_NAME = 100  # of what a message shows

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES "
    "BINBYTES8 BINSTRING SHORT_BINSTRING".split()
)
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = ("PROTO", "FRAME")


class NeedsCode(ValueError):
    """The pickle names something that would have to be called or imported.

    Attributes:
        names: of all such things in it, sorted.
    """

    def __init__(self, names: set[str]) -> None:
        self.names = sorted(name[:_LONGEST_NAME] for name in names)
        super().__init__(f"it calls {', '.join(self.names[:5])}")


class Name(NamedTuple):
    """A function, class or constant that a pickle names, such as torch.FloatStorage: text, and nothing else."""

    text: str


@dataclass
class Unknown:
    """Stands where the value of a name outside the table, or of a call of it, would be."""

    text: str


Builder = Callable[..., Any]
"""Takes what stands in the file as the arguments of a call, and gives the value; ValueError or TypeError if they are
not what they should be."""


@dataclass
class _Machine:
    """The stack machine of a pickle."""

    builders: dict[str, Builder]  # what a call of a name gives
    constants: dict[str, Any]  # what a name itself stands for
    persistent: Callable[[Any], Any]  # what a persistent id stands for
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)  # lengths of the stack
    memo: dict[int, Any] = field(default_factory=dict)
    wanted: set[str] = field(default_factory=set)  # names outside the table

    def run(self, stream: BinaryIO) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count == MOST_INSTRUCTIONS:
                raise ValueError(f"its pickle has more than {MOST_INSTRUCTIONS} instructions")
            self._step(opcode.name, argument)
        if self.wanted:
            raise NeedsCode(self.wanted)
        return self.stack.pop()

    def _step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in _LITERALS:
            stack.append(argument)
        elif opcode in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._remember(len(self.memo) if opcode == "MEMOIZE" else argument)
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode == "MARK":
            self.marks.append(len(stack))
        elif opcode in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[opcode])))
        elif opcode == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif opcode in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}[opcode]())
        elif opcode in ("APPEND", "APPENDS"):
            items = self._pop(1) if opcode == "APPEND" else self._pop_to_mark()
            _expect(list, stack[-1]).extend(items)
        elif opcode in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if opcode == "SETITEM" else self._pop_to_mark()
            _put_items(_expect(dict, stack[-1]), items)
        elif opcode == "ADDITEMS":
            items = self._pop_to_mark()
            _expect(set, stack[-1]).update(map(checked_key, items))
        elif opcode in ("GLOBAL", "STACK_GLOBAL"):
            module, name = argument.split(" ") if opcode == "GLOBAL" else self._pop(2)
            stack.append(self._named(f"{_expect(str, module)}.{_expect(str, name)}"))
        elif opcode in ("REDUCE", "NEWOBJ"):
            function, arguments = self._pop(2)
            stack.append(self._called(function, arguments))
        elif opcode == "BUILD":
            self._build(*self._pop(1))
        elif opcode == "BINPERSID":
            stack.append(self.persistent(*self._pop(1)))
        elif opcode == "INST":
            self.wanted.add(argument.replace(" ", "."))
            raise NeedsCode(self.wanted)
        elif opcode != "STOP" and opcode not in _IGNORED:
            raise NeedsCode(self.wanted | {f"the instruction {opcode}"})

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise ValueError("its pickle takes more from the stack than there is")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def _pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]
        if isinstance(self.stack[-1], ArrayInTheMaking):
            self.stack[-1].memo_keys.append(key)

    def _named(self, text: str) -> Any:
        if text in self.constants:
            return self.constants[text]
        return Name(text) if text in self.builders or text in NAMES else self._unknown(text)

    def _unknown(self, text: str) -> Unknown:
        self.wanted.add(text)
        return Unknown(text)

    def _called(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, Unknown):
            return function
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise ValueError(f"its pickle calls a {type(function).__name__}")
        if function.text not in self.builders:
            return self._unknown(function.text)
        if any(isinstance(argument, Unknown) for argument in arguments):
            return Unknown(function.text)  # an error is under way
        return self.builders[function.text](*arguments)

    def _build(self, state: Any) -> None:
        """The rest of an object that was made by a call. Attributes of dictionaries (`_metadata`) are left out."""
        made = self.stack[-1]
        if isinstance(made, ArrayInTheMaking) and not isinstance(state, Unknown):
            self.stack[-1] = made.finished(state)
            self.memo.update(dict.fromkeys(made.memo_keys, self.stack[-1]))
        elif isinstance(made, DType):
            made.set_state(state)
        elif not isinstance(made, (dict, Unknown, ArrayInTheMaking)):
            raise ValueError(f"its pickle changes a {type(made).__name__}")


def read_pickle(
    stream: BinaryIO,
    builders: dict[str, Builder],
    constants: dict[str, Any] | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The value of the pickle that begins where the stream is; the stream is then behind it.

    Args:
        stream: of bytes.
        builders: by name what a call of it gives, besides those of plain Python and NumPy.
        constants: by name what it stands for when it is not called.
        persistent: from a persistent id to its value.

    Raises:
        NeedsCode: other names are in it.
        ValueError, or another exception: the pickle is damaged.
    """
    machine = _Machine({**PLAIN_BUILDERS, **builders}, constants or {}, persistent or _no_persistent)
    return machine.run(stream)


def checked_key(key: Any) -> Any:
    """A key of a dictionary or an item of a set: text, a number or nothing, whose comparison takes no time."""
    if isinstance(key, int) and not -_LARGEST_KEY <= key < _LARGEST_KEY:
        raise ValueError("a key in its pickle is a number beyond 64 bits")
    if not isinstance(key, (str, bytes, int, type(None))):
        raise ValueError(f"a key in its pickle is a {type(key).__name__}; expected text or a whole number")
    return key


def _put_items(target: dict[Any, Any], items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[checked_key(key)] = value


def _expect(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"its pickle fills a {type(value).__name__} as if it were a {kind.__name__}")
    return value


def _no_persistent(_: Any) -> Any:
    raise ValueError("its pickle refers to tensors in a place where there are none")


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for pair in pairs:
        _put_items(result, list(pair))
    return result


def _set(items: list[Any] | tuple[Any, ...] = ()) -> set[Any]:
    return set(map(checked_key, items))


def _counter(counts: dict[Any, Any] | None = None) -> dict[Any, Any]:
    return dict(_expect(dict, counts or {}))


def _encoded(text: str, encoding: str) -> bytes:
    """Bytes, as protocol 2 has them: text whose letters are the bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in its pickle are not in latin1")
    return text.encode("latin1")


PLAIN_BUILDERS: dict[str, Builder] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "_codecs.encode": _encoded,
    "numpy.dtype": DType,
    **{f"{module}.scalar": scalar for module in ("numpy.core.multiarray", "numpy._core.multiarray")},
    **{f"{module}._reconstruct": ArrayInTheMaking for module in ("numpy.core.multiarray", "numpy._core.multiarray")},
}
"""Of plain Python and of NumPy 1 and 2. Training frameworks leave such values in their notes."""

NAMES = ("numpy.ndarray",)
"""What is named as an argument of `_reconstruct`, and never called."""
