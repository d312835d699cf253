"""multiscale_roi_align: equal to torchvision level by level, to its twin, and to what its docstring says."""

import pytest
import torch
import torchvision
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from libra_ops import multiscale_roi_align, reference

STRIDES = (4, 8, 16, 32)
NAN, INFINITY = float("nan"), float("inf")


def pyramid(
    channels: int = 5, channels_last: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    """Maps of two images of 148 x 160 pixels."""
    generator = torch.Generator().manual_seed(seed)
    maps = [
        torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64).to(dtype)
        for height, width in ((37, 40), (19, 20), (10, 10), (5, 5))
    ]
    return [x.to(memory_format=torch.channels_last) if channels_last else x for x in maps]


def some_boxes(count: int = 30, dtype: torch.dtype = torch.float32) -> Tensor:
    """[2, count, 4] of all levels, some partly or wholly outside, one without area, one inverted."""
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(2, count, 2, generator=generator) * 260 - 60
    boxes = torch.cat((corner, corner + torch.rand(2, count, 2, generator=generator) ** 2 * 500), -1)
    boxes[:, 0] = torch.tensor([8.0, 8, 8, 40])
    boxes[:, 1] = torch.tensor([50.0, 60, 10, 20])
    boxes[:, 2] = 1000
    return boxes.to(dtype)


def levels_of(boxes: Tensor, levels: int = 4) -> Tensor:
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return (sides.prod(-1).sqrt() / 56 + 1e-6).log2().floor().clamp(0, levels - 1).long()


def torchvisions(features: list[Tensor], boxes: Tensor, valid: Tensor | None = None, **options) -> Tensor:
    """Each box by torchvision's kernel on the map of its level."""
    ratio, size = options["sampling_ratio"], options.get("output_size", 7)
    levels = levels_of(boxes)
    pooled = []
    for image, slot in levels.new_ones(levels.shape).nonzero().tolist():
        level = int(levels[image, slot])
        roi = torch.cat((boxes.new_tensor([image]), boxes[image, slot]))[None].to(features[0].dtype)
        pooled.append(torchvision.ops.roi_align(features[level], roi, size, 1 / STRIDES[level], ratio, True)[0])
    pooled = torch.stack(pooled).unflatten(0, levels.shape)
    return pooled if valid is None else torch.where(valid[..., None, None, None], pooled, 0)


def pool(features: list[Tensor], boxes: Tensor, valid: Tensor | None = None, **options) -> Tensor:
    return multiscale_roi_align(features, boxes, valid, strides=STRIDES, **{"sampling_ratio": 0, **options})


def gradients(function, features: list[Tensor], *arguments, seed: int = 3, **options) -> tuple[Tensor, list[Tensor]]:
    """The result, and the features' gradients for a random incoming one."""
    leaves = [x.detach().requires_grad_() for x in features]
    pooled = function(leaves, *arguments, **options)
    incoming = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(seed)).to(pooled.dtype)
    return pooled.detach(), list(torch.autograd.grad(pooled, leaves, incoming, materialize_grads=True))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("channels", [5, 32, 70])  # less than a block of channels, one, and no multiple of one
def test_equals_torchvision(channels_last, sampling_ratio, channels):
    features, boxes = pyramid(channels, channels_last), some_boxes()
    assert levels_of(boxes).unique().tolist() == [0, 1, 2, 3]
    valid = torch.rand(2, 30, generator=torch.Generator().manual_seed(2)) < 0.8
    pooled, grads = gradients(pool, features, boxes, valid, sampling_ratio=sampling_ratio)
    expected, expected_grads = gradients(torchvisions, features, boxes, valid, sampling_ratio=sampling_ratio)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    for got, wanted, x in zip(grads, expected_grads, features, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        assert got.stride() == x.stride()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(channels_last, dtype):
    """Sums of 16-bit features are those of float32, rounded once."""
    features, boxes = pyramid(33, channels_last, dtype), some_boxes()
    pooled, grads = gradients(pool, features, boxes, sampling_ratio=0)
    assert pooled.dtype == dtype and all(x.dtype == dtype for x in grads)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected, expected_grads = gradients(torchvisions, [x.to(wide) for x in features], boxes, sampling_ratio=0)
    if dtype != torch.float64:
        rounded = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(3)).to(dtype).to(wide)
        leaves = [x.to(wide).requires_grad_() for x in features]
        expected_grads = torch.autograd.grad(torchvisions(leaves, boxes, sampling_ratio=0), leaves, rounded)
        assert torch.equal(pooled, pool([x.to(wide) for x in features], boxes).to(dtype))
    torch.testing.assert_close(pooled, expected.to(dtype))
    for got, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, wanted.to(dtype))


