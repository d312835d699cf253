"""encode_boxes and decode_boxes: equal to their twins, and what their docstrings say."""

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from libra_ops import decode_boxes, encode_boxes, reference

STDS = (0.1, 0.1, 0.2, 0.2)
SIZES = torch.tensor([[60.0, 90.0], [80.0, 50.0]])


def random_boxes(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """[*shape, 4] xyxy within 100 x 100 pixels."""
    corners = torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 100
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


def random_deltas(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """[*shape, 4], of which some pass the largest change of a side."""
    return torch.randn(*shape, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3


def random_index(*shape: int, high: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0, 1.0), STDS])
@pytest.mark.parametrize("slots", [1, 127, 1000])
def test_equal_the_twins(stds, slots):
    references, targets, deltas = random_boxes(2, slots), random_boxes(2, slots, seed=3), random_deltas(2, slots)
    close = {"rtol": 1e-6, "atol": 1e-6}
    found = encode_boxes(references, targets, delta_stds=stds)
    torch.testing.assert_close(found, reference.encode_boxes(references, targets, delta_stds=stds), **close)
    # A coordinate is the sum of the reference's centre, the shift and half a side, and rounds as these do. Half a side
    # takes most of it: e^x is right to two units, and rounding x, up to 4.1, costs it as many again.
    size = references[..., 2:] - references[..., :2]
    half = size * (deltas[..., 2:] * torch.tensor(stds[2:])).clamp(-4.2, 4.2).exp() / 2
    parts = references.abs().amax(-1, keepdim=True) + (deltas[..., :2] * torch.tensor(stds[:2]) * size).abs() + half
    bound = 12 * 2**-24 * parts.repeat(1, 1, 2).double()
    for sizes in (None, SIZES):
        found = decode_boxes(references, deltas, delta_stds=stds, sizes=sizes)
        wide = sizes if sizes is None else sizes.double()
        expected = reference.decode_boxes(references.double(), deltas.double(), None, stds, wide)
        assert ((found - expected).abs() <= bound).all()


def test_exponential_and_logarithm_are_exact_to_two_units_of_the_last_place():
    """Of a reference of side 2 at the origin, x2 is e^dw, and dw of a target of that side its logarithm."""
    x = torch.linspace(-4.2, 4.2, 100_001).clamp(-math.log(62.5), math.log(62.5))
    box = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    deltas = torch.stack((x * 0, x * 0, x, -x), -1)
    found = decode_boxes(box.expand_as(deltas), deltas)
    for side, of in ((found[:, 2], x), (found[:, 3], -x)):
        assert (side.double() / of.double().exp() - 1).abs().max() < 2 * 2**-24 * 1.1
    sides = torch.logspace(-6, 38, 100_001)
    unit = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(sides), 4)
    wanted = torch.stack((sides * 0, sides * 0, sides, 1 / sides), -1)
    found = encode_boxes(unit, wanted)
    exact = sides.double().log()
    assert ((found[:, 2].double() - exact).abs() <= 2 * 2**-24 * exact.abs().clamp(min=1)).all()
    assert (found[:, 2][sides == 1] == 0).all()


def test_decode_undoes_encode():
    references, targets = random_boxes(2, 50), random_boxes(2, 50, seed=3)
    targets[..., 2:] += 5
    references[..., 2:] += 5
    deltas = encode_boxes(references, targets, delta_stds=STDS)
    torch.testing.assert_close(decode_boxes(references, deltas, delta_stds=STDS), targets, rtol=0, atol=1e-3)


@pytest.mark.parametrize("shared", [True, False])
def test_gathers(shared):
    references = random_boxes(*(() if shared else (2,)), 200)
    targets, deltas, several = random_boxes(2, 7, seed=3), random_deltas(2, 200), random_deltas(2, 200, 5)
    index, target_index = random_index(2, 300, high=200), random_index(2, 300, high=7)
    close = {"rtol": 1e-6, "atol": 1e-3}
    found = encode_boxes(references, targets, index=index, target_index=target_index, delta_stds=STDS)
    torch.testing.assert_close(found, reference.encode_boxes(references, targets, index, target_index, STDS), **close)
    found = encode_boxes(references, targets, target_index=random_index(2, 200, high=7))
    expected = reference.encode_boxes(references, targets, None, random_index(2, 200, high=7))
    torch.testing.assert_close(found, expected, **close)
    for moves in (deltas, several):
        found = decode_boxes(references, moves, index=index, sizes=SIZES)
        torch.testing.assert_close(found, reference.decode_boxes(references, moves, index, sizes=SIZES), **close)
        found = decode_boxes(references, moves, delta_stds=STDS)
        torch.testing.assert_close(found, reference.decode_boxes(references, moves, None, STDS), **close)


