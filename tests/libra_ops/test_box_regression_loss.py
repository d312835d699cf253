"""box_regression_loss: equal to its twin and to torchvision, decoded or not, masked, and finite for bad predictions."""

import pytest
import torch
import torchvision
from torch import Tensor
from torch._subclasses import FakeTensorMode

from libra_ops import box_iou, box_regression_loss, decode_boxes, reference

KINDS = ("iou", "giou", "diou", "ciou")
REDUCTIONS = ("none", "sum", "mean")
NAN, INFINITY = float("nan"), float("inf")
STDS = (0.1, 0.1, 0.2, 0.2)


def boxes(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, size: float = 100.0) -> Tensor:
    """[*shape, 4] xyxy within size x size pixels."""
    corners = torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1).to(dtype)


def deltas(*shape: int, seed: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Some of them beyond the clip of dw and dh."""
    return (torch.randn(*shape, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3).to(dtype)


def gradients(function, pred: Tensor, target: Tensor, *rest, **options) -> tuple[Tensor, ...]:
    inputs = [pred.detach().clone().requires_grad_(), target.detach().clone().requires_grad_()]
    return torch.autograd.grad(function(*inputs, *rest, **options).sum(), inputs)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_twin(dtype, decoded, kind, reduction):
    pred, target = boxes(2, 333, dtype=dtype), boxes(2, 333, seed=1, dtype=dtype)
    options = {}
    if decoded:
        pred = deltas(2, 333, dtype=dtype)
        options = {"references": boxes(333, seed=2, dtype=dtype), "delta_stds": torch.tensor(STDS, dtype=dtype)}
    weight = torch.rand(2, 333, generator=torch.Generator().manual_seed(1), dtype=dtype)
    weight[:, ::5] = 0
    exact = {name: value.double() for name, value in options.items()}
    close = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-6}
    for rest in ((), (weight,)):
        wide = [x.double() for x in rest]
        loss = box_regression_loss(pred, target, kind, *rest, reduction=reduction, **options)
        expected = reference.box_regression_loss(
            pred.double(), target.double(), kind, *wide, reduction=reduction, **exact
        )
        assert loss.dtype == dtype
        torch.testing.assert_close(loss, expected.to(dtype), rtol=2e-6, atol=2e-6)
        for got, wanted in zip(
            gradients(box_regression_loss, pred, target, kind, *rest, reduction=reduction, **options),
            gradients(
                reference.box_regression_loss, pred.double(), target.double(), kind, *wide, reduction=reduction, **exact
            ),
            strict=True,
        ):
            torch.testing.assert_close(got, wanted.to(dtype), **close)


@pytest.mark.parametrize("kind", KINDS)
def test_is_one_minus_box_iou(kind):
    pred, target = boxes(70), boxes(70, seed=1)
    expected = 1 - box_iou(pred, target, kind).diagonal()
    torch.testing.assert_close(box_regression_loss(pred, target, kind), expected, rtol=0, atol=5e-7)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_torchvision(kind):
    pred, target = boxes(200), boxes(200, seed=1)
    theirs = getattr(
        torchvision.ops, {"giou": "generalized", "diou": "distance", "ciou": "complete"}[kind] + "_box_iou_loss"
    )
    torch.testing.assert_close(box_regression_loss(pred, target, kind), theirs(pred, target), rtol=1e-5, atol=1e-5)
    if kind != "ciou":  # whose alpha it keeps constant
        got = gradients(box_regression_loss, pred, target, kind)
        for one, other in zip(got, gradients(theirs, pred, target), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient_is_that_of_the_loss(kind, reduction):
    target = boxes(9, seed=1, dtype=torch.float64).requires_grad_()
    pred = boxes(9, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, t: box_regression_loss(p, t, kind, reduction=reduction), (pred, target))
    moves = deltas(9, dtype=torch.float64).requires_grad_()
    options = {"references": boxes(9, seed=2, dtype=torch.float64), "delta_stds": STDS, "reduction": reduction}
    assert torch.autograd.gradcheck(lambda p, t: box_regression_loss(p, t, kind, **options), (moves, target))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_boxes_cost_nothing(kind):
    target = boxes(100)
    assert not box_regression_loss(target, target, kind).any()
    for gradient in gradients(box_regression_loss, target, target, kind):
        assert gradient.abs().max() < 1e-6
    wide = target + torch.tensor([0, 0, 20, 20])  # in float32 the coordinates of a decoded box are rounded
    still = box_regression_loss(torch.zeros(100, 4), wide, kind, references=wide)
    torch.testing.assert_close(still, torch.zeros(100), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_inverted_and_empty_predictions_have_a_finite_gradient(kind):
    target = boxes(60, seed=1, size=1e4)
    pred = boxes(60, size=1e4)
    pred[:20] = pred[:20, [2, 3, 0, 1]]
    pred[20:30, 2:] = pred[20:30, :2]
    pred[30:40] = target[30:40, [0, 1, 0, 3]]
    pred[40:50], target[40:45] = 0, 0
    loss = box_regression_loss(pred, target, kind)
    assert loss.isfinite().all()
    for gradient in gradients(box_regression_loss, pred, target, kind):
        assert gradient.isfinite().all()
    far = torch.tensor([[1e6, -1e6, 1e4, -1e4]]).expand(60, 4)
    loss = box_regression_loss(far, target, kind, references=boxes(60, seed=3))
    assert loss.isfinite().all()
    gradient, _ = gradients(box_regression_loss, far, target, kind, references=boxes(60, seed=3))
    assert gradient.isfinite().all() and not gradient[:, 2:].any()  # clipped: no gradient


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_along_the_gradient_helps_boxes_that_overlap(kind):
    target, moves = boxes(50, seed=1) + torch.tensor([0, 0, 30, 30]), torch.zeros(50, 4)
    options = {"references": target + 4, "delta_stds": STDS}
    before = box_regression_loss(moves, target, kind, **options)
    gradient, _ = gradients(box_regression_loss, moves, target, kind, **options)
    assert (box_regression_loss(moves - 0.01 * gradient, target, kind, **options) < before).all()


def test_huge_and_not_finite_boxes():
    pred = torch.tensor([[0, 0, 1e25, 1e25], [0, 0, NAN, 1], [-3e38, -3e38, 3e38, 3e38], [0, 0, 4, 4]])
    target = torch.tensor([[0, 0, 2e25, 1e25], [0, 0, 1, 1], [-3e38, -3e38, 3e38, 3e38], [0, 0, 4, 4]])
    for kind in KINDS:
        loss = box_regression_loss(pred, target, kind)
        torch.testing.assert_close(loss, 1 - box_iou(pred, target, kind).diagonal(), equal_nan=True)
        gradient, _ = gradients(box_regression_loss, pred, target, kind)
        assert gradient[1].isnan().all() and gradient[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decoded", [False, True])
def test_masked_pairs_count_exactly_nothing(decoded, kind, reduction):
    pred, target = boxes(150), boxes(150, seed=1)
    references = boxes(150, seed=2) if decoded else None
    mask = torch.rand(150, generator=torch.Generator().manual_seed(1)) < 0.7
    options = {"reduction": reduction, "references": references}
    expected = box_regression_loss(pred, target, kind, mask, **options)
    expected_gradients = gradients(box_regression_loss, pred, target, kind, mask, **options)
    pred[~mask] = torch.tensor([NAN, INFINITY, -INFINITY, 3e38])
    target[~mask] = NAN
    if decoded:
        references[~mask] = -INFINITY
    assert torch.equal(box_regression_loss(pred, target, kind, mask, **options), expected)
    assert torch.equal(box_regression_loss(pred, target, kind, mask.double(), **options), expected)
    for got, wanted in zip(
        gradients(box_regression_loss, pred, target, kind, mask, **options), expected_gradients, strict=True
    ):
        assert torch.equal(got, wanted) and not got[~mask].any()


@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 2, 5, 4), (65, 4)], ids=str)
def test_any_shape(shape):
    pred, target = boxes(*shape[:-1]), boxes(*shape[:-1], seed=1)
    loss = box_regression_loss(pred, target, "giou")
    torch.testing.assert_close(loss, reference.box_regression_loss(pred, target, "giou"))
    assert loss.shape == shape[:-1]


@pytest.mark.parametrize("shape", [(4,), (7, 4), (1, 7, 4), (3, 1, 4), (3, 7, 4)], ids=str)
def test_references_broadcast(shape):
    moves, target = deltas(3, 7), boxes(3, 7, seed=1)
    references = boxes(*shape[:-1], seed=2)
    loss = box_regression_loss(moves, target, references=references)
    torch.testing.assert_close(loss, box_regression_loss(moves, target, references=references.expand(3, 7, 4)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)], ids=str)
def test_no_boxes(shape, reduction):
    empty = torch.empty(shape)
    options = {"reduction": reduction, "references": torch.empty(0, 4)}
    loss = box_regression_loss(empty, empty, "ciou", **options)
    torch.testing.assert_close(
        loss,
        torch.empty(shape[:-1]) if reduction == "none" else torch.tensor(NAN if reduction == "mean" else 0.0),
        equal_nan=True,
    )
    assert gradients(box_regression_loss, empty, empty, "ciou", **options)[0].shape == shape


def test_not_contiguous():
    pred, target = boxes(9, 5), boxes(9, 5, seed=1)
    got = box_regression_loss(pred.transpose(0, 1), target.transpose(0, 1), "giou")
    assert torch.equal(got, box_regression_loss(pred, target, "giou").T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float32(dtype):
    moves, target = deltas(100, dtype=dtype), boxes(100, seed=1)
    references = boxes(100, seed=2)
    loss = box_regression_loss(moves, target, "giou", references=references)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, box_regression_loss(moves.float(), target, "giou", references=references))
    assert gradients(box_regression_loss, moves, target, "giou", references=references)[0].dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_deterministic_and_independent_of_threads(kind):
    moves, target, references = deltas(30_000), boxes(30_000, seed=1), boxes(15_000, seed=2)
    moves, target = moves.view(2, -1, 4), target.view(2, -1, 4)
    threads, results = torch.get_num_threads(), []
    options = {"reduction": "mean", "references": references}
    try:
        for count in (1, 2, 5, 2):
            torch.set_num_threads(count)
            loss = box_regression_loss(moves, target, kind, **options)
            results.append((loss, *gradients(box_regression_loss, moves, target, kind, **options)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


def test_incoming_gradients_and_one_side_alone():
    pred, target = boxes(20), boxes(20, seed=1)
    of_pred, of_target = gradients(box_regression_loss, pred, target, "giou")
    incoming = torch.rand(20, generator=torch.Generator().manual_seed(1))
    for inputs, own, plain in (((pred.clone(), target), 0, of_pred), ((pred, target.clone()), 1, of_target)):
        leaf = inputs[own].requires_grad_()
        (got,) = torch.autograd.grad(box_regression_loss(*inputs, "giou"), leaf, incoming)
        torch.testing.assert_close(got, plain * incoming[:, None])
        loss = 2 * box_regression_loss(*inputs, "giou", reduction="sum")
        for times in (1, 2):
            loss.backward(retain_graph=times == 1)
            torch.testing.assert_close(leaf.grad, 2 * times * plain)


def test_second_derivative_is_an_error():
    pred, target = boxes(3).requires_grad_(), boxes(3, seed=1)
    (first,) = torch.autograd.grad(box_regression_loss(pred, target, reduction="sum"), pred, create_graph=True)
    with pytest.raises(RuntimeError, match="box_regression_loss: differentiable once only"):
        first.sum().backward()


def test_fake_tensors_have_the_gradients_shapes():
    with FakeTensorMode():
        pred, target = torch.rand(5, 4, requires_grad=True), torch.rand(5, 4)
        for reduction in REDUCTIONS:
            loss = box_regression_loss(pred, target, reduction=reduction, references=torch.rand(5, 4), delta_stds=STDS)
            assert loss.shape == ((5,) if reduction == "none" else ())
            assert torch.autograd.grad(loss.sum(), pred)[0].shape == (5, 4)


@pytest.mark.parametrize("reduction", range(3))
def test_opcheck(reduction):
    pred, target = deltas(6).requires_grad_(), boxes(6, seed=1).requires_grad_()
    arguments = (pred, target, torch.rand(6), boxes(3, seed=2), torch.tensor(STDS), 2, reduction, True, True)
    torch.library.opcheck(torch.ops.libra_ops.box_regression_loss, arguments)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compile(reduction):
    def loss(pred, target):
        return box_regression_loss(pred, target, "ciou", target[:, 0] > 20, reduction=reduction, references=target + 1)

    def alone(pred, target):
        return loss(pred, target.detach())

    pred, target = deltas(9), boxes(9, seed=1)
    torch._dynamo.reset()
    compiled = torch.compile(alone, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pred, target), alone(pred, target))
    inputs = [pred.requires_grad_(), pred.detach().clone().requires_grad_()]
    got, expected = (torch.autograd.grad(f(x, target).sum(), x) for f, x in zip((compiled, alone), inputs, strict=True))
    torch.testing.assert_close(got, expected)


ONES = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((ONES.long(), ONES), {}, TypeError, r"pred: expected a floating dtype .*int64 \[2, 4\]"),
        ((ONES[:, :3], ONES), {}, ValueError, r"pred: expected shape \[..., 4\], got float32 \[2, 3\]"),
        ((ONES, ONES[0]), {}, ValueError, r"target: expected shape \[2, 4\] .*got float32 \[4\]"),
        ((ONES, ONES.to("meta")), {}, ValueError, "target: expected on cpu like pred, got meta"),
        ((ONES, ONES, "iof"), {}, ValueError, "kind: expected one of 'iou', 'giou', 'diou', 'ciou', got 'iof'"),
        ((ONES, ONES, "iou", ONES), {}, ValueError, r"weight: .* broadcasts to \[2\].*got float32 \[2, 4\]"),
        ((ONES, ONES, "iou", ONES[:, 0].long()), {}, TypeError, "weight: expected a floating dtype"),
        ((ONES, ONES, "iou", ONES[:, 0].clone().requires_grad_()), {}, ValueError, r"weight: .*weight.detach\(\)"),
        ((ONES, ONES), {"references": ONES[:, :2]}, ValueError, "references: expected xyxy boxes of shape"),
        ((ONES, ONES), {"references": torch.ones(3, 4)}, ValueError, r"references: .* broadcasts to pred's \[2, 4\]"),
        ((ONES, ONES), {"references": ONES.clone().requires_grad_()}, ValueError, r"references: .*detach\(\)"),
        ((ONES, ONES), {"delta_stds": STDS}, ValueError, "delta_stds: expected references beside it"),
        ((ONES, ONES), {"references": ONES, "delta_stds": (1, 1)}, ValueError, "delta_stds: expected 4 numbers > 0"),
        ((ONES, ONES), {"references": ONES, "delta_stds": 1.0}, TypeError, "delta_stds: expected a tensor or 4"),
        ((ONES, ONES), {"reduction": "avg"}, ValueError, "reduction: expected one of 'none', 'sum', 'mean', got 'avg'"),
    ],
)
def test_errors_name_the_argument(arguments, options, error, message):
    with pytest.raises(error, match=message):
        box_regression_loss(*arguments, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_decodes_what_decode_boxes_does(kind):
    """Bit for bit, on both sides of the clip: the exponential is the same."""
    moves, target, references = deltas(500), boxes(500, seed=1), boxes(500, seed=2)
    inside = box_regression_loss(moves, target, kind, references=references, delta_stds=STDS)
    outside = box_regression_loss(decode_boxes(references, moves, delta_stds=STDS), target, kind)
    assert torch.equal(inside, outside)
    wide = box_regression_loss(moves * 9, target, kind, references=references)
    assert torch.equal(wide, box_regression_loss(decode_boxes(references, moves * 9), target, kind))


@pytest.mark.parametrize(
    "number", [0, -1.0, NAN, INFINITY, 1e39, 3.4028236e38, 2.0**-150, pytest.param(10**400, id="huge")]
)
def test_delta_stds_are_within_the_range_of_float32(number):
    expected = r"delta_stds: expected 4 numbers > 0 within float32's range, got (\(|a value of type tuple)"
    for dtype in (torch.float32, torch.float64):
        pair = ONES.to(dtype)
        with pytest.raises(ValueError, match=expected):
            box_regression_loss(pair, pair, references=pair, delta_stds=(number, 1, 1, 1))
    for accepted in (3.4028234e38, 1e-44):
        box_regression_loss(ONES, ONES, references=ONES, delta_stds=(accepted, 1, 1, 1))


def test_a_gradient_that_float16_cannot_hold_is_infinite():
    """As the docstring says; in bfloat16 and float32 it is finite."""
    line = torch.tensor([[0.0, 0.0, 1.0, 0.0]])  # a change of its height is divided by 1e-6 px^2
    for dtype, finite in ((torch.float32, True), (torch.bfloat16, True), (torch.float16, False)):
        gradient, _ = gradients(box_regression_loss, line.to(dtype), line.to(dtype), "giou")
        assert bool(gradient.isfinite().all()) is finite


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda(dtype, reduction, kind):
    inputs = [deltas(4, 3001, dtype=dtype), boxes(4, 3001, seed=1, dtype=dtype), boxes(3001, seed=2, dtype=dtype)]
    mask = torch.rand(4, 3001, generator=torch.Generator().manual_seed(3)) < 0.8
    results = []
    for device in ("cpu", "cuda", "cuda"):
        pred, target, references = (x.to(device) for x in inputs)
        options = {"weight": mask.to(device), "reduction": reduction, "references": references, "delta_stds": STDS}
        loss = box_regression_loss(pred, target, kind, **options)
        found = gradients(box_regression_loss, pred, target, kind, **options)
        results.append([x.cpu() for x in (loss, *found)])
    cpu, first, second = results
    assert all(map(torch.equal, first, second))
    for got, expected in zip(first, cpu, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
