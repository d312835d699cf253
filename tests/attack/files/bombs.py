"""Pickle programs that run nothing, but ask for memory, time or what does not exist; and claims of tensors."""

from __future__ import annotations

import struct
from collections.abc import Callable

from tests.attack.files.pickles import (
    ORDERED,
    STORAGES,
    call,
    dict_of,
    integer,
    list_of,
    name,
    storage,
    tensor,
    text,
    tuple_of,
)
from tests.attack.operations.draw import Draw

_FLOATS = "FloatStorage"
_LARGE = 10**12


def _nested(depth: int, what: bytes = b")") -> bytes:
    """A tuple in a tuple ...: TUPLE1 again and again."""
    return what + b"\x85" * depth


def _doubled(depth: int) -> bytes:
    """A tuple of twice the one before, by the memo: hashing it takes 2^depth steps."""
    program = b")" + b"q\x00"
    for _ in range(depth):
        program += b"h\x00h\x00\x86q\x00"
    return program


def _numpy_dtype(code: str, *more: bytes) -> bytes:
    built = call("numpy", "dtype", text(code), b"\x89", b"\x88")
    return built + tuple_of(*more) + b"b" if more else built


def _state(itemsize: int) -> tuple[bytes, ...]:
    """What BUILD tells a dtype: version, byte order, subarray, names, fields, item size, alignment, flags."""
    return (integer(3), text("|"), b"N", b"N", b"N", integer(itemsize), integer(-1), integer(0))