def test_one_image():
    references, targets, deltas = random_boxes(9), random_boxes(3, seed=3), random_deltas(9)
    index = torch.tensor([8, 0, 0, 5])
    found = encode_boxes(references, targets, index=index, target_index=index % 3)
    assert torch.equal(
        found, encode_boxes(references, targets[None], index=index[None], target_index=index[None] % 3)[0]
    )
    found = decode_boxes(references, deltas, index=index, sizes=SIZES[0])
    assert torch.equal(found, decode_boxes(references, deltas[None], index=index[None], sizes=SIZES[:1])[0])


def test_no_side_is_too_small_and_no_delta_too_large():
    box = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    grown = decode_boxes(box, torch.tensor([[0.0, 0.0, 1e4, math.inf]]))
    torch.testing.assert_close(grown[:, 2:] - grown[:, :2], torch.full((1, 2), 1000.0))
    assert encode_boxes(torch.zeros(1, 4), torch.zeros(1, 4)).tolist() == [[0.0] * 4]
    inverted = torch.tensor([[5.0, 5.0, 1.0, 1.0]])
    assert encode_boxes(inverted, box).isfinite().all() and encode_boxes(box, inverted).isfinite().all()


def test_nan_stays_in_its_box():
    deltas, references = random_deltas(1, 300), random_boxes(300)
    expected = decode_boxes(references, deltas, sizes=SIZES[:1])
    deltas[0, 129, 2], references[7, 0] = math.nan, math.nan
    found = decode_boxes(references, deltas, sizes=SIZES[:1])
    assert found[0, 129, [0, 2]].isnan().all() and found[0, 7, [0, 2]].isnan().all()
    same = [i for i in range(300) if i not in (7, 129)]
    assert torch.equal(found[:, same], expected[:, same])
    with_nan = encode_boxes(references, random_boxes(300, seed=4))
    assert with_nan[7].isnan().any() and with_nan[same].isfinite().all()


@pytest.mark.parametrize("shapes", [((0, 4), (2, 0, 4)), ((3, 4), (0, 3, 4)), ((3, 4), (2, 3, 0, 4))], ids=str)
def test_empty(shapes):
    references, deltas = torch.rand(shapes[0]), torch.rand(shapes[1], requires_grad=True)
    boxes = decode_boxes(references, deltas, sizes=torch.ones(len(deltas), 2))
    assert boxes.shape == deltas.shape
    boxes.sum().backward()
    assert deltas.grad.shape == deltas.shape
    if deltas.dim() == 3:
        assert encode_boxes(references, deltas.detach()).shape == deltas.shape


@pytest.mark.parametrize("clip", [False, True])
def test_gradcheck(clip):
    references = random_boxes(2, 6, dtype=torch.float64)
    deltas = random_deltas(2, 6, 2, dtype=torch.float64).requires_grad_()
    index = random_index(2, 5, high=6)
    sizes = SIZES.double() if clip else None
    for chosen in (None, index):
        assert torch.autograd.gradcheck(
            lambda x, chosen=chosen: decode_boxes(references, x, index=chosen, delta_stds=STDS, sizes=sizes), deltas
        )


def test_gradients_equal_those_of_the_twin():
    references, index = random_boxes(200), random_index(2, 300, high=200)
    for chosen in (None, index):
        gradients = []
        for function in (decode_boxes, reference.decode_boxes):
            deltas = random_deltas(2, 200).requires_grad_()
            boxes = function(references, deltas, index=chosen, delta_stds=STDS, sizes=SIZES)
            (boxes * torch.linspace(-1, 1, boxes.numel()).view_as(boxes)).sum().backward()
            gradients.append(deltas.grad)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
        assert gradients[0].any()


def decoded_with_gradient(references: Tensor, deltas: Tensor, index: Tensor | None, incoming: Tensor) -> Tensor:
    leaf = deltas.detach().clone().requires_grad_()
    boxes = decode_boxes(references, leaf, index=index, delta_stds=STDS, sizes=SIZES.to(deltas.device))
    return torch.autograd.grad(boxes, leaf, incoming)[0]