@pytest.mark.parametrize("options", [{"output_size": 1}, {"output_size": 3, "sampling_ratio": 5}, {"output_size": 14}])
def test_output_sizes(options):
    features, boxes = pyramid(), some_boxes()
    options = {"sampling_ratio": 0, **options}
    pooled, grads = gradients(pool, features, boxes, **options)
    expected, expected_grads = gradients(torchvisions, features, boxes, **options)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_equals_the_twin(sampling_ratio):
    features, boxes = pyramid(3, dtype=torch.float64), some_boxes(12)
    valid = torch.arange(12).expand(2, -1) != 7
    options = {"strides": STRIDES, "sampling_ratio": sampling_ratio, "finest_scale": 40.0, "output_size": 5}
    pooled, grads = gradients(multiscale_roi_align, features, boxes, valid, **options)
    expected, expected_grads = gradients(reference.multiscale_roi_align, features, boxes, valid, **options)
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(grads, expected_grads)


def test_gradcheck():
    features = [x[:, :2, :6, :7].requires_grad_() for x in pyramid(dtype=torch.float64)[:2]]
    boxes = torch.tensor([[[1.0, 2, 20, 17]], [[-3, 0, 9, 30]]])
    torch.autograd.gradcheck(
        lambda *x: multiscale_roi_align(x, boxes, strides=(4, 8), output_size=2, sampling_ratio=0, finest_scale=8.0),
        features,
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_slots_without_a_box_touch_nothing(channels_last):
    """Neither what such a slot holds nor its incoming gradient is looked at."""
    features, boxes = pyramid(channels_last=channels_last), some_boxes(3)
    valid = torch.tensor([[True, False, True], [False, False, False]])
    spoiled = boxes.masked_fill(~valid[..., None], NAN)
    leaves = [x.requires_grad_() for x in features]
    pooled = pool(leaves, spoiled, valid)
    assert torch.equal(pooled, torch.where(valid[..., None, None, None], pool(features, boxes), 0))
    incoming = torch.ones_like(pooled)
    expected = torch.autograd.grad(pooled, leaves, incoming, retain_graph=True)
    incoming[~valid] = NAN
    for got, wanted in zip(torch.autograd.grad(pooled, leaves, incoming), expected, strict=True):
        assert torch.equal(got, wanted) and not got[1].any()


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 64])
def test_boxes_that_are_not_finite_or_huge(sampling_ratio):
    features = pyramid()
    odd = torch.tensor([[0, 0, NAN, 8], [NAN] * 4, [0, -INFINITY, 4, INFINITY]]).expand(2, -1, -1)
    origin = pool(features, torch.zeros(2, 3, 4), sampling_ratio=sampling_ratio)
    assert torch.equal(pool(features, odd, sampling_ratio=sampling_ratio), origin)
    huge = torch.tensor([[0, 0, 1e30, 1e30], [-3e38, -3e38, 3e38, 3e38], [0, 0, 1e30, 8], [1e30, 0, 2e30, 5]])
    boxes = torch.cat((odd, huge.expand(2, -1, -1), some_boxes(4)), 1)
    pooled, grads = gradients(pool, features, boxes, sampling_ratio=sampling_ratio)
    assert pooled.isfinite().all() and all(x.isfinite().all() for x in grads)
    assert pooled[:, 3:7].abs().max() < 1e-3 or sampling_ratio
    torch.testing.assert_close(pooled[:, 7:], pool(features, some_boxes(4), sampling_ratio=sampling_ratio))


def test_nan_in_a_feature_stays_in_the_cells_that_read_it():
    features, boxes = pyramid(), torch.tensor([[[4.0, 4, 60, 60], [80, 80, 120, 120]]]).expand(2, -1, -1)
    expected = pool(features, boxes)
    features[0][0, 2, 2, 2] = NAN
    pooled = pool(features, boxes)
    spoiled = pooled.isnan()
    assert spoiled[0, 0, 2, 0, 0] and spoiled.sum() <= 4
    assert torch.equal(pooled[~spoiled], expected[~spoiled])


