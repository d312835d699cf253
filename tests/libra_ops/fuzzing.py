"""What test_fuzz_*.py draw from: arrays of all values and layouts, and calls that are known to be good or bad.

A function's only outcomes are a correct result (equal to libra_ops.reference where that is exact, with what must hold
everywhere else) and a TypeError or ValueError that names the argument.

A call is drawn good, and then maybe one of its arguments is replaced by a bad one. So `outcome` knows what to expect: a
good call returns, a bad one raises a TypeError or ValueError that begins with the name of an argument. Values come from
NumPy's generator with a drawn seed: whole arrays, in flavours (grids with ties, huge, denormal, inverted, not finite).

LIBRA_FUZZ_EXAMPLES: examples per test, the same ones in every run; with LIBRA_FUZZ_RANDOM=1 new ones. tests/sanitize.sh
runs them with the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import inspect
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import libra_ops.numpy

fuzz = settings(
    max_examples=int(os.environ.get("LIBRA_FUZZ_EXAMPLES", "60")),
    derandomize=os.environ.get("LIBRA_FUZZ_RANDOM", "0") != "1",
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# Around the tiles, blocks and lanes of the kernels.
LENGTHS = (0, 1, 2, 3, 5, 8, 15, 17, 31, 33, 63, 65, 127, 257)
LONG_LENGTHS = (511, 513, 1023, 1025, 2049)
SCALES = (1.0, 100.0, 1e4, 1e-3, 1e-42, 1e17, 1e19, 3e38)
FLOATS = (np.float32, np.float64, np.float16)
WORDS = (None, "text", b"", object, [], {}, 1j, [0.5], (1, None), np.zeros(2), slice(1))
NO_NUMBERS = (*WORDS, -0.1, np.nan, np.inf, -np.inf, True, 10**400, 10**5000, np.float32(-2), np.bool_(True))
NO_FRACTIONS = (*NO_NUMBERS, 1.5, 2, np.float32(1.01))
NO_COUNTS = (*WORDS, -1, 2**30 + 1, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**5000, 0.5, np.nan, True, np.int8(-1))


@dataclass
class Call:
    arguments: dict[str, object]
    wrong: list[str] = field(default_factory=list)  # why it has to be refused; none: it has to be accepted

    def replace(self, name: str, value: object) -> "Call":
        return Call({**self.arguments, name: value}, [*self.wrong, name])


def outcome(function: Callable, call: Call, convert: Callable, **more: object):
    """The result of a good call; None of a bad one, which was refused as it should be."""
    arguments = {name: convert(value) for name, value in call.arguments.items()}
    try:
        result = function(**arguments, **more)
    except (TypeError, ValueError) as error:
        named = re.match(r"(\w+)(\[\d+\])?(\.\w+)?: ", str(error))
        assert named and named.group(1) in inspect.signature(function).parameters, error
        assert len(str(error)) < 400
        if not call.wrong:
            raise
        return None
    assert not call.wrong, f"accepted, though wrong: {call.wrong}"
    return result


DOORS = {"torch": libra_ops, "numpy": libra_ops.numpy}

lengths = st.sampled_from(LENGTHS)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def values(draw, shape: Sequence[int], dtypes: Sequence[type] = FLOATS) -> np.ndarray:
    """Floating numbers of one scale, of a small grid (ties) or not, with some that are not numbers."""
    random = np.random.default_rng(draw(seeds))
    scale, dtype = draw(st.sampled_from(SCALES)), draw(st.sampled_from(dtypes))
    array = random.integers(-3, 4, shape) * 0.25 if draw(st.booleans()) else random.uniform(-1, 1, shape)
    array = np.asarray(array * scale)
    for special in draw(st.sets(st.sampled_from((np.nan, np.inf, -np.inf, 0.0, -0.0, 1e20, 1e-40)), max_size=2)):
        array[random.random(shape) < 0.1] = special
    with np.errstate(all="ignore"):
        return array.astype(dtype)


@st.composite
def boxes(draw, leading: Sequence[int], dtypes: Sequence[type] = FLOATS) -> np.ndarray:
    """[*leading, 4] xyxy: most of them proper, some inverted, empty, equal, huge or not finite."""
    random = np.random.default_rng(draw(seeds))
    array = draw(values((*leading, 2, 2), dtypes))  # [..., corner, x or y]
    if draw(st.integers(0, 3)):
        array = np.sort(array, axis=-2)
    array = array.reshape(*leading, 4)
    rows = array.reshape(-1, 4)
    for flaw in draw(st.sets(st.sampled_from(("inverted", "empty", "equal", "shared edge")), max_size=2)):
        chosen = random.random(len(rows)) < 0.2
        if flaw == "inverted":
            rows[chosen] = rows[chosen][:, [2, 3, 0, 1]]
        elif flaw == "empty":
            rows[chosen, 2] = rows[chosen, 0]
        elif len(rows):
            columns = slice(None) if flaw == "equal" else slice(0, 2)
            rows[chosen, columns] = rows[0, columns]
    if leading and draw(st.integers(0, 7)) == 0:
        array = np.broadcast_to(array[:1], array.shape)  # a stride of 0
    return array


ARRAY_LAYOUTS = (
    "as it is", "Fortran order", "sliced", "shifted", "negative strides", "not aligned", "big endian", "read-only",
)  # fmt: skip
TENSOR_LAYOUTS = ("as it is", "transposed", "sliced", "shifted", "expanded", "parameter", "negated")


def array_in(layout: str, array: np.ndarray) -> np.ndarray:
    """The same values otherwise in memory."""
    if layout == "Fortran order":
        return np.asfortranarray(array)
    if layout == "sliced" and array.ndim:
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), 1, array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    if layout in ("shifted", "not aligned"):
        offset = array.itemsize if layout == "shifted" else 1
        memory = np.zeros(array.nbytes + offset, np.uint8)[offset:]
        memory[:] = np.frombuffer(array.tobytes(), np.uint8)
        return memory.view(array.dtype).reshape(array.shape)
    if layout == "negative strides":
        return np.ascontiguousarray(array[..., ::-1])[..., ::-1] if array.ndim else array
    if layout == "big endian":
        return array.astype(array.dtype.newbyteorder(">"))
    if layout == "read-only":
        array = array.view()
        array.flags.writeable = False
    return array


def tensor_in(layout: str, array: np.ndarray) -> torch.Tensor:
    if layout == "expanded" and array.ndim and array.shape[0] and array.strides[0] == 0:
        return torch.from_numpy(array[:1].copy()).expand(array.shape)
    tensor = torch.from_numpy(np.array(array))
    if layout == "transposed" and array.ndim:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced" and array.ndim:
        wide = tensor.new_ones(*array.shape[:-1], 2 * array.shape[-1])
        wide[..., ::2] = tensor
        return wide[..., ::2]
    if layout == "shifted":
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(array.shape)
    if layout == "negated" and tensor.is_floating_point():
        return torch._neg_view(-tensor)  # as the imaginary part of a conjugate is: the sign is a flag
    if layout == "parameter" and tensor.is_floating_point():
        return torch.nn.Parameter(tensor, requires_grad=False)
    return tensor


def in_layouts(draw, layouts: Sequence[str], of: Callable) -> Callable:
    """A conversion of arguments: each array into a layout that is drawn for it; lists and tuples element by element."""

    def convert(value: object) -> object:
        if isinstance(value, (tuple, list)) and any(isinstance(element, np.ndarray) for element in value):
            return type(value)(map(convert, value))
        native = isinstance(value, np.ndarray) and value.dtype.kind in "fiubc"
        return of(draw(st.sampled_from(layouts)), value) if native else value

    return convert


conversions = {
    "torch": lambda draw: in_layouts(draw, TENSOR_LAYOUTS, tensor_in),
    "numpy": lambda draw: in_layouts(draw, ARRAY_LAYOUTS, array_in),
}


def bad_arrays(array: np.ndarray) -> list[object]:
    """What no function takes in this floating array's place."""
    bad = [array.astype(np.complex64), array > 0, array[..., None], array.tolist(), *WORDS[:-2], array.astype("U3")]
    with np.errstate(all="ignore"):
        return [*bad, np.nan_to_num(array).astype(np.int64), array[..., :3], np.zeros((), array.dtype)]


def as_array(value: torch.Tensor | np.ndarray) -> np.ndarray:
    return value.detach().numpy() if isinstance(value, torch.Tensor) else value


def as_tensor(array: np.ndarray, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).to(dtype)


def is_huge(array: np.ndarray) -> np.ndarray:
    """[..., 4] -> [...]: whose overlaps are computed in double, since products of its lengths may overflow float32."""
    return ~(np.abs(array) <= 1e18).all(-1)