@pytest.mark.parametrize("classes", [1, 3])
def test_the_gradient_of_a_row_is_the_sum_over_its_slots_in_their_order(classes):
    """Bit for bit, for any number of threads: as if the incoming gradients had been added up one after the other."""
    references, deltas = random_boxes(300), random_deltas(2, 300, classes)
    index = random_index(2, 4000, high=100) * 3  # each row some 40 times, two of three never
    incoming = torch.randn(2, 4000, classes, 4, generator=torch.Generator().manual_seed(4))
    sums = torch.zeros_like(deltas)
    for image in range(2):
        for slot, row in enumerate(index[image].tolist()):
            sums[image, row] += incoming[image, slot]
    expected = decoded_with_gradient(references, deltas, None, sums)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(decoded_with_gradient(references, deltas, index, incoming), expected)
    finally:
        torch.set_num_threads(threads)


def test_a_row_that_no_slot_has_gets_no_gradient_whatever_it_holds():
    references, deltas, index = random_boxes(9), random_deltas(2, 9), torch.tensor([[4, 4, 2], [2, 4, 4]])
    references[3], deltas[0, 7], references[4, 0] = math.nan, math.inf, math.nan
    gradient = decoded_with_gradient(references, deltas, index, torch.ones(2, 3, 4))
    assert not gradient[:, [0, 1, 3, 5, 6, 7, 8]].any()
    assert gradient[:, 4].isnan().any() and gradient[:, 2].isfinite().all()


def test_an_index_of_no_slots():
    leaf = random_deltas(2, 300).requires_grad_()
    boxes = decode_boxes(random_boxes(300), leaf, index=torch.zeros(2, 0, dtype=torch.int64))
    assert boxes.shape == (2, 0, 4)
    assert torch.equal(torch.autograd.grad(boxes.sum(), leaf)[0], torch.zeros(2, 300, 4))


@pytest.mark.parametrize("with_index", [False, True])
def test_differentiable_once(with_index):
    deltas, index = random_deltas(1, 3).requires_grad_(), torch.tensor([[2, 2]]) if with_index else None
    (gradient,) = torch.autograd.grad(
        decode_boxes(random_boxes(3), deltas, index=index).sum(), deltas, create_graph=True
    )
    with pytest.raises(RuntimeError, match="decode_boxes: differentiable once"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    references, deltas = random_boxes(5).to(dtype), random_deltas(2, 5).to(dtype).requires_grad_()
    boxes = decode_boxes(references, deltas)
    assert boxes.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = reference.decode_boxes(references.to(boxes.dtype), deltas.to(boxes.dtype))
    torch.testing.assert_close(boxes, expected, rtol=1e-6, atol=1e-3)
    boxes.sum().backward()
    assert deltas.grad.dtype == dtype


def test_not_contiguous_or_not_aligned():
    references, deltas = random_boxes(9), random_deltas(2, 9)
    expected = decode_boxes(references, deltas)
    shifted = torch.cat([torch.zeros(1), references.flatten()])[1:].view(9, 4)
    assert torch.equal(decode_boxes(shifted, deltas.permute(2, 1, 0).contiguous().permute(2, 1, 0)), expected)


def test_independent_of_threads():
    references, deltas = random_boxes(20_000), random_deltas(3, 20_000)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(decode_boxes(references, deltas))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results[1:])


def test_opcheck():
    ops, stds, index = torch.ops.libra_ops, list(STDS), random_index(2, 3, high=5)
    references, deltas = random_boxes(5), random_deltas(2, 5, 2)
    torch.library.opcheck(ops.encode_boxes, (references, random_boxes(2, 4), index, index % 4, stds))
    torch.library.opcheck(ops.decode_boxes, (references, deltas, index, stds, SIZES))
    torch.library.opcheck(ops.decode_boxes, (references, deltas.clone().requires_grad_(), None, stds, SIZES))
    torch.library.opcheck(ops.decode_boxes, (references, deltas.clone().requires_grad_(), index, stds, None))
    rising = index.sort(dim=1).values
    for slots, chosen in ((5, None), (3, rising)):
        arguments = (torch.rand(2, slots, 2, 4), references, deltas, chosen, stds, None)
        torch.library.opcheck(ops.decode_boxes_backward, arguments)


