"""The CUDA kernels of box coding, run on the CPU in every order of threads: the same bits as the CPU's kernels."""

import pytest
import torch
from torch import Tensor

from libra_ops import decode_boxes, encode_boxes

from .harness import EmulationError, empty, out

STDS = torch.tensor([0.1, 0.1, 0.2, 0.2])


def random_boxes(*shape: int, seed: int) -> Tensor:
    corners = torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(seed)) * 100
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


def random_index(*shape: int, high: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("slots", [1, 257])
def test_encode(emulate, shared, indexed, slots):
    references = random_boxes(*(() if shared else (2,)), 300 if indexed else slots, seed=1)
    targets = random_boxes(2, 7 if indexed else slots, seed=2)
    index, target_index = (random_index(2, slots, high=high) if indexed else None for high in (300, 7))
    deltas = empty(2, slots, 4)
    arguments = (2, references.shape[-2], targets.shape[1], slots, shared, STDS)
    emulate("box_coding").run("run_encode", references, targets, index, target_index, out(deltas), *arguments)
    expected = encode_boxes(references, targets, index=index, target_index=target_index, delta_stds=STDS.tolist())
    assert torch.equal(deltas, expected)


@pytest.mark.parametrize(("shared", "indexed", "classes"), [(True, True, 1), (False, False, 3), (False, True, 2)])
def test_decode(emulate, shared, indexed, classes):
    rows = 150
    references = random_boxes(*(() if shared else (2,)), rows, seed=1)
    deltas = torch.randn(2, rows, classes, 4, generator=torch.Generator().manual_seed(2)) * 9
    index = random_index(2, 270, high=rows) if indexed else None
    sizes = torch.tensor([[50.0, 80.0], [90.0, 40.0]])
    slots = 270 if indexed else rows
    boxes = empty(2, slots, classes, 4)
    arguments = (2, rows, slots, classes, shared, STDS)
    emulate("box_coding").run("run_decode", None, references, deltas, index, sizes, out(boxes), *arguments)
    expected = decode_boxes(references, deltas, index=index, delta_stds=STDS.tolist(), sizes=sizes)
    assert torch.equal(boxes, expected)


@pytest.mark.parametrize(("indexed", "classes"), [(False, 2), (True, 2), (True, 1)])
def test_decode_backward(emulate, indexed, classes):
    references = random_boxes(2, 130, seed=1)
    deltas = (torch.randn(2, 130, classes, 4, generator=torch.Generator().manual_seed(2)) * 9).requires_grad_()
    sizes = torch.tensor([[50.0, 80.0], [90.0, 40.0]])
    index = random_index(2, 270, high=100).sort(dim=1).values if indexed else None
    boxes = decode_boxes(references, deltas, index=index, delta_stds=STDS.tolist(), sizes=sizes)
    incoming = torch.randn(boxes.shape, generator=torch.Generator().manual_seed(3))
    (expected,) = torch.autograd.grad(boxes, deltas, incoming)
    found = empty(2, 130, classes, 4)
    arguments = (2, 130, boxes.shape[1], classes, False, STDS)
    kernels = emulate("box_coding")
    kernels.run("run_decode", incoming, references, deltas.detach(), index, sizes, out(found), *arguments)
    assert torch.equal(found, expected)


def test_slots_out_of_range_have_no_part_in_the_gradient(emulate):
    references, deltas = random_boxes(3, seed=1), torch.zeros(1, 3, 1, 4)
    index = torch.tensor([[-(2**40), -1, 1, 1, 3, 2**40]])
    incoming, found = torch.rand(1, 6, 1, 4, generator=torch.Generator().manual_seed(2)), empty(1, 3, 1, 4)
    kernels = emulate("box_coding")
    kernels.run("run_decode", incoming, references, deltas, index, None, out(found), 1, 3, 6, 1, True, STDS)
    of_two, again = incoming[:, 2:3] + incoming[:, 3:4], empty(1, 3, 1, 4)
    kernels.run("run_decode", of_two, references, deltas, index[:, 2:3], None, out(again), 1, 3, 1, 1, True, STDS)
    assert torch.equal(found, again) and found[0, 1].any() and not found[0, [0, 2]].any()


def test_an_index_out_of_range_gives_nan_and_reads_nothing(emulate):
    references, deltas = random_boxes(3, seed=1), torch.zeros(1, 3, 1, 4)
    index = torch.tensor([[2, 3, -1, 2**40, 0]])
    boxes = empty(1, 5, 1, 4)
    kernels = emulate("box_coding")
    kernels.run("run_decode", None, references, deltas, index, None, out(boxes), 1, 3, 5, 1, True, STDS)
    assert boxes[0, :, 0].isnan().all(1).tolist() == [False, True, True, True, False]
    found = empty(1, 5, 4)
    targets = random_boxes(1, 3, seed=2)
    kernels.run("run_encode", references, targets, index, index, out(found), 1, 3, 3, 5, True, STDS)
    assert found[0].isnan().all(1).tolist() == [False, True, True, True, False]


def test_an_index_of_no_slots_gives_no_gradient(emulate):
    references, deltas, found = random_boxes(3, seed=1), torch.zeros(1, 3, 1, 4), empty(1, 3, 1, 4)
    # Null, as the index of an empty tensor is.
    arguments = (torch.zeros(1, 0, 1, 4), references, deltas, None, None, out(found), 1, 3, 0, 1, True, STDS)
    emulate("box_coding").run("run_decode", *arguments)
    assert torch.equal(found, torch.zeros(1, 3, 1, 4))


def test_empty(emulate):
    kernels = emulate("box_coding")
    nothing = torch.zeros(0, 4)
    kernels.run("run_encode", nothing, torch.zeros(2, 0, 4), None, None, out(empty(2, 0, 4)), 2, 0, 0, 0, True, STDS)
    boxes = out(empty(0, 3, 1, 4))
    kernels.run(
        "run_decode", None, torch.zeros(3, 4), torch.zeros(0, 3, 1, 4), None, None, boxes, 0, 3, 3, 1, True, STDS
    )


def test_more_blocks_than_a_launch_has_are_refused(emulate):
    kernels, row = emulate("box_coding"), torch.zeros(1, 4)
    with pytest.raises(EmulationError, match="returned 9"):
        kernels.run("run_encode", row, row, None, None, out(row), 2**30, 1, 1, 257, True, STDS)
    with pytest.raises(EmulationError, match="returned 9"):
        kernels.run("run_decode", None, row, row, None, None, out(row), 2**30, 1, 1, 257, True, STDS)
