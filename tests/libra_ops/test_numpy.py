"""libra_ops.numpy: the results and the errors of the torch functions, on arrays that are not copied, without torch."""

import re
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

import libra_ops
import libra_ops.numpy as of_numpy

KINDS = ("iou", "iof", "giou", "diou", "ciou")
PACKAGE = Path(libra_ops.__file__).parent
RULES = {"positive_iou": 0.5, "negative_iou": 0.4}
DRAW = {"num_samples": 64, "positive_fraction": 0.25}


def random_boxes(*shape: int, seed: int = 0) -> np.ndarray:
    corners = np.random.default_rng(seed).random((*shape, 2, 2), dtype=np.float32) * 100
    return np.concatenate([corners.min(-2), corners.max(-2)], -1)


def special_boxes(*shape: int, seed: int = 0) -> np.ndarray:
    """Among them inverted, empty, huge and non-finite ones."""
    boxes = random_boxes(*shape, seed=seed)
    flat = boxes.reshape(-1, 4)
    flat[1::11] = flat[1::11, [2, 3, 0, 1]]
    flat[2::13, 2] = flat[2::13, 0]
    flat[3::17] *= np.float32(1e30)
    flat[4::19, 1], flat[5::23, 2] = np.nan, np.inf
    return boxes


def random_targets(batch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    return special_boxes(batch, count, seed=1), np.random.default_rng(2).random((batch, count)) < 0.8


def assert_same(of_arrays: tuple[np.ndarray, ...], of_tensors: tuple[torch.Tensor, ...]) -> None:
    assert type(of_arrays)._fields == type(of_tensors)._fields
    for array, tensor in zip(of_arrays, of_tensors, strict=True):
        assert array.dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(array, tensor.numpy())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("leading1", "leading2", "n", "m"),
    [((), (), 65, 1025), ((2,), (2,), 3, 70), ((3, 1), (2,), 5, 7), ((), (2,), 0, 3), ((0,), (), 4, 4)],
)
def test_box_iou_is_that_of_torch(kind, leading1, leading2, n, m):
    for dtypes in (("f4", "f4"), ("f8", "f8"), ("f2", "f4"), ("f4", "f8")):
        with np.errstate(over="ignore"):
            boxes = special_boxes(*leading1, n).astype(dtypes[0]), special_boxes(*leading2, m, seed=1).astype(dtypes[1])
        found = of_numpy.box_iou(*boxes, kind)
        expected = libra_ops.box_iou(*map(torch.from_numpy, boxes), kind).numpy()
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("min_positive_iou", [None, 0.0, 0.3])
@pytest.mark.parametrize("crowd", [None, "flags", "regions"])
@pytest.mark.parametrize(("batch", "n", "g"), [(1, 1, 1), (3, 1030, 17), (2, 100, 0), (2, 0, 3), (0, 5, 2)])
def test_match_boxes_is_that_of_torch(batch, n, g, crowd, min_positive_iou):
    targets, valid = random_targets(batch, g)
    flags, regions = np.random.default_rng(3).random((batch, g)) < 0.3, special_boxes(batch, 4, seed=4)
    crowd = {None: None, "flags": flags, "regions": regions.astype(np.float64)}[crowd]
    options = {**RULES, "min_positive_iou": min_positive_iou}
    for boxes in (special_boxes(batch, n), special_boxes(n), random_boxes(batch, n).astype(np.float16)):
        found = of_numpy.match_boxes(boxes, targets, valid, crowd=crowd, **options)
        tensors = map(torch.from_numpy, (boxes, targets, valid))
        expected = libra_ops.match_boxes(*tensors, crowd=None if crowd is None else torch.from_numpy(crowd), **options)
        assert_same(found, expected)


@pytest.mark.parametrize("bins", ["paper", "published"])
@pytest.mark.parametrize("positives", ["instance_balanced", "random"])
@pytest.mark.parametrize("ratio", [None, 1.5])
def test_samples_are_those_of_torch_with_its_seed(bins, positives, ratio):
    boxes, (targets, valid) = random_boxes(4, 2000), random_targets(4, 9)
    matches = of_numpy.match_boxes(boxes, targets, valid, **RULES)
    options = {**DRAW, "bins": bins, "positives": positives, "max_negatives_per_positive": ratio}
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        expected = libra_ops.sample_iou_balanced(tuple(map(torch.from_numpy, matches)), generator=generator, **options)
        drawn = torch.randint(
            -(2**63), 2**63 - 1, (1,), dtype=torch.int64, generator=torch.Generator().manual_seed(number)
        )
        assert_same(of_numpy.sample_iou_balanced(matches, seed=drawn.item(), **options), expected)