def test_compile_and_fake_tensors():
    def loss(references: Tensor, deltas: Tensor, index: Tensor) -> Tensor:
        boxes = decode_boxes(references, deltas, index=index, delta_stds=STDS, sizes=SIZES)
        return boxes.sum() + encode_boxes(references, boxes.detach(), index=index).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (loss, compiled):
        deltas = random_deltas(2, 9).requires_grad_()
        value = function(random_boxes(9), deltas, random_index(2, 4, high=9))
        gradients.append((value.detach(), *torch.autograd.grad(value, deltas)))
    torch.testing.assert_close(*gradients)
    with FakeTensorMode():
        deltas = torch.rand(3, 9, 5, 4, requires_grad=True)
        boxes = decode_boxes(torch.rand(9, 4), deltas, index=torch.zeros(3, 4, dtype=torch.int64))
        assert boxes.shape == (3, 4, 5, 4)
        assert torch.autograd.grad(boxes.sum(), deltas)[0].shape == deltas.shape


def test_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        raw = torch.ops.libra_ops.decode_boxes(random_boxes(3), random_deltas(1, 3, 1).bfloat16(), None, STDS, None)
    assert raw.dtype == torch.float32


BOXES, DELTAS, INDEX = torch.ones(3, 4), torch.ones(2, 3, 4), torch.zeros(2, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (decode_boxes, (BOXES, [1.0]), {}, TypeError, "deltas: expected a torch.Tensor, got list"),
        (decode_boxes, (BOXES.long(), DELTAS), {}, TypeError, "references: expected a floating dtype"),
        (decode_boxes, (BOXES[:2], DELTAS), {}, ValueError, r"references: expected 3 rows like deltas, got .*\[2, 4\]"),
        (decode_boxes, (DELTAS[:1], DELTAS), {}, ValueError, "deltas: expected 1 images like references"),
        (decode_boxes, (DELTAS, BOXES), {}, ValueError, "deltas: expected 2 images like references"),
        (decode_boxes, (BOXES, DELTAS), {"index": INDEX[0]}, ValueError, r"index: expected shape \[2, S\], got int64"),
        (decode_boxes, (BOXES, DELTAS), {"index": INDEX.int()}, TypeError, "index: expected dtype int64"),
        (decode_boxes, (BOXES, DELTAS), {"sizes": SIZES[0]}, ValueError, r"sizes: expected shape \[2, 2\]"),
        (decode_boxes, (BOXES, DELTAS), {"sizes": SIZES > 0}, TypeError, "sizes: expected a floating or integer"),
        (decode_boxes, (BOXES, DELTAS), {"delta_stds": (1.0, 1.0)}, ValueError, "delta_stds: expected 4 numbers > 0"),
        (decode_boxes, (BOXES, DELTAS), {"delta_stds": BOXES[0]}, TypeError, "delta_stds: expected 4 numbers, got Ten"),
        (decode_boxes, (BOXES.clone().requires_grad_(), DELTAS), {}, ValueError, "references: expected a tensor with"),
        (encode_boxes, (BOXES, DELTAS[:, :2]), {}, ValueError, r"targets: expected as many slots as references \(3\)"),
        (encode_boxes, (BOXES, DELTAS), {"index": INDEX}, ValueError, r"targets: expected as many .* \(5\), got 3"),
        (encode_boxes, (BOXES, DELTAS.clone().requires_grad_()), {}, ValueError, "targets: expected a tensor without"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)


@pytest.mark.parametrize(
    "number", [0, -1.0, math.nan, math.inf, 1e39, 3.4028236e38, 2.0**-150, pytest.param(10**400, id="huge")]
)
@pytest.mark.parametrize("function", [decode_boxes, encode_boxes])
def test_delta_stds_are_within_the_range_of_float32(function, number):
    """Of float64 boxes too: a number that is 0 or infinite in float32 is no deviation."""
    for dtype in (torch.float32, torch.float64):
        expected = r"delta_stds: expected 4 numbers > 0 within float32's range, got (\(1, 1, |a value of type tuple)"
        with pytest.raises(ValueError, match=expected):
            function(BOXES.to(dtype), DELTAS.to(dtype), delta_stds=(1, 1, number, 1))
    with pytest.raises(TypeError, match="delta_stds: expected a number, got str"):
        function(BOXES, DELTAS, delta_stds=(1, 1, "1", 1))
    for accepted in (3.4028234e38, 1e-44):
        function(BOXES, DELTAS, delta_stds=(1, 1, accepted, 1))


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("position", [-1, -3, 3, 5_000_000, 2**40])
def test_an_index_out_of_range_is_an_error(position, with_gradient):
    index = torch.full((2, 5), 1).index_fill(1, torch.tensor([4]), position)
    deltas = DELTAS.clone().requires_grad_(with_gradient)
    with pytest.raises(RuntimeError, match="decode_boxes: index out of range"):
        decode_boxes(BOXES, deltas, index=index)
    with pytest.raises(RuntimeError, match="encode_boxes: index out of range"):
        encode_boxes(BOXES, DELTAS, index=index, target_index=index)


def test_forward_mode_is_an_error_and_not_a_missing_tangent():
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(DELTAS, torch.ones_like(DELTAS))
        with pytest.raises(NotImplementedError, match="deltas: expected a tensor without a tangent"):
            decode_boxes(BOXES, dual)


def test_the_operators_check_too():
    ops = torch.ops.libra_ops
    with pytest.raises(RuntimeError, match="deltas: expected 4 dimensions"):
        ops.decode_boxes(BOXES, DELTAS, None, STDS, None)
    with pytest.raises(RuntimeError, match="references: expected size 3 in dimension 0, got 2"):
        ops.decode_boxes(BOXES[:2], DELTAS[:, :, None], None, STDS, None)
    with pytest.raises(RuntimeError, match="delta_stds: expected 4 numbers, got 1"):
        ops.decode_boxes(BOXES, DELTAS[:, :, None], None, [1.0], None)
    with pytest.raises(RuntimeError, match="grad: expected size 5 in dimension 1, got 3"):
        ops.decode_boxes_backward(DELTAS[:, :, None], BOXES, DELTAS[:, :, None], INDEX, STDS, None)
    with pytest.raises(RuntimeError, match="targets: expected 3 slots like references, got 2"):
        ops.encode_boxes(BOXES, DELTAS[:, :2], None, None, STDS)


@pytest.mark.cuda
def test_cuda_equals_the_cpu():
    """Bit for bit: the exponential and the logarithm are the same code, without fused multiply-adds."""
    references, deltas, targets = random_boxes(2, 700), random_deltas(2, 700, 3), random_boxes(2, 9, seed=3)
    index, target_index = random_index(2, 500, high=700), random_index(2, 500, high=9)
    expected = decode_boxes(references, deltas, index=index, delta_stds=STDS, sizes=SIZES)
    found = decode_boxes(references.cuda(), deltas.cuda(), index=index.cuda(), delta_stds=STDS, sizes=SIZES.cuda())
    assert torch.equal(found.cpu(), expected)
    expected = encode_boxes(references, targets, index=index, target_index=target_index)
    found = encode_boxes(references.cuda(), targets.cuda(), index=index.cuda(), target_index=target_index.cuda())
    assert torch.equal(found.cpu(), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("position", [-1, 700, 5_000_000])
def test_cuda_an_index_out_of_range_gives_nan(position, with_gradient):
    references, index = random_boxes(700).cuda(), random_index(2, 500, high=700)
    deltas = random_deltas(2, 700).cuda().requires_grad_(with_gradient)
    expected = decode_boxes(references, deltas.detach(), index=index.cuda())
    index[:, 3::7] = position
    found = decode_boxes(references, deltas, index=index.cuda())
    inside = (index != position).cuda()
    assert found[~inside].isnan().all() and torch.equal(found[inside], expected[inside])
    if with_gradient:  # which those slots have no part in
        incoming = torch.randn(2, 500, 4, generator=torch.Generator().manual_seed(4)).cuda()
        (gradient,) = torch.autograd.grad(found, deltas, incoming)
        leaf, index = deltas.detach().requires_grad_(), index.where(inside.cpu(), 0).cuda()
        incoming = incoming.where(inside[..., None], 0.0)
        (expected,) = torch.autograd.grad(decode_boxes(references, leaf, index=index), leaf, incoming)
        assert torch.equal(gradient, expected)


@pytest.mark.cuda
def test_cuda_the_gradient_is_deterministic():
    """And the CPU's, bit for bit: the slots of a row are added up in their order."""
    references, deltas, index = random_boxes(700), random_deltas(2, 700, 3), random_index(2, 9000, high=300)
    incoming = torch.randn(2, 9000, 3, 4, generator=torch.Generator().manual_seed(4))
    expected = decoded_with_gradient(references, deltas, index, incoming)
    for _ in range(3):
        found = decoded_with_gradient(*(x.cuda() for x in (references, deltas, index, incoming)))
        assert torch.equal(found.cpu(), expected)
