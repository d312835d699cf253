"""A small run of every operation on the GPU, for compute-sanitizer, with each result compared with the CPU's.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 python -m benchmarks.sanitize

Without torch's caching of memory every tensor is an allocation of its own, so that a step beyond it, or a read of what
nobody wrote, is noticed. Sizes cross the kernels' tiles, chunks and blocks, and are no multiples of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from libra_ops import (
    balanced_l1_loss,
    box_iou,
    box_regression_loss,
    decode_boxes,
    encode_boxes,
    integrate_pyramid,
    match_boxes,
    multiscale_roi_align,
    nms_padded,
    sample_iou_balanced,
    scatter_pyramid,
    sigmoid_focal_loss,
    topk_per_level,
)

KINDS = ("iou", "iof", "giou", "diou", "ciou")


def boxes(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[*shape, 4] within 100 x 100 pixels."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, 2, generator=generator, dtype=dtype) * 100
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


def overlaps(kind: str, dtype: torch.dtype, n: int, m: int) -> Callable[[str], tuple[Tensor, ...]]:
    def run(device: str) -> tuple[Tensor, ...]:
        one, other = (
            boxes(2, count, seed=seed, dtype=dtype).to(device).requires_grad_() for seed, count in enumerate((n, m))
        )
        found = box_iou(one, other, kind)
        return found.detach(), *torch.autograd.grad(found.sum(), (one, other))

    return run


def matched(n: int, g: int, shared: bool, crowd: bool) -> Callable[[str], tuple[Tensor, ...]]:
    def run(device: str) -> tuple[Tensor, ...]:
        candidates = boxes(n, seed=0) if shared else boxes(2, n, seed=0)
        candidates.view(-1, 4)[:2] = torch.tensor([[-1e30, 0, 1e30, 50], [0, 0, torch.nan, 1]])  # huge, and not finite
        targets = boxes(2, g, seed=1)
        valid = torch.arange(g).expand(2, g) < torch.tensor([[g], [g - 1]])
        regions = boxes(2, 3, seed=2).to(device) if crowd else None
        rules = {"positive_iou": 0.5, "negative_iou": 0.3, "min_positive_iou": 0.2, "crowd": regions}
        return tuple(match_boxes(candidates.to(device), targets.to(device), valid.to(device), **rules))

    return run


def suppressed(n: int, groups: int, max_output: int) -> Callable[[str], tuple[Tensor, ...]]:
    def run(device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        candidates = boxes(3, n, seed=3)
        candidates[0, n // 2] = torch.nan
        scores = (torch.rand(3, n, generator=generator) * 500).round() / 500  # with ties
        group = torch.randint(groups, (3, n), generator=generator) - groups // 2
        valid = torch.rand(3, n, generator=generator) < 0.9
        rules = {"iou_threshold": 0.6, "max_output": max_output, "score_threshold": 0.05, "valid": valid.to(device)}
        return tuple(nms_padded(candidates.to(device), scores.to(device), group.to(device), **rules))

    return run


def sampled(n: int, first_target: int = 0, **options) -> Callable[[str], tuple[Tensor, ...]]:
    def run(device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        iou = torch.rand(3, n, generator=generator) ** 3
        index = torch.randint(first_target, first_target + 7, (3, n), generator=generator)
        state = torch.where(iou >= 0.6, 1, torch.where(iou < 0.5, 0, -1)).to(torch.int8)
        matches = tuple(value.to(device) for value in (index, iou, state))
        return tuple(sample_iou_balanced(matches, generator=torch.Generator().manual_seed(1), **options))

    return run


def loss(
    dtype: torch.dtype, count: int, reduction: str, formula: str, unaligned: bool = False
) -> Callable[[str], tuple[Tensor, ...]]:
    """A weight for each box; what it masks is not a number. unaligned: memory begins beside a multiple of 16 bytes."""

    def run(device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        first = int(unaligned)
        pred, target = (
            torch.randn(first + 4 * count, generator=generator, dtype=dtype).to(device)[first:].view(count, 4)
            for _ in range(2)
        )
        weight = (torch.rand(count, 1, generator=generator) < 0.7).to(device, dtype)
        pred.masked_fill_(weight == 0, torch.nan)
        pred.requires_grad_()
        value = balanced_l1_loss(pred, target, weight, beta=0.5, reduction=reduction, formula=formula)
        return value.detach(), *torch.autograd.grad(value.sum(), pred)

    return run


def pooled(
    dtype: torch.dtype, channels: int, channels_last: bool, sampling_ratio: int, output_size: int
) -> Callable[[str], tuple[Tensor, ...]]:
    """Maps whose sizes are no multiples of a tile; a box that is not finite, a very long one, and an empty slot."""

    def run(device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        order = torch.channels_last if channels_last else torch.contiguous_format
        maps = [
            torch.randn(2, channels, *shape, generator=generator)
            .to(device, dtype)
            .contiguous(memory_format=order)
            .requires_grad_()
            for shape in ((27, 77), (13, 17), (1, 1))
        ]
        regions = boxes(2, 300, seed=1) * 1.5 - 20
        regions[:, :2] = torch.tensor([[0.0, torch.nan, 9, 9], [-1000, 10, 1000, 10.5]])
        valid = torch.arange(300).expand(2, 300) < torch.tensor([[300], [299]])
        options = {"output_size": output_size, "sampling_ratio": sampling_ratio, "finest_scale": 20.0}
        found = multiscale_roi_align(maps, regions.to(device), valid.to(device), strides=(4, 8, 100), **options)
        weights = torch.linspace(-1, 1, output_size**2, device=device).view(output_size, -1)
        return found.detach(), *torch.autograd.grad((found.float() * weights).sum(), maps)

    return run


def pyramid(dtype: torch.dtype, channels: int, channels_last: bool, level: int) -> Callable[[str], tuple[Tensor, ...]]:
    def run(device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        order = torch.channels_last if channels_last else torch.contiguous_format
        maps = [
            torch.randn(2, channels, *shape, generator=generator)
            .to(device, dtype)
            .contiguous(memory_format=order)
            .requires_grad_()
            for shape in ((27, 77), (13, 17), (1, 1))
        ]
        outputs = scatter_pyramid(maps, integrate_pyramid(maps, level=level), level=level)
        loss = sum(x.float().square().sum() for x in outputs)
        return *(x.detach() for x in outputs), *torch.autograd.grad(loss, maps)

    return run


def focal(
    dtype: torch.dtype, rows: int, classes: int, reduction: str, unaligned: bool = False
) -> Callable[[str], tuple[Tensor, ...]]:
    """Labels of no class among them; what is masked is not a number."""

    def run(device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        first = int(unaligned)
        logits = torch.randn(first + rows * classes, generator=generator).to(device, dtype)[first:].view(rows, classes)
        labels = torch.randint(-1, classes + 2, (rows,), generator=generator).to(device)
        mask = (torch.rand(rows, generator=generator) < 0.7).to(device)
        logits.masked_fill_(~mask[:, None], torch.nan)
        logits.requires_grad_()
        value = sigmoid_focal_loss(logits, labels, mask, reduction=reduction)
        return value.detach(), *torch.autograd.grad(value.sum(), logits)

    return run


def best(dtype: torch.dtype, k: int, threshold: float | None = None) -> Callable[[str], tuple[Tensor, ...]]:
    def run(device: str) -> tuple[Tensor, ...]:
        scores = torch.randn(2, 20_131, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        scores[:, ::7] = 0.5
        return topk_per_level(scores, [20_001, 0, 130], k, threshold=threshold)

    return run


def coded(dtype: torch.dtype) -> Callable[[str], tuple[Tensor, ...]]:
    def run(device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        references, targets = boxes(301, seed=1, dtype=dtype).to(device), boxes(2, 5, seed=2, dtype=dtype).to(device)
        index, target_index = (torch.randint(n, (2, 513), generator=generator).to(device) for n in (301, 5))
        deltas = torch.randn(2, 301, 3, 4, generator=generator, dtype=dtype).to(device).requires_grad_()
        sizes = torch.tensor([[50.0, 70.0], [80.0, 60.0]], device=device)
        moved = decode_boxes(references, deltas, sizes=sizes)
        chosen = decode_boxes(references, deltas, index=index)
        encoded = encode_boxes(references, targets, index=index, target_index=target_index)
        gradients = (torch.autograd.grad(of.sum(), deltas)[0] for of in (moved, chosen))
        return moved.detach(), chosen.detach(), encoded, *gradients

    return run


def regressed(dtype: torch.dtype, kind: str, reduction: str, decoded: bool) -> Callable[[str], tuple[Tensor, ...]]:
    def run(device: str) -> tuple[Tensor, ...]:
        pred, target, references = (boxes(3, 431, seed=seed, dtype=dtype).to(device) for seed in range(3))
        weight = (torch.rand(3, 431, generator=torch.Generator().manual_seed(0)) < 0.7).to(device)
        options = {"references": references[0], "delta_stds": (0.1, 0.1, 0.2, 0.2)} if decoded else {}
        inputs = [(pred / 50 if decoded else pred).requires_grad_(), target.requires_grad_()]
        value = box_regression_loss(*inputs, kind, weight, reduction=reduction, **options)
        return value.detach(), *torch.autograd.grad(value.sum(), inputs)

    return run


def cases() -> Iterator[tuple[str, Callable[[str], tuple[Tensor, ...]]]]:
    """What is run, with a name: takes a device, returns results to compare between devices."""
    for kind in KINDS:
        yield f"box_iou {kind}", overlaps(kind, torch.float32, 131, 67)
    yield "box_iou float64", overlaps("giou", torch.float64, 5, 33)
    for n, m in ((40, 300), (300, 40)):  # several tiles
        yield f"box_iou {n} x {m}", overlaps("iou", torch.float32, n, m)
    yield "box_iou of one", overlaps("iou", torch.float32, 1, 1)
    for n, g, shared, crowd in ((1300, 5, True, True), (1300, 131, False, False), (1, 1, False, True)):
        yield f"match_boxes {n} x {g}", matched(n, g, shared, crowd)
    for n, groups, limit in ((1, 1, 1), (700, 3, 100), (1300, 1, 2000), (9000, 80, 100)):
        yield f"nms_padded {n} -> {limit}", suppressed(n, groups, limit)
    for n in (1, 700, 9000):
        for positives in ("instance_balanced", "random"):
            for bins in ("paper", "published"):
                options = {"num_samples": 512, "positive_fraction": 0.25, "positives": positives, "bins": bins}
                yield f"sample_iou_balanced {n} {positives} {bins}", sampled(n, **options)
    yield (
        "sample_iou_balanced RPN",
        sampled(
            9000, num_samples=256, positive_fraction=0.5, num_bins=1, positives="random", max_negatives_per_positive=5.0
        ),
    )
    many = {"num_samples": 1024, "positive_fraction": 0.5}  # more than fit into a list of the likely ones
    yield "sample_iou_balanced many samples", sampled(9000, **many)
    for n in (700, 9000):  # the number of such a target has no place in a packed word
        yield f"sample_iou_balanced {n} high targets", sampled(n, first_target=1 << 21, **many)
    for dtype in (torch.float32, torch.bfloat16):
        for k in (1, 300, 7000):
            yield f"topk_per_level {dtype} {k}", best(dtype, k)
    for threshold in (0.0, 2.0):
        yield f"topk_per_level above {threshold}", best(torch.float32, 300, threshold)
    for dtype in (torch.float32, torch.float64):
        yield f"box coding {dtype}", coded(dtype)
    for reduction in ("none", "sum", "mean"):
        for formula in ("paper", "published"):
            yield f"balanced_l1_loss {reduction} {formula}", loss(torch.float32, 1031, reduction, formula)
    yield "balanced_l1_loss float64", loss(torch.float64, 3, "sum", "paper")
    for channels_last in (False, True):
        for dtype, channels, ratio, size in (
            (torch.float32, 68, 0, 7),
            (torch.float32, 3, 2, 9),
            (torch.float64, 6, 0, 3),
            (torch.bfloat16, 72, 2, 7),
            (torch.float16, 5, 0, 1),
        ):
            name = f"multiscale_roi_align {dtype} {channels} channels{' last' if channels_last else ''}, ratio {ratio}"
            yield name, pooled(dtype, channels, channels_last, ratio, size)
    for count in (1031, 70_000):  # 280,000 elements: two groups in flight for each thread
        for unaligned in (False, True):
            name = f"balanced_l1_loss {count} x 4{' unaligned' if unaligned else ''}"
            yield name, loss(torch.float32, count, "sum", "paper", unaligned)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for channels in (3, 16):
            for channels_last in (False, True):
                for level in (0, 1):
                    name = f"balanced pyramid {dtype} {channels} channels{' last' * channels_last}, level {level}"
                    yield name, pyramid(dtype, channels, channels_last, level)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for rows, classes in ((1, 1), (1031, 7), (300, 80)):
            for unaligned in (False, True):
                name = f"sigmoid_focal_loss {dtype} {rows} x {classes}{' unaligned' if unaligned else ''}"
                yield name, focal(dtype, rows, classes, "none" if classes == 7 else "sum", unaligned)
    for kind in ("iou", "giou", "diou", "ciou"):
        for decoded in (False, True):
            name = f"box_regression_loss {kind}{' decoded' if decoded else ''}"
            yield name, regressed(torch.float32, kind, "mean" if decoded else "none", decoded)
    yield "box_regression_loss float64", regressed(torch.float64, "giou", "sum", True)


def main() -> int:
    if not torch.cuda.is_available():
        print("benchmarks.sanitize: needs an NVIDIA GPU, and torch sees none", file=sys.stderr)
        return 2
    if os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") != "1":
        print("benchmarks.sanitize: set PYTORCH_NO_CUDA_MEMORY_CACHING=1, else little is noticed", file=sys.stderr)
    wrong = 0
    for name, run in cases():
        for got, expected in zip(run("cuda"), run("cpu"), strict=True):
            torch.cuda.synchronize()
            try:
                allowed = 1e-3 if got.dtype.itemsize > 2 else 2e-2
                torch.testing.assert_close(got.cpu(), expected, rtol=allowed, atol=allowed, equal_nan=True)
            except AssertionError as error:
                wrong += 1
                print(f"WRONG {name}: {error}", file=sys.stderr)
        print(name, flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