@pytest.mark.parametrize(("batch", "slots", "channels"), [(2, 0, 3), (0, 4, 3), (2, 4, 0)])
def test_empty(batch, slots, channels):
    features = [torch.randn(batch, channels, size, size, requires_grad=True) for size in (8, 4, 2, 1)]
    pooled = pool(features, torch.rand(batch, slots, 4) * 30)
    assert pooled.shape == (batch, slots, channels, 7, 7)
    pooled.sum().backward()
    assert all(x.grad.shape == x.shape and not x.grad.any() for x in features)


def test_one_cell_and_eight_levels():
    features = [torch.full((1, 1, 1, 1), float(level)) for level in range(8)]
    boxes = torch.tensor([[[0.0, 0, 2 * 2**level, 2 * 2**level] for level in range(9)]])
    pooled = multiscale_roi_align(
        features, boxes, strides=[2**level for level in range(8)], sampling_ratio=2, output_size=1, finest_scale=2
    )
    assert pooled.flatten().tolist() == [*range(8), 7 / 4]  # of the last box, one point of four is near


def test_layouts():
    """Slices and transposes of maps are read as they lie, or copied; the boxes may lie anyhow."""
    features, boxes = pyramid(8), some_boxes()
    expected, expected_grads = gradients(pool, features, boxes)
    layouts = {
        "sliced columns": lambda x: torch.stack((x, -x), -1).flatten(3)[..., ::2],
        "sliced rows": lambda x: torch.cat((x, x), 2)[:, :, : x.shape[2]],
        "sliced channels": lambda x: torch.cat((x, x), 1).to(memory_format=torch.channels_last)[:, : x.shape[1]],
        "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        "shifted": lambda x: torch.cat((torch.zeros(1), x.flatten()))[1:].view(x.shape),
        "expanded": lambda x: x[:1].expand(x.shape),
    }
    for name, layout in layouts.items():
        maps = [layout(x) for x in features]
        if name == "expanded":
            assert torch.equal(pool(maps, boxes)[0], expected[0])
            continue
        pooled, grads = gradients(pool, maps, boxes.transpose(1, 2).contiguous().transpose(1, 2))
        torch.testing.assert_close(pooled, expected)
        torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_nothing(channels_last, dtype):
    features, boxes = pyramid(70, channels_last, dtype), some_boxes(100)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(gradients(pool, features, boxes))
    finally:
        torch.set_num_threads(threads)
    for pooled, grads in results[1:]:
        assert torch.equal(pooled, results[0][0])
        assert all(torch.equal(a, b) for a, b in zip(grads, results[0][1], strict=True))


def test_ten_thousand_boxes():
    features = pyramid(3)
    boxes = some_boxes(5000)
    pooled, grads = gradients(pool, features, boxes)
    assert torch.equal(pooled[:, 4990:], pool(features, boxes[:, 4990:]))
    assert all(x.isfinite().all() for x in grads)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_only_some_maps_need_a_gradient(channels_last, compiled):
    features, boxes = pyramid(channels_last=channels_last), some_boxes()
    _, expected = gradients(pool, features, boxes)
    function = torch.compile(pool, fullgraph=True, backend="aot_eager") if compiled else pool
    for needed in ([1], [0, 3]):
        leaves = [x.detach().requires_grad_(level in needed) for level, x in enumerate(features)]
        pooled = function(leaves, boxes)
        incoming = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(3))
        pooled.backward(incoming)
        assert [level for level, x in enumerate(leaves) if x.grad is not None] == needed
        assert all(torch.equal(leaves[level].grad, expected[level]) for level in needed)
    with torch.no_grad():
        assert not pool(features, boxes).requires_grad


def test_features_are_not_kept_for_the_backward_pass():
    kept = []
    features, boxes, valid = [x.requires_grad_() for x in pyramid()], some_boxes(), torch.ones(2, 30, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        pool(features, boxes, valid)
    assert sum(x.numel() * x.element_size() for x in kept) == 2 * 30 * (4 * 4 + 1)


@pytest.mark.parametrize("channels_last", [False, True])
def test_features_may_be_changed_in_place(channels_last):
    features, boxes = pyramid(channels_last=channels_last), some_boxes()
    _, expected = gradients(pool, features, boxes)
    leaves = [x.clone().requires_grad_() for x in features]
    maps = [x * 1 for x in leaves]
    pooled = pool(maps, boxes)
    for x in maps:
        x.add_(1)
    incoming = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(3))
    found = torch.autograd.grad(pooled, leaves, incoming)
    assert all(torch.equal(got, wanted) for got, wanted in zip(found, expected, strict=True))


