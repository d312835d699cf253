"""Builds CUDA kernels for the emulation and calls them on CPU tensors.

To drive the op `box_iou`, write tests/emulation/box_iou_driver.cpp:

    #include "box_iou/box_iou_kernel.cuh"
    extern "C" int run_box_iou(const float* boxes1, const float* boxes2, float* iou, int64_t n, int64_t m, double eps) {
      return launch_box_iou(boxes1, boxes2, iou, n, m, eps, /*stream=*/nullptr);   // what box_iou_cuda.cu calls too
    }

and in a test, which the fixture `emulate` of conftest.py runs in forward, reverse and random thread order:

    def test_box_iou(emulate):
        iou = empty(7, 5)                                     # holds poison, as fresh device memory may
        emulate("box_iou").run("run_box_iou", boxes1, boxes2, out(iou), 7, 5, 1e-6)

Tensors become pointers (in the emulation they end at a page that cannot be touched; those not marked `out` cannot be
written), None a null pointer, int and bool int64_t, float double. What goes wrong is raised as EmulationError.
The compiler is $CXX or c++. Libraries are kept in $LIBRA_EMULATION_CACHE (by default a folder in the temporary folder)
under a hash of their preprocessed source.
"""

import ctypes
import dataclasses
import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parent
CSRC = FOLDER.parent.parent / "csrc"
ORDERS = ("forward", "reverse", "random")
RUNTIME = [
    FOLDER / f"{name}.cpp" for name in ("scheduler", "warp_operations", "failures", "races", "guarded_memory", "fiber")
]
FLAGS = shlex.split(
    "-std=c++17 -O2 -g -fPIC -DLIBRA_EMULATION -Wall -Wextra -Wno-unknown-pragmas -Wno-ignored-attributes"
    " -ffp-contract=off -fno-strict-aliasing"
)
# Undefined behaviour traps, and the emulation turns the trap into an error. The calls that -fsanitize=thread puts at
# each access to memory are answered by races.cpp, not by the sanitizer's own library.
CHECKS = shlex.split(
    "-fsanitize=signed-integer-overflow,shift-exponent,bounds,alignment -fsanitize-undefined-trap-on-error"
    " -fsanitize=thread"
)
_POISON = 0xCB


class EmulationError(RuntimeError):
    """A kernel went wrong; the message names block, thread, file and line."""


@dataclasses.dataclass(frozen=True)
class out:
    """Marks a tensor that the kernel writes; its contents go in and come back."""

    tensor: Tensor


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A contiguous tensor whose bytes are poison: large negative numbers, no valid index, True."""
    bytes_per_element = torch.empty((), dtype=dtype).element_size()
    count = torch.Size(shape).numel()
    return torch.full((count * bytes_per_element,), _POISON, dtype=torch.uint8).view(dtype).reshape(shape)


class Kernels:
    """The `extern "C"` functions of one driver, called in one order of threads."""

    def __init__(self, library: ctypes.CDLL, order: str, seed: int = 1):
        self.library, self.order, self.seed = library, order, seed

    def run(self, function: str, *arguments: Tensor | out | int | float | None) -> None:
        """Calls `int function(...)`, which returns 0 where all launches succeeded; raises EmulationError otherwise."""
        library, placed = self.library, []
        library.emulation_begin(ORDERS.index(self.order), ctypes.c_uint64(self.seed))
        converted = [self._convert(argument, i, placed) for i, argument in enumerate(arguments)]
        code = getattr(library, function)(*converted)
        problem = library.emulation_error().decode()
        overrun = []
        for name, pointer, tensor, written in placed:
            if not library.emulation_take(pointer, ctypes.c_void_p(tensor.data_ptr() if written else None)):
                overrun.append(name)
        if code or problem:
            problem = _with_source_line(problem, library._name) or f"returned {code}"
            raise EmulationError(f"{function} in {self.order} order: {problem}")
        if overrun:
            raise EmulationError(f"{function} in {self.order} order: stores just beside {', '.join(overrun)}")

    def _convert(self, argument: Tensor | out | int | float | None, position: int, placed: list):
        if argument is None:
            return ctypes.c_void_p(None)
        if isinstance(argument, int):  # bool too
            return ctypes.c_int64(argument)
        if isinstance(argument, float):
            return ctypes.c_double(argument)
        written = isinstance(argument, out)
        tensor = argument.tensor if written else argument
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"argument {position}: expected tensor, out(tensor), int, float or None; got {type(argument)}"
            )
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError(
                f"argument {position}: expected a contiguous CPU tensor; got one on {tensor.device} with strides "
                f"{tensor.stride()}; call .cpu().contiguous()"
            )
        name = f"argument {position} {list(tensor.shape)}"
        pointer = ctypes.c_void_p(
            self.library.emulation_place(
                ctypes.c_void_p(tensor.data_ptr()),
                ctypes.c_size_t(tensor.numel() * tensor.element_size()),
                ctypes.c_size_t(tensor.element_size()),
                int(written),
                name.encode(),
            )
        )
        placed.append((name, pointer, tensor, written))
        return pointer


def _with_source_line(problem: str, library: str) -> str:
    """Puts file:line for an address like {0x12af} in the library, in the words of addr2line where that is installed."""
    found = re.search(r"\{(0x[0-9a-f]+)\}", problem)
    if not found or not shutil.which("addr2line"):
        return problem
    frames = _run(["addr2line", "-i", "-e", library, found[1]]).splitlines()
    of_kernel = [frame for frame in frames if "/emulation.h:" not in frame and "/emulation_types.h:" not in frame]
    return problem.replace(found[0], (of_kernel or frames)[0].split(" (")[0])


def load(driver: Path, order: str, seed: int = 1, defines: tuple[str, ...] = ()) -> Kernels:
    """Builds `driver`, a C++ file, unless the cache has it, and loads it."""
    return Kernels(_library(driver, defines), order, seed)


@functools.cache
def _library(driver: Path, defines: tuple[str, ...]) -> ctypes.CDLL:
    objects = [_compile(driver, [*FLAGS, *CHECKS, *(f"-D{define}" for define in defines)])]
    objects += [_compile(source, FLAGS) for source in RUNTIME]
    link = [*_compiler(), "-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs", *map(str, objects), "-ldl"]
    path = _cached(hashlib.sha256(repr(link).encode()).hexdigest(), ".so", lambda target: [*link, "-o", target])
    library = ctypes.CDLL(str(path))
    library.emulation_error.restype = ctypes.c_char_p
    library.emulation_place.restype = ctypes.c_void_p
    return library


def _compile(source: Path, flags: list[str]) -> Path:
    command = [*_compiler(), *flags, f"-I{CSRC}", f"-I{FOLDER}"]
    preprocessed = _run([*command, "-E", str(source)])
    return _cached(
        hashlib.sha256((repr(command) + preprocessed).encode()).hexdigest(),
        ".o",
        lambda target: [*command, "-c", str(source), "-o", target],
    )


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "c++"))


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{result.stderr}")
    return result.stdout


def _cached(key: str, suffix: str, command) -> Path:
    """The file made by `command(target)`, made once; two test runs at a time do not disturb each other."""
    default = Path(tempfile.gettempdir()) / f"libra_emulation_{os.getuid()}"
    folder = Path(os.environ.get("LIBRA_EMULATION_CACHE", default))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (key[:32] + suffix)
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / path.name
            _run(command(str(made)))
            made.replace(path)
    return path