def _array(shape: tuple[int, ...], dtype: bytes, data: bytes) -> bytes:
    made = call("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), tuple_of(integer(0)), b"C\x01b")
    bytes_ = b"B" + struct.pack("<I", len(data)) + data
    return made + tuple_of(integer(1), tuple_of(*map(integer, shape)), dtype, b"\x89", bytes_) + b"b"


def _long(sign: bytes, size: int, data: bytes) -> bytes:
    return sign + struct.pack("<i", size) + data


BOMBS: dict[str, Callable[[], bytes]] = {
    "ndarray of objects": lambda: call(
        "numpy", "ndarray", tuple_of(integer(1)), text("O"), b"B\x08\x00\x00\x00AAAAAAAA"
    ),
    "array of objects": lambda: _array((1,), _numpy_dtype("O8"), b"AAAAAAAA"),
    "array of 10^12": lambda: _array((_LARGE,), _numpy_dtype("f8"), b""),
    "array larger than its data": lambda: _array((1000,), _numpy_dtype("f8"), b"12345678"),
    "array of negative length": lambda: _array((-1,), _numpy_dtype("f8"), b"12345678"),
    "array of many sides": lambda: _array((1,) * 70, _numpy_dtype("f8"), b"12345678"),
    "dtype of negative size": lambda: _numpy_dtype("V8", *_state(-1)),
    "dtype of huge size": lambda: _numpy_dtype("V8", *_state(2**31 - 1)),
    "dtype U of 2^29": lambda: _numpy_dtype("U536870911"),
    "array of negative size": lambda: _array((2,), _numpy_dtype("V8", *_state(-1)), b"1234"),
    "scalar": lambda: call("numpy.core.multiarray", "scalar", _numpy_dtype("f8"), b"B\x01\x00\x00\x001"),
    "scalar of objects": lambda: call(
        "numpy.core.multiarray", "scalar", _numpy_dtype("O8"), b"B\x08\x00\x00\x00AAAAAAAA"
    ),
    "ndarray of 10^12": lambda: call("numpy", "ndarray", tuple_of(integer(_LARGE)), text("f8")),
    "torch.Tensor of sizes": lambda: call("torch", "Tensor", integer(10**6), integer(10**6)),
    "torch.Tensor new": lambda: name("torch", "Tensor") + tuple_of(integer(10**6), integer(10**6)) + b"\x81",
    "torch.FloatTensor": lambda: call("torch", "FloatTensor", integer(_LARGE)),
    "torch.Size": lambda: call("torch", "Size", tuple_of(integer(2**62), integer(2**62))),
    "Parameter of nothing": lambda: call("torch._utils", "_rebuild_parameter", integer(1), b"\x88", ORDERED),
    "UntypedStorage": lambda: call("torch", "UntypedStorage", integer(_LARGE)),
    "UntypedStorage in storage": lambda: call("torch.storage", "UntypedStorage", integer(_LARGE)),
    "TypedStorage": lambda: call("torch.storage", "TypedStorage", integer(_LARGE)),
    "FloatStorage": lambda: call("torch", "FloatStorage", integer(_LARGE)),
    "FloatStorage new": lambda: name("torch", "FloatStorage") + tuple_of(integer(_LARGE)) + b"\x81",
    "bytearray": lambda: call("builtins", "bytearray", integer(_LARGE)),
    "__builtin__.bytearray": lambda: call("__builtin__", "bytearray", integer(_LARGE)),
    "bytes": lambda: call("builtins", "bytes", integer(_LARGE)),
    "range": lambda: call("builtins", "set", call("builtins", "range", integer(_LARGE))),
    "complex": lambda: call("builtins", "complex", text("1" * 100_000)),
    "encode punycode": lambda: call("_codecs", "encode", text("\u00fc" * 100_000), text("punycode")),
    "encode idna": lambda: call("_codecs", "encode", text("\u00fc" * 100_000), text("idna")),
    "encode zlib": lambda: call("_codecs", "encode", text("a" * 100_000), text("zlib")),
    "encode unicode_escape": lambda: call("_codecs", "encode", text("\u20ac" * 100_000), text("unicode_escape")),
    "encode rot13": lambda: call("_codecs", "encode", text("os"), text("rot13")),
    "encode twice": lambda: call(
        "_codecs", "encode", call("_codecs", "encode", text("a"), text("latin1")), text("latin1")
    ),
    "decode": lambda: call("_codecs", "decode", b"B\x02\x00\x00\x00ab", text("punycode")),
    "Counter": lambda: call("collections", "Counter", text("a" * 100_000)),
    "OrderedDict of itself": lambda: ORDERED + b"q\x05(h\x05h\x05u",
    "list in itself": lambda: b"]q\x05h\x05a",
    "dict in itself": lambda: b"}q\x05" + text("a") + b"h\x05s",
    "nested 10^5": lambda: _nested(100_000),
    "nested lists 10^5": lambda: b"]" * 100_000 + b"a" * 99_999,
    "nested dicts 10^5": lambda: b"}" + b"".join(text("a") + b"}" for _ in range(20_000)) + b"s" * 20_000,
    "tuple that hashes for ever": lambda: b"}" + _doubled(60) + integer(1) + b"s",
    "tuple that prints for ever": lambda: list_of(_doubled(60)),
    "set that hashes for ever": lambda: call("builtins", "set", list_of(_doubled(60))),
    "key of a list": lambda: b"}]" + integer(1) + b"s",
    "memo 2^31": lambda: integer(1) + b"r" + struct.pack("<I", 2**31),
    "memo 2^32 - 1": lambda: integer(1) + b"r" + struct.pack("<I", 2**32 - 1),
    "memo as text": lambda: integer(1) + b"p99999999999999999999\n",
    "memo that is not there": lambda: b"j" + struct.pack("<I", 2**31),
    "LONG4 of 2^31": lambda: _long(b"\x8b", 2**31 - 1, b"\x01"),
    "LONG4 of negative length": lambda: _long(b"\x8b", -1, b"\x01"),
    "LONG4 of 10^6 bytes": lambda: _long(b"\x8b", 10**6, b"\x01" * 10**6),
    "LONG as text": lambda: b"L" + b"9" * 100_000 + b"L\n",
    "INT as text": lambda: b"I" + b"9" * 100_000 + b"\n",
    "FLOAT as text": lambda: b"F1e400\n",
    "FLOAT of words": lambda: b"Fos.system\n",
    "UNICODE as text": lambda: b"V\\ud800\\u001b[2J\n",
    "STRING without end": lambda: b"S'abc\n",
    "BINUNICODE8 of 2^63": lambda: b"\x8d" + struct.pack("<Q", 2**63) + b"a",
    "BINBYTES8 of 2^62": lambda: b"\x8e" + struct.pack("<Q", 2**62) + b"a",
    "BYTEARRAY8 of 10^12": lambda: b"\x96" + struct.pack("<Q", _LARGE) + b"a",
    "BINUNICODE of 2^32 - 1": lambda: b"X" + struct.pack("<I", 2**32 - 1) + b"a",
    "FRAME of 2^63": lambda: b"\x95" + struct.pack("<Q", 2**63) + b"N",
    "NEXT_BUFFER": lambda: b"\x97",
    "REDUCE of nothing": lambda: b"R",
    "POP of nothing": lambda: b"0000N",
    "MARK alone": lambda: b"(((",
    "STOP at once": lambda: b".",
    "SETITEMS of odd": lambda: b"}(NNNu",
    "APPENDS to a tuple": lambda: b")(NNe",
    "DUP": lambda: b"]" + b"2a" * 1000,
    "persistent number": lambda: integer(7) + b"Q",
    "persistent of two": lambda: tuple_of(text("storage"), name("torch", _FLOATS)) + b"Q",
    "persistent of unhashable key": lambda: (
        tuple_of(text("storage"), name("torch", _FLOATS), b"]", text("cpu"), integer(1)) + b"Q"
    ),
    "persistent of another class": lambda: (
        tuple_of(text("storage"), name("collections", "OrderedDict"), text("0"), text("cpu"), integer(1)) + b"Q"
    ),
    "persistent of module": lambda: tuple_of(text("module"), name("os", "system"), text("a"), text("b")) + b"Q",
}

_CLAIMS = (2**31, 2**40, _LARGE, 2**61, 2**62, 2**63 - 1, -1, 0, 10**400)


def draw_bomb(draw: Draw) -> tuple[bytes, str]:
    chosen = draw.choice(list(BOMBS))
    return BOMBS[chosen](), chosen


def draw_claim(draw: Draw, storage: Callable[..., bytes] = storage) -> tuple[bytes, str]:
    """A tensor that is not in the file as it says: of a storage of four numbers under the key "claim".

    storage: the form of its persistent id, that of an archive or the older one.
    """
    what = draw.choice(
        (
            "numel",
            "size",
            "stride",
            "offset",
            "rows without numbers",
            "broadcast",
            "key",
            "device",
            "dtype",
            "rank",
            "type",
        )
    )
    kind, claim = _FLOATS, draw.choice(_CLAIMS)
    held = storage(kind, "claim", 4)
    if what == "numel":
        made = tensor(storage(kind, "claim", claim), [4])
    elif what == "size":
        made = tensor(held, [claim, 4] if draw.chance(0.5) else [claim])
    elif what == "stride":
        made = tensor(held, [2, 2], [claim, 1])
    elif what == "offset":
        made = tensor(held, [4], [1], claim)
    elif what == "rows without numbers":
        made = tensor(held, [claim, 0], [1, 1])
    elif what == "broadcast":
        made = tensor(held, [10**6, 10**6], [0, 0])
    elif what == "key":
        claim = draw.choice(("nothing", "../claim", "/etc/passwd", "", "0" * 1000))
        made = tensor(storage(kind, claim, 4), [4])
    elif what == "device":
        claim = draw.choice(("cuda:0", "cuda:99999", "meta", "xla", "", "mps", "privateuseone", "nonsense"))
        made = tensor(storage(kind, "claim", 4, claim), [4])
    elif what == "dtype":
        claim = draw.choice([*STORAGES.values(), "QUInt8Storage", "QInt32Storage", "UntypedStorage", "NoStorage"])
        made = tensor(storage(claim, "claim", 1), [1])
    elif what == "rank":
        claim = draw.choice((65, 1000))
        made = tensor(held, [1] * claim)
    else:
        made, claim = draw.choice(_other_tensors(held))
    return (
        made,
        f"tensor whose {what} is {claim[:30] if isinstance(claim, str) else claim if claim < 10**300 else '10^400'}",
    )


def _other_tensors(held: bytes) -> list[tuple[bytes, str]]:
    two = tuple_of(integer(2), integer(2))
    good = tensor(held, [2, 2])
    indices = tensor(storage("LongStorage", "claim", 2), [1, 2])
    return [
        (call("torch._utils", "_rebuild_tensor", held, integer(0), two, two), "_rebuild_tensor"),
        (call("torch._utils", "_rebuild_parameter", good, b"\x88", ORDERED), "parameter"),
        (call("torch._utils", "_rebuild_meta_tensor_no_storage", name("torch", "float32"), two, two, b"\x89"), "meta"),
        (
            call("torch._utils", "_rebuild_sparse_tensor", name("torch", "sparse_coo"), tuple_of(indices, good, two)),
            "sparse",
        ),
        (
            call("torch._utils", "_rebuild_qtensor", held, integer(0), two, two, integer(1), b"\x89", ORDERED),
            "quantized",
        ),
        (
            call("torch._utils", "_rebuild_wrapper_subclass", name("torch", "Tensor"), name("torch", "float32"), two),
            "wrapper",
        ),
        (call("torch._utils", "_rebuild_device_tensor_from_numpy", integer(1), integer(1), integer(1)), "from numpy"),
        (
            call(
                "torch._tensor",
                "_rebuild_from_type_v2",
                name("torch", "Size"),
                name("torch", "Tensor"),
                two,
                dict_of({}),
            ),
            "v2",
        ),
        (good + dict_of({"grad": integer(1)}) + b"b", "BUILD"),
        (call("torch.nn.parameter", "Parameter", good), "nn.Parameter"),
    ]