def test_differentiable_once():
    features, boxes = [x.requires_grad_() for x in pyramid()], some_boxes()
    pooled = pool(features, boxes)
    (grad,) = torch.autograd.grad((pooled**2).sum(), features[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="multiscale_roi_align: differentiable once"):
        grad.sum().backward()


def test_forward_mode_is_an_error():
    features, boxes = pyramid(), some_boxes()
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(features[0], torch.ones_like(features[0])), *features[1:]]
        with pytest.raises(NotImplementedError, match="features: expected a tensor without a tangent"):
            pool(dual, boxes)


def test_autocast_leaves_the_dtype_to_the_features():
    features, boxes = pyramid(), some_boxes()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pool(features, boxes), pool(features, boxes))
        assert pool([x.bfloat16() for x in features], boxes).dtype == torch.bfloat16


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(channels_last):
    features = [x.requires_grad_() for x in pyramid(3, channels_last)[:2]]
    valid = torch.ones(2, 30, dtype=torch.bool)
    torch.library.opcheck(
        torch.ops.libra_ops.multiscale_roi_align, (features, some_boxes(), valid, [4.0, 8.0], 3, 0, 56.0)
    )
    grad = torch.randn(2, 30, 3, 3, 3)
    for wanted in ([True, True], [False, True]):
        torch.library.opcheck(
            torch.ops.libra_ops.multiscale_roi_align_backward,
            (grad, some_boxes(), None, [37, 19], [40, 20], [channels_last] * 2, wanted, [4.0, 8.0], 3, 2, 56.0),
        )


@pytest.mark.parametrize("channels_last", [False, True])
def test_compile(channels_last):
    features, boxes = pyramid(3, channels_last), some_boxes()
    valid = torch.arange(30).expand(2, -1) < 25
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    got, expected = (gradients(function, features, boxes, valid) for function in (compiled, pool))
    torch.testing.assert_close(got, expected)
    assert [x.stride() for x in got[1]] == [x.stride() for x in features]


def test_fake_and_meta_tensors():
    with FakeTensorMode():
        features = [torch.empty(2, 256, 800 // stride, 1344 // stride, requires_grad=True) for stride in STRIDES]
        pooled = pool(features, torch.empty(2, 512, 4), torch.ones(2, 512, dtype=torch.bool))
        assert pooled.shape == (2, 512, 256, 7, 7)
        pooled.sum().backward()
        assert features[0].grad.shape == features[0].shape
    assert pool([x.to("meta") for x in pyramid()], some_boxes().to("meta")).shape == (2, 30, 5, 7, 7)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.ones(2, 5, 8, 8)}, TypeError, "features: expected a sequence of maps .* got Tensor"),
        ({"features": []}, ValueError, "features: expected 1 to 8 maps, got 0"),
        ({"features": [torch.ones(2, 5, 8, 8)] * 9}, ValueError, "features: expected 1 to 8 maps, got 9"),
        ({"features": [torch.ones(2, 5, 8, 8).int()] * 4}, TypeError, "features: expected a floating dtype"),
        ({"features": [torch.ones(2, 5, 8)] * 4}, ValueError, r"features: expected maps \[B, C, H, W\]"),
        ({"features": [torch.ones(2, 5, 0, 8)] * 4}, ValueError, "features: .* at least one cell"),
        ({"features": [torch.ones(2, 5, 8, 8)] * 3 + [torch.ones(2, 6, 8, 8)]}, ValueError, "features: .* as number 3"),
        ({"features": [torch.ones(2, 5, 8, 8)] * 3 + [torch.ones(2, 5, 8, 8).half()]}, ValueError, "one dtype"),
        ({"boxes": torch.ones(60, 4)}, ValueError, r"boxes: expected xyxy boxes of shape \[B, S, 4\]"),
        ({"boxes": torch.ones(3, 30, 4)}, ValueError, "boxes: .* for the B = 2 images"),
        ({"boxes": torch.ones(2, 30, 4).long()}, TypeError, "boxes: expected a floating dtype"),
        ({"valid": torch.ones(2, 30)}, TypeError, "valid: expected dtype bool"),
        ({"valid": torch.ones(2, 31, dtype=torch.bool)}, ValueError, r"valid: expected shape \[2, 30\]"),
        ({"strides": (4, 8)}, ValueError, "strides: expected 4 numbers, one for each map, got 2"),
        ({"strides": (4, 8, 16, 0)}, ValueError, "strides: expected a finite number > 0"),
        ({"strides": 4}, TypeError, "strides: expected a sequence of numbers, got int"),
        ({"output_size": 0}, ValueError, "output_size: expected an int >= 1 and <= 64"),
        ({"sampling_ratio": -1}, ValueError, "sampling_ratio: expected an int >= 0"),
        ({"sampling_ratio": 2.0}, TypeError, "sampling_ratio: expected an int"),
        ({"finest_scale": 0}, ValueError, "finest_scale: expected a finite number > 0"),
        ({"boxes": torch.ones(2, 30, 4, device="meta")}, ValueError, "boxes: expected on cpu"),
    ],
    ids=str,
)
def test_errors_name_the_argument(change, error, message):
    arguments = {"features": pyramid(), "boxes": some_boxes(), "strides": STRIDES, "sampling_ratio": 0} | change
    with pytest.raises(error, match=message):
        multiscale_roi_align(**arguments)


