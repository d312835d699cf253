"""box_iou: equal to its twin, to torchvision, to the reference implementation, and to what its docstring says."""

import pytest
import torch
import torchvision
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from libra_ops import reference
from libra_ops.box_iou import box_iou

KINDS = ("iou", "iof", "giou", "diou", "ciou")
BOXES = torch.ones(2, 4)
NAN, INFINITY = float("nan"), float("inf")


def random_boxes(*shape: int, seed: int = 0, size: float = 100.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """[*shape, 4] xyxy within size x size pixels."""
    corners = torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype) * size
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


def peculiar_boxes() -> Tensor:
    """[9, 4]: boxes with the same place, an edge, a corner or nothing in common, without extent, and inverted."""
    return torch.tensor(
        [
            [0, 0, 10, 10], [0, 0, 10, 10], [10, 0, 20, 10], [10, 10, 20, 20], [2, 2, 4, 4], [30, 0, 40, 10],
            [5, 5, 5, 5], [5, 0, 5, 10], [8, 8, 2, 2],
        ],
        dtype=torch.float32,
    )  # fmt: skip


def gradients(function, boxes1: Tensor, boxes2: Tensor, incoming: Tensor) -> tuple[Tensor, ...]:
    inputs = [boxes1.detach().clone().requires_grad_(), boxes2.detach().clone().requires_grad_()]
    return torch.autograd.grad(function(*inputs), inputs, incoming)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 2000), (130, 1), (65, 1030)])
