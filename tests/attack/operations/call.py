"""One hostile call: what is called, with what, and whether the outcome is one that the contract knows."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import resource
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.attack.operations import arrays, coding, features, losses, operators, overlaps, selection
from tests.attack.operations.draw import INT64, Draw, is_meta
from tests.attack.operations.memory import Watch, lay_out, raw_bytes, same_bits, same_values, tensors_in
from tests.attack.operations.mutations import is_large, mutated
from tests.attack.operations.operation import Arguments, Operation, plain
from tests.attack.table import FAILED, HANDLED, REFUSED, Outcome

FUNCTIONS = (
    *overlaps.OPERATIONS, *selection.OPERATIONS, *coding.OPERATIONS, *losses.OPERATIONS, *features.OPERATIONS,
    *arrays.OPERATIONS,
)  # fmt: skip
OPERATIONS = (*FUNCTIONS, *operators.OPERATIONS)
KINDS = [operation.name for operation in OPERATIONS]

_NEIGHBOURS = 4
_OPERATORS = 0.15  # share of the calls
_TWIN = 0.2  # share of the calls that return which are compared with their twin
_LONGEST_MESSAGE = 400
_MEMORY = re.compile(
    r"not enough memory|can't allocate memory|bad_alloc|[Ss]torage size calculation overflowed|"
    r"[Ss]tride calculation overflowed|integer multiplication overflow|array is too big|expected at most 2\^31|"
    r"Unable to allocate|too large|API call failed"
)
_ONCE = re.compile(r"differentiable once only|does not require grad|not have been used in the graph")


class Wrong(Exception):
    """The call returned, but not what the contract says."""


@functools.lru_cache(maxsize=1)
def _good(seed: int, group: int) -> tuple[Operation, Arguments]:
    draw = Draw(seed, group)
    operation: Operation = draw.choice(operators.OPERATIONS if draw.chance(_OPERATORS) else FUNCTIONS)
    return operation, operation.draw(draw)


class Call:
    """The call of a seed and a number. Making it calls nothing of what is attacked.

    Four neighbours begin from the same good arguments, which cost more to draw than a call costs.
    """

    def __init__(self, seed: int, number: int) -> None:
        self.seed, self.number = seed, number
        self.operation, given = _good(seed, -1 - number // _NEIGHBOURS)
        self.given = dict(given)
        self.draw = draw = Draw(seed, number)
        self.changed = self._mutate()
        self.leaves = self._leaves() if self.operation.leaves and draw.chance(0.4) else []

    def _mutate(self) -> list[str]:
        """None of the arguments, or one or two."""
        changed = []
        for name, value in self.given.items():
            if isinstance(value, Tensor) and self.draw.chance(0.12):
                self.given[name] = lay_out(self.draw, value)
        for _ in range(self.draw.choice((0, 0, 1, 1, 1, 1, 2, 2))):
            name = self.draw.choice(list(self.given))
            with contextlib.suppress(RuntimeError, MemoryError, TypeError):  # a second change of what is huge already
                self.given[name] = mutated(self.draw, self.given[name])
                changed.append(name)
        return changed

    def _leaves(self) -> list[Tensor]:
        found = []
        for name in self.operation.leaves:
            value = self.given[name]
            many = isinstance(value, list)
            values = list(value) if many else [value]
            for place, tensor in enumerate(values if len(values) < 64 else ()):
                if isinstance(tensor, Tensor) and tensor.is_floating_point() and self.draw.chance(0.8):
                    with contextlib.suppress(RuntimeError):
                        values[place] = tensor.detach().requires_grad_()
                        found.append(values[place])
            self.given[name] = values if many else values[0]
        return found

    def described(self) -> str:
        lines = [f"{self.operation.name}: call {self.number} of seed {self.seed}"]
        lines.append(f"hostile: {', '.join(self.changed) or 'nothing'}; with gradient: {len(self.leaves)} tensors")
        for name, value in self.given.items():
            lines.append(f"  {name} = {_shown(value)}")
        lines.append(f"again: python -m tests.attack operations --seed {self.seed} --only {self.number}")
        return "\n".join(lines)

    def run(self) -> Outcome:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        verdict, cause, more = self._verdict()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if verdict != FAILED and grown > 2**20 and not self._is_large():  # in KiB
            verdict, cause = FAILED, "memory grew by more than 1 GB"
        details = f"{self.described()}\n\n{more}" if verdict == FAILED else ""
        return Outcome(self.number, self.operation.name, verdict, cause, details)

    def _is_large(self) -> bool:
        return any(map(is_large, self.given.values()))

    def _verdict(self) -> tuple[str, str, str]:
        try:
            watch = Watch(self.given.values())
            try:
                result = self._called()
            finally:
                if not watch.unchanged():
                    raise Wrong("an input was written to")
            self._check(result, watch)
            return HANDLED, "", ""
        except Wrong as wrong:
            return FAILED, f"wrong: {wrong}", traceback.format_exc()
        except Exception as error:
            told = self._refusal(error)
            return (REFUSED, "", "") if told is None else (FAILED, told, traceback.format_exc())

    def _called(self) -> Any:
        """A generator begins anew each time, so that a call can be repeated."""
        torch.default_generator.manual_seed(self.number)
        generator = self.given.get("generator")
        if isinstance(generator, torch.Generator):
            generator.manual_seed(self.number)
        return self.operation.function(**self.given)

    def _refusal(self, error: Exception) -> str | None:
        """None if the error is one that the contract promises, else what is wrong with it."""
        text, kind = str(error), type(error).__name__
        if self.operation.any_error:
            return None
        if isinstance(error, (MemoryError, RuntimeError)) or _MEMORY.search(text):
            promised = any(re.search(pattern, text) for pattern in self.operation.errors)
            if promised or (self._is_large() and (isinstance(error, MemoryError) or _MEMORY.search(text))):
                return None
            return f"{kind}: {_without_numbers(text)}"
        if not isinstance(error, (TypeError, ValueError)):
            return f"{kind}: {_without_numbers(text)}"
        named = re.match(r"(\w+)(\[\d+\])?(\.\w+)?: ", text)
        if not named or named[1] not in _parameters(self.operation.function):
            return f"{kind} that names no argument: {_without_numbers(text)}"
        if len(text) > _LONGEST_MESSAGE:
            return f"{kind} of more than {_LONGEST_MESSAGE} characters about {named[1]}"
        return None if text.replace("\n", "").isprintable() else f"{kind} with control characters about {named[1]}"

    def _check(self, result: Any, watch: Watch) -> None:
        operation, draw = self.operation, self.draw
        try:
            operation.check(self.given, result)
        except Exception as error:
            if _MEMORY.search(str(error)) and self._is_large():  # of the check itself
                return
            raise Wrong(f"not what was asked for ({_first_line(error)})") from error
        if operation.any_error:
            return
        with torch.no_grad():
            again = self._called()
        if not same_bits(result, again):
            raise Wrong("the same call gave something else (without gradients)")
        if operation.compare is not None and not any(map(is_meta, tensors_in(self.given.values()))):
            self._compare(result)
        outputs = [x for x in (result if isinstance(result, (list, tuple)) else [result]) if isinstance(x, Tensor)]
        outputs = [x for x in outputs if x.requires_grad]
        if outputs and self.leaves and not outputs[0].is_meta:
            self._backward(outputs)
        if not watch.unchanged() and not self._overwritten:
            raise Wrong("an input was written to")
        assert draw is self.draw

    _overwritten = False

    def _compare(self, result: Any) -> None:
        large = self._is_large() or any(x.numel() > 2**16 for x in tensors_in(self.given.values()))
        if large or _has_meta(self.given):
            return
        try:
            if self.draw.chance(_TWIN):
                self.operation.compare(self.given, result)
        except ZeroDivisionError:  # of the twin's Python numbers, for a gamma so small that 1 + gamma is 1
            return
        except Exception as error:
            raise Wrong(f"not what the twin gives ({_first_line(error)})") from error
        if not isinstance(result, np.ndarray) and self.draw.chance(0.15):
            copies = {name: _plain(value) for name, value in self.given.items()}
            given, self.given = self.given, copies
            try:
                with torch.no_grad():
                    plain_result = self._called()
            finally:
                self.given = given
            if not same_values(result, plain_result):
                raise Wrong("something else for the same values in plain memory")

    def _backward(self, outputs: list[Tensor]) -> None:
        draw = self.draw
        incoming = [lay_out(draw, draw.tensor(draw.values(tuple(x.shape)), x.dtype)) for x in outputs]
        watch = Watch([*incoming, *outputs])
        if draw.chance(0.1):
            self._overwrite_constants()
        again = draw.chance(0.5)
        try:
            found = torch.autograd.grad(outputs, self.leaves, incoming, allow_unused=True, retain_graph=again)
            for gradient, leaf in zip(found, self.leaves, strict=True):
                if gradient is not None and (gradient.shape != leaf.shape or gradient.dtype != leaf.dtype):
                    raise Wrong(f"a gradient is {gradient.dtype} {list(gradient.shape)}")
            if not watch.unchanged():
                raise Wrong("an incoming gradient or an output was written to by backward")
            if again:
                twice = torch.autograd.grad(outputs, self.leaves, incoming, allow_unused=True, create_graph=True)
                if not same_bits(found, twice):
                    raise Wrong("the same backward gave something else")
                torch.autograd.grad([x.sum() for x in twice if x is not None], self.leaves, allow_unused=True)
        except RuntimeError as error:
            if _MEMORY.search(str(error)) and self._is_large():
                return
            if not _ONCE.search(str(error)) and not any(re.search(p, str(error)) for p in self.operation.errors):
                raise Wrong(f"backward: {_without_numbers(str(error))}") from error

    def _overwrite_constants(self) -> None:
        """Memory that the arguments share with somebody else changes between forward and backward."""
        self._overwritten = True
        _good.cache_clear()
        constants = [value for name, value in self.given.items() if name not in self.operation.leaves]
        for tensor in tensors_in(constants):
            memory = raw_bytes(tensor)
            if tensor.dtype == torch.int64:
                memory.view(np.int64)[:] = self.draw.choice(INT64)
            else:
                memory[:] = self.draw.choice((0, 1, 127, 255))


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested and not value.is_meta:
        if value.dtype == torch.bool:
            return plain(value).view(torch.uint8) != 0
        if value.dim() == 4:  # of channels-last maps the results are channels-last, and summed in that order
            return value.detach().clone()
        return plain(value)
    if isinstance(value, (list, tuple)) and len(value) < 64:
        items = [_plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def _has_meta(given: Arguments) -> bool:
    values = [v for value in given.values() for v in (value if isinstance(value, (list, tuple)) else [value])]
    return any(map(is_meta, values))


def _without_numbers(text: str) -> str:
    """So that the same failure has the same name."""
    line = (text.strip().splitlines() or ["no message"])[0]
    return re.sub(r"-?\d[\d.e+]*", "#", line)[:160]


def _first_line(error: Exception) -> str:
    return _without_numbers(str(error) or type(error).__name__)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        facts = f"{value.dtype} {list(value.shape)} {value.layout} {value.device}"
        with contextlib.suppress(Exception):
            facts += f" strides {value.stride()}"
        if is_meta(value) or is_large(value) or value.numel() > 4096:
            return facts
        with contextlib.suppress(Exception):
            return f"{facts} {value.tolist()}"
        return facts
    if isinstance(value, np.ndarray) and not is_large(value):
        return f"{value.dtype} {list(value.shape)} strides {value.strides} {value.tolist()}"
    if isinstance(value, (list, tuple)):
        items = ",\n      ".join(map(_shown, value[:20]))
        return f"{type(value).__name__} of {len(value)}: [{items}]"
    try:
        return repr(value)[:2000]
    except Exception:
        return f"a {type(value).__name__}"