def test_the_operator_checks_too():
    """Whoever passes by the Python door gets an error, not a crash."""
    op = torch.ops.libra_ops.multiscale_roi_align
    features, boxes = pyramid()[:2], some_boxes()
    with pytest.raises(RuntimeError, match="boxes: expected dtype"):
        op(features, boxes.double(), None, [4.0, 8.0], 7, 0, 56.0)
    with pytest.raises(RuntimeError, match="strides: expected 2 numbers, got 1"):
        op(features, boxes, None, [4.0], 7, 0, 56.0)
    with pytest.raises(RuntimeError, match="features: expected size 5 in dimension 1, got 4"):
        op([features[0], features[1][:, :4]], boxes, None, [4.0, 8.0], 7, 0, 56.0)
    backward = torch.ops.libra_ops.multiscale_roi_align_backward
    grad, maps, rest = torch.ones(2, 30, 5, 7, 7), ([37, 19], [40, 20], [False] * 2), ([4.0, 8.0], 7, 0, 56.0)
    with pytest.raises(RuntimeError, match="grad: expected size 7 in dimension 4, got 6"):
        backward(grad[..., :6], boxes, None, *maps, [True] * 2, *rest)
    with pytest.raises(RuntimeError, match="wanted: expected 2, got 1"):
        backward(grad, boxes, None, *maps, [True], *rest)
    with pytest.raises(RuntimeError, match="heights, widths: expected maps of 1 to 1048575 cells a side, got 37 x 0"):
        backward(grad, boxes, None, maps[0], [0, 20], maps[2], [True] * 2, *rest)


@pytest.mark.cuda
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_cuda_equals_the_cpu(channels_last, dtype, sampling_ratio):
    features, boxes = pyramid(70, channels_last, dtype), some_boxes(100)
    boxes[0, 5] = NAN
    valid = torch.arange(100).expand(2, -1) < torch.tensor([[100], [60]])
    expected = gradients(pool, features, boxes, valid, sampling_ratio=sampling_ratio)
    on_gpu = [x.cuda() for x in features]

    def run() -> tuple[Tensor, list[Tensor]]:
        leaves = [x.detach().requires_grad_() for x in on_gpu]
        pooled = pool(leaves, boxes.cuda(), valid.cuda(), sampling_ratio=sampling_ratio)
        incoming = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
        return pooled.detach(), list(torch.autograd.grad(pooled, leaves, incoming.cuda()))

    pooled, grads = run()
    tolerance = (
        {"rtol": 1e-2, "atol": 1e-2} if dtype in (torch.float16, torch.bfloat16) else {"rtol": 1e-4, "atol": 1e-4}
    )
    torch.testing.assert_close(pooled.cpu(), expected[0], **tolerance)
    for got, wanted, x in zip(grads, expected[1], features, strict=True):
        torch.testing.assert_close(got.cpu(), wanted, **tolerance)
        assert got.stride() == x.stride()
    again = run()
    assert torch.equal(again[0], pooled) and all(torch.equal(a, b) for a, b in zip(again[1], grads, strict=True))