def test_the_whole_range_of_seeds():
    matches = (np.zeros((1, 500), np.int64), np.zeros((1, 500), np.float32), np.zeros((1, 500), np.int8))
    drawn = {
        tuple(of_numpy.sample_iou_balanced(matches, seed=seed, **DRAW).index[0])
        for seed in (-(2**63), -1, 0, 1, 2**32, np.int64(2**63 - 1))
    }
    assert len(drawn) == 6


def test_results_do_not_depend_on_threads():
    boxes, (targets, valid) = special_boxes(5, 20_000), random_targets(5, 40)
    results = []
    for threads in (1, 2, 3, 64):
        matches = of_numpy.match_boxes(boxes, targets, valid, min_positive_iou=0.3, threads=threads, **RULES)
        samples = of_numpy.sample_iou_balanced(matches, seed=1, threads=threads, **DRAW)
        results.append((*matches, *samples, of_numpy.box_iou(boxes[0], targets[0], "ciou", threads=threads)))
    for result in results[1:]:
        for one, many in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(one, many)


def test_other_threads_of_python_run_meanwhile():
    boxes, (targets, valid) = random_boxes(1, 200_000), random_targets(1, 400)
    done = threading.Event()

    def work() -> None:
        for _ in range(3):
            of_numpy.match_boxes(boxes, targets, valid, **RULES)
        done.set()

    worker = threading.Thread(target=work)
    worker.start()
    began, ticks = time.perf_counter(), 0
    while not done.is_set():
        time.sleep(0.001)
        ticks += 1
    worker.join()
    assert ticks > 20 * (time.perf_counter() - began)  # of at most 1,000 a second; three calls would leave three


def strange_layouts(array: np.ndarray) -> dict[str, np.ndarray]:
    """The same values where a kernel cannot read them."""
    shifted = np.zeros(array.nbytes + 1, np.uint8)[1:]
    shifted[:] = np.frombuffer(array.tobytes(), np.uint8)
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return {
        "big endian": array.astype(array.dtype.newbyteorder(">")),
        "not aligned": shifted.view(array.dtype).reshape(array.shape),
        "Fortran order": np.asfortranarray(array),
        "strided": wide[..., ::2],
        "negative strides": np.ascontiguousarray(array[..., ::-1, :])[..., ::-1, :],
    }


def test_layouts_that_are_converted():
    boxes, targets = random_boxes(2, 100), random_boxes(2, 8, seed=1)
    valid = np.ones((2, 8), bool)
    matches = of_numpy.match_boxes(boxes, targets, valid, **RULES)
    samples = of_numpy.sample_iou_balanced(matches, seed=5, **DRAW)
    overlaps = of_numpy.box_iou(boxes, targets)
    for layout, strange in strange_layouts(boxes).items():
        np.testing.assert_array_equal(of_numpy.box_iou(strange, targets), overlaps, layout)
        found = of_numpy.match_boxes(strange, strange_layouts(targets)[layout], valid, **RULES)
        for field, expected in zip(found, matches, strict=True):
            np.testing.assert_array_equal(field, expected, layout)
        found = of_numpy.sample_iou_balanced([strange_layouts(field)[layout] for field in matches], seed=5, **DRAW)
        np.testing.assert_array_equal(found.index, samples.index, layout)


def test_bfloat16_of_ml_dtypes():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    boxes = random_boxes(9).astype(bfloat16)
    np.testing.assert_array_equal(of_numpy.box_iou(boxes, boxes), of_numpy.box_iou(*[boxes.astype(np.float32)] * 2))


def test_values_beyond_float32_become_infinite_without_a_warning():
    boxes = np.array([[[0.0, 0.0, 1e300, 1e300], [0, 0, 10, 10]]])
    with np.errstate(all="raise"):
        matches = of_numpy.match_boxes(boxes, boxes[:, 1:], np.array([[True]]), **RULES)
    assert matches.state.tolist() == [[-1, 1]]


def test_a_read_only_memory_map_is_not_copied(tmp_path):
    file = tmp_path / "boxes.bin"
    with file.open("wb") as stream:
        stream.truncate(64 * 2**20)  # 4M boxes
    boxes = np.memmap(file, np.float32, mode="r").reshape(1, -1, 4)
    other, none = random_boxes(1, 1), np.zeros((1, 0, 4), np.float32)
    arrays = {
        "box_iou": lambda: of_numpy.box_iou(boxes, none),
        "box_iou, second": lambda: of_numpy.box_iou(none, boxes),
        "targets": lambda: of_numpy.match_boxes(none, boxes, np.zeros(boxes.shape[:2], bool), **RULES),
        "matches": lambda: of_numpy.sample_iou_balanced(
            (
                np.memmap(file, np.int64, mode="r", shape=(1, 2**20)),
                np.memmap(file, np.float32, mode="r", shape=(1, 2**20)),
                np.memmap(file, np.int8, mode="r", shape=(1, 2**20)),
            ),
            seed=0,
            **DRAW,
        ),
        "boxes": lambda: of_numpy.match_boxes(boxes[:, : 2**18], other, np.ones((1, 1), bool), **RULES),
    }
    beyond_results = {"targets": boxes.shape[1], "boxes": 13 * 2**18}  # bytes: flags that are made here; three results
    for name, call in arrays.items():
        call()  # whatever is imported or compiled at a first call is not meant
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000 + beyond_results.get(name, 0), name