def test_equals_the_twin(kind, n, m):
    boxes1, boxes2 = random_boxes(n), random_boxes(m, seed=1)
    overlaps = box_iou(boxes1, boxes2, kind)
    torch.testing.assert_close(
        overlaps.double(), reference.box_iou(boxes1.double(), boxes2.double(), kind), rtol=1e-5, atol=1e-6
    )
    if kind != "ciou":  # the same arithmetic in the same order: the arc tangent alone may differ
        assert torch.equal(overlaps, reference.box_iou(boxes1, boxes2, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_peculiar_boxes(kind):
    boxes = peculiar_boxes()
    overlaps = box_iou(boxes, boxes, kind)
    torch.testing.assert_close(overlaps.double(), reference.box_iou(boxes.double(), boxes.double(), kind))
    torch.testing.assert_close(overlaps[:6, :6].diagonal(), torch.ones(6), rtol=0, atol=0)
    if kind in ("iou", "iof"):
        assert not overlaps[0, [2, 3, 5, 6, 7, 8]].any()  # touching, apart, without extent, inverted
        assert not overlaps[6:, :].any()


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_torchvision(kind):
    boxes1, boxes2 = random_boxes(40), random_boxes(50, seed=1)
    name = {"iou": "box_iou", "giou": "generalized_box_iou", "diou": "distance_box_iou", "ciou": "complete_box_iou"}[
        kind
    ]
    expected = getattr(torchvision.ops, name)(boxes1, boxes2)
    torch.testing.assert_close(box_iou(boxes1, boxes2, kind), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["iou", "iof"])
def test_reference_implementation(libra_goldens, kind):
    golden = torch.load(libra_goldens / "d_assigner.pt", weights_only=True)["overlaps"]
    assert torch.equal(box_iou(golden["b1"], golden["b2"], kind), golden[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", [0, 63, 64])
def test_nan_stays_in_its_pairs(kind, row):
    boxes1, boxes2 = random_boxes(65), random_boxes(1030, seed=1)
    expected = box_iou(boxes1, boxes2, kind)
    boxes1[row, 2], boxes2[1025, 1] = NAN, NAN
    overlaps = box_iou(boxes1, boxes2, kind)
    poisoned = torch.zeros(65, 1030, dtype=torch.bool)
    poisoned[row], poisoned[:, 1025] = True, True
    assert torch.equal(overlaps.isnan(), poisoned)
    assert torch.equal(overlaps[~poisoned], expected[~poisoned])
    double = box_iou(boxes1.double(), boxes2.double(), kind)
    assert torch.equal(double.isnan(), poisoned)


def test_infinite_boxes():
    everything = torch.tensor([[-INFINITY, -INFINITY, INFINITY, INFINITY]])
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert box_iou(box, everything, "iof").item() == 1
    assert box_iou(box, everything, "iou").item() == 0
    for kind in KINDS:  # two infinite areas: there is no limit
        assert box_iou(everything, everything, kind).isnan().all()
        assert box_iou(everything.double(), everything.double(), kind).isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_float64_boxes_are_finite_up_to_1e150(kind):
    boxes = torch.tensor([[-1e150, -1e150, 1e150, 1e150], [0, 0, 1e150, 5e149], [0, 0, 1, 1]], dtype=torch.float64)
    overlaps = box_iou(boxes, boxes, kind)
    assert overlaps.isfinite().all()
    torch.testing.assert_close(overlaps.diagonal(), torch.ones(3, dtype=torch.float64))
    if kind == "iou":
        assert overlaps[0, 1].item() == pytest.approx(1 / 8)


@pytest.mark.parametrize("kind", KINDS)
def test_huge_boxes_are_finite_and_right(kind):
    huge = torch.tensor([[0.0, 0, 1e20, 1e20], [0, 0, 1e20, 5e19], [-3e38, -3e38, 3e38, 3e38], [0, 0, 1e18, 1.1e18]])
    boxes = torch.cat([huge, random_boxes(5)])
    overlaps = box_iou(boxes, boxes, kind)
    assert overlaps.isfinite().all()
    expected = reference.box_iou(boxes.double(), boxes.double(), kind)
    torch.testing.assert_close(overlaps, expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(overlaps, reference.box_iou(boxes, boxes, kind), rtol=1e-5, atol=1e-6)
    if kind == "iou":
        assert overlaps[0, 1] == 0.5 and overlaps[0, 0] == 1


def test_tiny_boxes():
    """Below a union of 1e-6 px^2 the clamp divides: the published implementation's value, and never NaN."""
    boxes = torch.tensor([[0.0, 0.0, 1e-4, 1e-4], [0.0, 0.0, 1e-30, 1e-30]])
    for kind in KINDS:
        overlaps = box_iou(boxes, boxes, kind)
        assert overlaps.isfinite().all()
        torch.testing.assert_close(overlaps, reference.box_iou(boxes, boxes, kind))
    assert box_iou(boxes, boxes)[0, 0] == pytest.approx(1e-8 / 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    boxes1 = random_boxes(2, 4, dtype=torch.float64).requires_grad_()
    boxes2 = random_boxes(1, 5, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: box_iou(a, b, kind), (boxes1, boxes2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (17, 65), (70, 15)])
def test_gradients_equal_those_of_the_twin(kind, n, m):
    boxes1, boxes2 = random_boxes(n), random_boxes(m, seed=1)
    incoming = torch.randn(n, m, generator=torch.Generator().manual_seed(2))
    got = gradients(lambda a, b: box_iou(a, b, kind), boxes1, boxes2, incoming)
    expected = gradients(
        lambda a, b: reference.box_iou(a, b, kind), boxes1.double(), boxes2.double(), incoming.double()
    )
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_at_kinks_are_pytorchs(kind):
    """Equal edges share a gradient, as autograd of the twin says (at a clamp's edge, torch's versions differ)."""
    boxes = [[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 5, 10], [2, 0, 10, 8], [0, 3, 10, 10], [1, 1, 9, 9]]
    boxes = torch.tensor(boxes, dtype=torch.float64)
    incoming = torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    got = gradients(lambda a, b: box_iou(a, b, kind), boxes, boxes, incoming)
    expected = gradients(lambda a, b: reference.box_iou(a, b, kind), boxes, boxes, incoming)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_huge_boxes(kind):
    boxes1 = torch.cat([random_boxes(3), torch.tensor([[0.0, 0, 1e20, 1e20]])])
    boxes2 = torch.cat([random_boxes(2, seed=1), torch.tensor([[0.0, 0, 2e20, 5e19]])])
    incoming = torch.ones(4, 3)
    got = gradients(lambda a, b: box_iou(a, b, kind), boxes1, boxes2, incoming)
    expected = gradients(
        lambda a, b: reference.box_iou(a, b, kind), boxes1.double(), boxes2.double(), incoming.double()
    )
    for one, other in zip(got, expected, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-6)
    assert got[0][3].any()


def test_a_masked_pair_has_no_gradient():
    boxes1, boxes2 = random_boxes(20), random_boxes(30, seed=1)
    incoming = torch.rand(20, 30)
    incoming[3], incoming[:, 5] = 0, 0
    expected = gradients(box_iou, boxes1, boxes2, incoming)
    boxes1[3], boxes2[5] = NAN, INFINITY
    got = gradients(box_iou, boxes1, boxes2, incoming)
    for one, other, padding in zip(got, expected, (3, 5), strict=True):
        torch.testing.assert_close(one, other)
        assert not one[padding].any()
    incoming[3, 4] = 1
    got = gradients(box_iou, boxes1, boxes2, incoming)
    assert got[0][3].isnan().all() and got[1][4].isnan().all() and got[0][4].isfinite().all()


def test_gradient_moves_boxes_together():
    """GIoU pulls boxes that do not touch, which IoU cannot."""
    boxes, target = torch.tensor([[30.0, 0, 40, 10]], requires_grad=True), torch.tensor([[0.0, 0, 10, 10]])
    assert box_iou(boxes, target).item() == 0
    for _ in range(200):
        (gradient,) = torch.autograd.grad(box_iou(boxes, target, "giou").sum(), boxes)
        boxes = (boxes + 20 * gradient).detach().requires_grad_()
    assert box_iou(boxes, target).item() > 0.3


def test_differentiable_once():
    """A graph of the gradient may be made; an error comes only where a second derivative runs through the op."""
    boxes, others = random_boxes(3), random_boxes(2, seed=1)
    expected = gradients(box_iou, boxes, others, torch.ones(3, 2))[0]
    boxes.requires_grad_()
    other = torch.ones(3, requires_grad=True)
    loss = box_iou(boxes, others).sum() + other.pow(3).sum()
    of_boxes, of_other = torch.autograd.grad(loss, (boxes, other), create_graph=True)
    assert torch.equal(of_boxes, expected)
    assert torch.equal(torch.autograd.grad(of_other.sum(), other, retain_graph=True)[0], torch.full((3,), 6.0))
    for penalty in (of_boxes.sum(), of_boxes.square().sum() + loss):
        with pytest.raises(RuntimeError, match="box_iou: differentiable once"):
            torch.autograd.grad(penalty, boxes, retain_graph=True)


def test_forward_mode_is_an_error_and_not_a_missing_tangent():
    boxes = random_boxes(3)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(boxes, torch.ones_like(boxes))
        for arguments, name in (((dual, boxes), "boxes1"), ((boxes, dual), "boxes2")):
            with pytest.raises(NotImplementedError, match=f"{name}: expected a tensor without a tangent"):
                box_iou(*arguments)
        box_iou(boxes, boxes)


def test_leading_dimensions_broadcast():
    boxes1, boxes2 = random_boxes(7), random_boxes(2, 3, 5, seed=1)
    overlaps = box_iou(boxes1, boxes2)
    assert overlaps.shape == (2, 3, 7, 5)
    assert torch.equal(overlaps, reference.box_iou(boxes1, boxes2))
    assert torch.equal(box_iou(random_boxes(2, 1, 7), boxes2), reference.box_iou(random_boxes(2, 1, 7), boxes2))
    incoming = torch.rand(2, 3, 7, 5)
    for one, other in zip(
        gradients(box_iou, boxes1, boxes2, incoming),
        gradients(reference.box_iou, boxes1, boxes2, incoming),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "shapes", [((0, 4), (3, 4)), ((3, 4), (0, 4)), ((0, 2, 4), (0, 3, 4)), ((2, 0, 4), (0, 4))], ids=str
)
def test_empty(shapes):
    boxes1, boxes2 = (torch.rand(shape, requires_grad=True) for shape in shapes)
    overlaps = box_iou(boxes1, boxes2)
    assert overlaps.shape == reference.box_iou(boxes1, boxes2).shape
    overlaps.sum().backward()
    assert boxes1.grad.shape == shapes[0] and not boxes1.grad.any() and not boxes2.grad.any()


def test_not_contiguous_or_not_aligned():
    boxes1, boxes2 = random_boxes(9, seed=1), random_boxes(11, seed=2)
    expected = box_iou(boxes1, boxes2)
    assert torch.equal(box_iou(boxes1.T.contiguous().T, boxes2.repeat_interleave(2, 0)[::2]), expected)
    shifted = torch.cat([torch.zeros(1), boxes1.flatten()])[1:].view(9, 4)  # contiguous, 4 bytes off a box's alignment
    assert torch.equal(box_iou(shifted, boxes2), expected)
    got = gradients(lambda a, b: box_iou(a, b).T, boxes1, boxes2, torch.ones(9, 11).T)
    torch.testing.assert_close(got, gradients(box_iou, boxes1, boxes2, torch.ones(9, 11)))


@pytest.mark.parametrize(
    ("dtypes", "result"),
    [
        ((torch.float16, torch.float16), torch.float32),
        ((torch.bfloat16, torch.float16), torch.float32),
        ((torch.float32, torch.bfloat16), torch.float32),
        ((torch.float64, torch.float16), torch.float64),
    ],
    ids=str,
)
def test_dtypes(dtypes, result):
    boxes1, boxes2 = random_boxes(5).to(dtypes[0]), random_boxes(6, seed=1).to(dtypes[1])
    overlaps = box_iou(boxes1, boxes2)
    assert overlaps.dtype == result
    assert torch.equal(overlaps, reference.box_iou(boxes1.to(result), boxes2.to(result)))
    grad1, grad2 = gradients(box_iou, boxes1, boxes2, torch.ones(5, 6, dtype=result))
    assert (grad1.dtype, grad2.dtype) == dtypes


def test_autocast():
    boxes1, boxes2 = random_boxes(5), random_boxes(6, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(box_iou(boxes1, boxes2), reference.box_iou(boxes1, boxes2))
        raw = torch.ops.libra_ops.box_iou(boxes1.bfloat16()[None], boxes2[None], 0)
    assert raw.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    boxes1, boxes2 = random_boxes(2, 5, dtype=dtype), random_boxes(2, 6, seed=1, dtype=dtype)
    torch.library.opcheck(torch.ops.libra_ops.box_iou, (boxes1.requires_grad_(), boxes2.requires_grad_(), 2))
    boxes = (boxes1.detach(), boxes2.detach())
    torch.library.opcheck(torch.ops.libra_ops.box_iou_backward, (torch.rand(2, 5, 6, dtype=dtype), *boxes, 2))


def test_a_graph_that_is_kept_gives_the_same_gradient_again():
    boxes1, boxes2 = random_boxes(5).requires_grad_(), random_boxes(6, seed=1)
    overlaps = box_iou(boxes1, boxes2, "giou").sum()
    first = torch.autograd.grad(overlaps, boxes1, retain_graph=True)[0]
    expected = first.clone()
    first.zero_()
    assert torch.equal(torch.autograd.grad(overlaps, boxes1)[0], expected)


def test_the_op_itself_has_the_same_gradient():
    boxes1, boxes2, incoming = random_boxes(2, 5), random_boxes(2, 6, seed=1), torch.rand(2, 5, 6)
    expected = gradients(box_iou, boxes1, boxes2, incoming)
    got = gradients(lambda one, other: torch.ops.libra_ops.box_iou(one, other, 0), boxes1, boxes2, incoming)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


def test_fake_tensors_have_the_gradients_shapes():
    with FakeTensorMode():
        boxes1 = torch.rand(3, 5, 4, requires_grad=True)
        overlaps = box_iou(boxes1, torch.rand(6, 4))
        assert overlaps.shape == (3, 5, 6)
        assert torch.autograd.grad(overlaps.sum(), boxes1)[0].shape == (3, 5, 4)


def test_compile():
    def loss(boxes1, boxes2):
        return (1 - box_iou(boxes1, boxes2, "giou")).mean()

    boxes1, boxes2 = random_boxes(2, 5), random_boxes(6, seed=1)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    one = torch.tensor(1.0)
    torch.testing.assert_close(compiled(boxes1, boxes2), loss(boxes1, boxes2))
    torch.testing.assert_close(gradients(compiled, boxes1, boxes2, one), gradients(loss, boxes1, boxes2, one))


def test_independent_of_threads():
    boxes1, boxes2 = random_boxes(3, 150), random_boxes(3, 1500, seed=1)
    incoming = torch.randn(3, 150, 1500, generator=torch.Generator().manual_seed(2))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append((box_iou(boxes1, boxes2, "giou"), *gradients(box_iou, boxes1, boxes2, incoming)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[0, 0, 1, 1]], BOXES), TypeError, "boxes1: expected a torch.Tensor, got list"),
        ((BOXES.long(), BOXES), TypeError, r"boxes1: expected a floating dtype .*int64 \[2, 4\]"),
        ((BOXES, torch.ones(2, 5)), ValueError, r"boxes2: expected xyxy .* \[..., M, 4\], got float32 \[2, 5\]"),
        ((BOXES[0], BOXES), ValueError, "boxes1: expected xyxy boxes"),
        ((BOXES.expand(2, 2, 4), BOXES.expand(3, 2, 4)), ValueError, r"boxes2: .* \[2\], got float32 \[3, 2, 4\]"),
        ((BOXES, BOXES, "IoU"), ValueError, "kind: expected one of 'iou', 'iof', .* got 'IoU'"),
        ((BOXES, BOXES.to("meta")), ValueError, "boxes2: expected on cpu like boxes1, got meta"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        box_iou(*arguments)


def test_the_operator_checks_too():
    """Whoever passes by the Python door gets an error, not a crash."""
    with pytest.raises(RuntimeError, match="boxes2: expected dtype"):
        torch.ops.libra_ops.box_iou(torch.rand(1, 2, 4), torch.rand(1, 2, 4).double(), 0)
    with pytest.raises(RuntimeError, match="boxes2: expected size 1 in dimension 0, got 2"):
        torch.ops.libra_ops.box_iou(torch.rand(1, 2, 4), torch.rand(2, 2, 4), 0)
    with pytest.raises(RuntimeError, match="kind"):
        torch.ops.libra_ops.box_iou(torch.rand(1, 2, 4), torch.rand(1, 2, 4), 7)
    with pytest.raises(RuntimeError, match="grad: expected size 3 in dimension 2, got 2"):
        torch.ops.libra_ops.box_iou_backward(torch.rand(1, 2, 2), torch.rand(1, 2, 4), torch.rand(1, 3, 4), 0)
