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
MOST_WORK = 2**26
"""Bytes, or 1/64 of as many items of lists, that calls may go through in all: a few bytes can call again and again with
the same large value, and each time it would be copied."""
_LARGEST_KEY = 2**63  # of integers: larger ones can be chosen so that all of them collide in a dictionary

_LONGEST_NAME = 100  # letters of a name that a message shows
_LONGEST_PART = 200  # letters of a module's or function's name
_MOST_PARTS = 16  # of a key that is a tuple

_INSTRUCTION = "the instruction "

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
        names_something: there is more among them than instructions that the reader does not know.
    """

    def __init__(self, names: set[str]) -> None:
        self.names = sorted(name[:_LONGEST_NAME] for name in names)
        self.names_something = any(not name.startswith(_INSTRUCTION) for name in names)
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
    work: int = 0  # see MOST_WORK

    def run(self, stream: BinaryIO) -> Any:
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if count == MOST_INSTRUCTIONS:
                    raise ValueError(f"its pickle has more than {MOST_INSTRUCTIONS} instructions")
                self._step(opcode.name, argument)
        except Exception:
            if not self.wanted:
                raise  # else it may come of what an unknown name would have given
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
            _checked(list, stack[-1]).extend(items)
        elif opcode in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if opcode == "SETITEM" else self._pop_to_mark()
            _put_items(_checked(dict, stack[-1]), items)
        elif opcode == "ADDITEMS":
            items = self._pop_to_mark()
            _checked(set, stack[-1]).update(map(checked_key, items))
        elif opcode in ("GLOBAL", "STACK_GLOBAL"):
            module, name = argument.split(" ") if opcode == "GLOBAL" else self._pop(2)
            stack.append(self._named(f"{_checked_part(module)}.{_checked_part(name)}"))
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
            raise NeedsCode(self.wanted | {_INSTRUCTION + opcode})

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
        self._count(arguments)
        return self.builders[function.text](*arguments)

    def _count(self, value: Any, depth: int = 2) -> None:
        """Add what a call may have to go through: a value, and what is in the lists and tuples in it."""
        if isinstance(value, (str, bytes)):
            self.work += len(value)
        elif isinstance(value, (list, tuple, dict, set)):
            self.work += 64 * len(value)
        if self.work > MOST_WORK:
            raise ValueError("its pickle calls with large values again and again")
        if depth and isinstance(value, (list, tuple)):
            for item in value:
                self._count(item, depth - 1)

    def _build(self, state: Any) -> None:
        """The rest of an object that was made by a call. Attributes of dictionaries (`_metadata`) are left out."""
        made = self.stack[-1]
        self._count(state)
        if isinstance(made, ArrayInTheMaking) and not isinstance(state, Unknown):
            self.stack[-1] = made.finished(state)
            self.memo.update(dict.fromkeys(made.memo_keys, self.stack[-1]))
            made.memo_keys.clear()
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
    """A key of a dictionary or an item of a set: text, a number, nothing, or a few of those, which compare at once."""
    if isinstance(key, tuple) and len(key) <= _MOST_PARTS and not any(isinstance(part, tuple) for part in key):
        return tuple(map(checked_key, key))
    if isinstance(key, int) and not -_LARGEST_KEY <= key < _LARGEST_KEY:
        raise ValueError("a key in its pickle is a number beyond 64 bits")
    if not isinstance(key, (str, bytes, int, float, type(None))):
        raise ValueError(f"a key in its pickle is a {type(key).__name__}; expected text or a number")
    return key


def _put_items(target: dict[Any, Any], items: list[Any] | tuple[Any, ...]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[checked_key(key)] = value


def _checked(kind: type | tuple[type, ...], value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"its pickle has a {type(value).__name__} in an unexpected place")
    return value


def _checked_part(name: Any) -> str:
    if len(_checked(str, name)) > _LONGEST_PART:
        raise ValueError(f"its pickle has a name of {len(name)} letters")
    return name


def _no_persistent(_: Any) -> Any:
    raise ValueError("its pickle refers to tensors in a place where there are none")


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for pair in _checked((list, tuple), pairs):
        _put_items(result, _checked((list, tuple), pair))
    return result


def _default_dict(_: Any = None) -> dict[Any, Any]:
    """Without the function that would fill in missing keys; what is in it comes by later instructions."""
    return {}


def _set(items: Any = ()) -> set[Any]:
    return set(map(checked_key, _checked((list, tuple), items)))


def _counter(counts: Any = None) -> dict[Any, Any]:
    return dict(_checked(dict, counts or {}))


def _complex(real: Any, imaginary: Any) -> complex:
    return complex(_checked(float, real), _checked(float, imaginary))


def _encoded(text: str, encoding: str) -> bytes:
    """Bytes, as protocol 2 has them: text whose letters are the bytes."""
    if not isinstance(encoding, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in its pickle are not in latin1")
    return _checked(str, text).encode("latin1")


_BUILTINS = ("builtins", "__builtin__")  # of Python 3 and 2
_NUMPYS = ("numpy._core.multiarray", "numpy.core.multiarray")  # of NumPy 2 and 1

PLAIN_BUILDERS: dict[str, Builder] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "collections.Counter": _counter,
    **{f"{module}.set": _set for module in _BUILTINS},
    **{f"{module}.frozenset": _set for module in _BUILTINS},
    **{f"{module}.bytes": lambda: b"" for module in _BUILTINS},
    **{f"{module}.complex": _complex for module in _BUILTINS},
    "_codecs.encode": _encoded,
    "numpy.dtype": DType,
    **{f"{module}.scalar": scalar for module in _NUMPYS},
    **{f"{module}._reconstruct": ArrayInTheMaking for module in _NUMPYS},
}
"""Names of plain Python and of NumPy 1 and 2. Training frameworks leave such values in their notes."""

_FACTORIES = ("list", "dict", "int", "float", "str")
NAMES = frozenset(["numpy.ndarray", *(f"{module}.{kind}" for module in _BUILTINS for kind in _FACTORIES)])
"""What is named as an argument of `_reconstruct` and `defaultdict`, and never called."""