TORCH_FREE = """
import sys
{block}
import numpy as np
import libra_ops.numpy
from libra_ops.numpy import box_iou, match_boxes, sample_iou_balanced

def use(_=None):
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 6], [20, 20, 30, 30]] * 5000)
    assert box_iou(boxes, boxes[:2], threads=2)[0].tolist() == [1, np.float32(0.6)]
    matches = match_boxes(
        boxes, boxes[None, :1], np.array([[True]]), positive_iou=0.7, negative_iou=0.3, threads=2
    )
    assert matches.state[0, :3].tolist() == [1, -1, 0]
    samples = sample_iou_balanced(matches, num_samples=8, positive_fraction=0.25, seed=1, threads=2)
    assert samples.positive.tolist() == [[True] * 2 + [False] * 6]
    return samples.index.tolist()

here = use()
try:
    match_boxes([], np.zeros((1, 1, 4)), np.array([[True]]), positive_iou=0.7, negative_iou=0.3)
except TypeError as error:
    assert str(error) == "boxes: expected a numpy.ndarray, got list"
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as workers:  # as data loaders do
    assert workers.map(use, range(4), chunksize=1) == [here] * 4
assert not any(name == "torch" or name.startswith("torch.") for name in sys.modules if sys.modules[name])
"""


@pytest.mark.parametrize("block", ["", "sys.modules['torch'] = None"], ids=["torch there", "torch blocked"])
def test_torch_is_not_imported(block):
    program = TORCH_FREE.format(block=block)
    result = subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_extension_links_no_torch():
    (library,) = PACKAGE.glob("_numpy*.so")
    content = library.read_bytes()
    assert not re.findall(rb"libtorch\w*|libc10\w*", content)


BOXES, TARGETS, VALID = np.zeros((2, 7, 4), np.float32), np.zeros((2, 3, 4), np.float32), np.ones((2, 3), bool)
MATCHES = (np.zeros((2, 7), np.int64), np.zeros((2, 7), np.float32), np.zeros((2, 7), np.int8))
LONG = 10**5000  # more digits than Python prints


def bad_calls() -> list[tuple[str, tuple, dict]]:
    calls = [
        ("box_iou", (value, BOXES), {})
        for value in (None, [[0, 0, 1, 1]], 1.0, "boxes", BOXES.astype(np.int64), BOXES > 0, BOXES.astype(np.complex64))
    ]
    calls += [("box_iou", (BOXES, value), {}) for value in (BOXES[..., :3], BOXES[0, 0], BOXES[:0, 0, 0], np.zeros(()))]
    calls += [("box_iou", (BOXES, np.zeros((3, 1, 4))), {}), ("box_iou", (np.zeros((2, 3, 1, 4)), TARGETS[:0]), {})]
    kinds = ("IoU", None, 0, ["iou"], "x" * 1000, LONG, b"iou")
    calls += [("box_iou", (BOXES, BOXES), {"kind": kind}) for kind in kinds]
    good = {"boxes": BOXES, "targets": TARGETS, "valid": VALID, **RULES}
    for name, values in {
        "boxes": ([], BOXES[:1], BOXES[0, 0], BOXES[None], BOXES[..., :2], BOXES.astype(int), np.zeros((3, 7, 4))),
        "targets": (None, TARGETS[0], TARGETS[..., :2], TARGETS.astype(np.int32)),
        "valid": (None, VALID[0], VALID[:, :2], VALID.astype(np.uint8), VALID.astype(np.float32), [[True] * 3] * 2),
        "positive_iou": (-0.1, 1.5, np.nan, np.inf, "0.5", None, True, 1j, LONG, [0.5], 0.3),
        "negative_iou": (-0.1, 0.6, np.nan, -np.inf, "0.5", None, False, 1j, -LONG, np.float32(0.7)),
        "min_positive_iou": (-0.1, 1.1, np.nan, np.inf, "0.5", True, LONG),
        "crowd": (1, [], VALID[:1], VALID.astype(np.int8), TARGETS[:1], TARGETS[..., 0], TARGETS.astype(int)),
    }.items():
        calls += [("match_boxes", (), {**good, name: value}) for value in values]
    good = {"matches": MATCHES, **DRAW}
    for position in range(3):
        for value in (None, 0, MATCHES[position][0], MATCHES[position][:1], MATCHES[position].astype(np.uint8)):
            matches = (*MATCHES[:position], value, *MATCHES[position + 1 :])
            calls.append(("sample_iou_balanced", (), {**good, "matches": matches}))
    for name, values in {
        "matches": (None, 3, (), MATCHES[:2], "abc", {}),
        "num_samples": (-1, 2**30 + 1, 2**31, 2**63, 2**64, LONG, 0.5, "1", None, True, np.nan),
        "positive_fraction": (-0.1, 1.1, np.nan, np.inf, None, "all", True, LONG),
        "num_bins": (0, -1, 65, 10**9, LONG, 3.0, None, "3", False),
        "interval": (None, 0.5, (), (0,), (0, 1, 2), (1, 0), (0.5, 0.5), (0, np.inf), (np.nan, 1), "ab", (0, LONG)),
        "max_negatives_per_positive": (-1, np.nan, np.inf, "3", True, LONG),
        "positives": ("all", None, 1, ["random"]),
        "bins": ("", None, 3, "Paper"),
    }.items():
        calls += [("sample_iou_balanced", (), {**good, name: value}) for value in values]
    return calls


def to_torch(value):
    if isinstance(value, tuple):
        return tuple(map(to_torch, value))
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def message(function, *args, **options) -> str:
    with pytest.raises((TypeError, ValueError)) as caught:
        function(*args, **options)
    return f"{caught.type.__name__}: {caught.value}"


def test_errors_are_those_of_torch():
    for name, args, options in bad_calls():
        seed = {"seed": 0} if name == "sample_iou_balanced" else {}
        of_arrays = message(getattr(of_numpy, name), *args, **options, **seed)
        of_tensors = message(
            getattr(libra_ops, name), *map(to_torch, args), **{key: to_torch(value) for key, value in options.items()}
        )
        assert of_arrays == of_tensors.replace("a torch.Tensor", "a numpy.ndarray"), (name, args, options)
        argument = re.match(r"\w+: ([\w.]+): ", of_arrays).group(1)
        assert argument.split(".")[0] in {*options, "boxes1", "boxes2"} and len(of_arrays) < 250


def test_counts_beyond_memory_with_nothing_in_them():
    images, many = np.zeros((2**40, 0, 4), np.float32), np.zeros((2**31 - 1, 0))
    assert of_numpy.box_iou(images, images).shape == (2**40, 0, 0)
    found = of_numpy.match_boxes(np.zeros((0, 4)), images, np.zeros((2**40, 0), bool), **RULES)
    assert found.index.shape == (2**40, 0)
    matches = (many.astype(np.int64), many, many.astype(np.int8))
    assert of_numpy.sample_iou_balanced(matches, num_samples=0, positive_fraction=0, seed=0).index.shape[1] == 0
    matches = tuple(np.zeros((2**31, 0), field.dtype) for field in matches)
    with pytest.raises(ValueError, match=r"matches\.index: expected at most 2147483647 images, got 2147483648"):
        of_numpy.sample_iou_balanced(matches, seed=0, **DRAW)
    with pytest.raises(ValueError, match="targets: expected at most 2147483647 per image, got 4294967296"):
        of_numpy.match_boxes(images[:0], np.zeros((0, 2**32, 4)), np.zeros((0, 2**32), bool), **RULES)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: of_numpy.box_iou(torch.zeros(1, 4), BOXES), "boxes1: expected a numpy.ndarray, got Tensor"),
        (lambda: of_numpy.box_iou(np.ma.masked_invalid(BOXES), BOXES), "boxes1: expected an array without a mask"),
        (lambda: of_numpy.box_iou(BOXES, BOXES, threads=0), "threads: expected an int >= 1 and <= 1024, got 0"),
        (lambda: of_numpy.box_iou(BOXES, BOXES, threads=1.0), "threads: expected an int, got float"),
        (lambda: of_numpy.sample_iou_balanced(MATCHES, seed=2**63, **DRAW), "seed: expected an int >= -92233720368547"),
        (lambda: of_numpy.sample_iou_balanced(MATCHES, seed=None, **DRAW), "seed: expected an int, got NoneType"),
        (lambda: of_numpy.box_iou(BOXES.astype(object), BOXES), r"boxes1: expected a floating dtype .* got object"),
        (lambda: of_numpy.box_iou(BOXES, BOXES.astype(np.longdouble)), r"boxes2: expected a floating dtype"),
    ],
)  # fmt: skip
def test_errors_of_its_own(call, text):
    with pytest.raises((TypeError, ValueError), match=text):
        call()
