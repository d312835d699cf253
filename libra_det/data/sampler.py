"""Which images form a batch, and the size it is padded to: few different sizes, and little padding.

Images of a training set are grouped by the padded size that they need (`size_buckets`), so that landscape meets
landscape and a compiled or captured training step is used again and again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

Size = tuple[int, int]  # height, width in pixels


class PlannedBatch(NamedTuple):
    """A batch before its images are read."""

    index: list[int]  # positions of its images in the data set
    size: Size | None  # that all of them are padded to; None: that of the largest, rounded up

    def share(self, part: int, parts: int) -> PlannedBatch:
        """The images of one of several processes: as many for each, `parts` divides their number."""
        count = len(self.index) // parts
        return self._replace(index=self.index[part * count : (part + 1) * count])


def choose_buckets(sizes: Sequence[Size], limit: int) -> list[Size]:
    """At most `limit` sizes, in one of which each image has room, that waste little.

    Beginning with a bucket for each different size, the two are merged whose merging adds the fewest pixels of padding
    over all images, until no more than `limit` are left. Landscape (and square) and portrait are merged last, when
    there is one bucket of each.

    Args:
        sizes: padded size that each image needs.
        limit: at least 1.

    Returns:
        The buckets from the widest to the tallest shape.
    """
    buckets = Counter(sizes)  # size -> images in it
    while len(buckets) > limit:
        ordered = sorted(buckets)
        pairs = [(one, other) for number, one in enumerate(ordered) for other in ordered[:number]]
        alike = [(one, other) for one, other in pairs if _is_portrait(one) == _is_portrait(other)]
        one, other = min(alike or pairs, key=lambda pair: (_added_pixels(*pair, buckets), pair))
        count = buckets.pop(one) + buckets.pop(other)
        buckets[_union(one, other)] += count
    return sorted(buckets, key=lambda size: (size[0] / size[1], size))


def assign(sizes: Sequence[Size], buckets: Sequence[Size]) -> list[int]:
    """For each image the number of the smallest bucket that has room for it."""
    by_area = sorted(range(len(buckets)), key=lambda number: buckets[number][0] * buckets[number][1])
    return [next(number for number in by_area if _union(buckets[number], size) == buckets[number]) for size in sizes]


def plan_batches(
    order: Sequence[int], bucket_of: Sequence[int], buckets: Sequence[Size], batch_size: int
) -> list[PlannedBatch]:
    """The batches of an epoch, each of images from one bucket as far as possible.

    Images are dealt to their buckets in the order given, and a bucket that has enough for a batch is emptied into one.
    What is left at the end goes, neighbouring shapes together, into mixed batches, the last of which may not be full.
    They are padded to the smallest bucket that holds all of their images or, with landscape and portrait in one, to
    the largest height and width of all buckets, so that there is one size more than buckets at most. They come first,
    the largest before the others: memory that does not suffice shows at the first step and not at the epoch's end.

    Args:
        order: positions of images, each at most once.
        bucket_of: number of the bucket of every position.
        buckets: of `choose_buckets`.
        batch_size: images of a batch.
    """
    waiting: list[list[int]] = [[] for _ in buckets]
    batches = []
    for index in order:
        number = bucket_of[index]
        waiting[number].append(index)
        if len(waiting[number]) == batch_size:
            batches.append(PlannedBatch(waiting[number], buckets[number]))
            waiting[number] = []
    rest = [index for group in waiting for index in group]
    everything = (max(height for height, _ in buckets), max(width for _, width in buckets))
    mixed = []
    for start in range(0, len(rest), batch_size):
        index = rest[start : start + batch_size]
        needed = (max(buckets[bucket_of[i]][0] for i in index), max(buckets[bucket_of[i]][1] for i in index))
        roomy = [bucket for bucket in buckets if _union(bucket, needed) == bucket]
        size = min(roomy, key=lambda bucket: bucket[0] * bucket[1], default=everything)
        mixed.append(PlannedBatch(index, size))
    return sorted(mixed, key=lambda batch: -len(batch.index) * batch.size[0] * batch.size[1]) + batches


def _is_portrait(size: Size) -> bool:
    return size[0] > size[1]


def _union(one: Size, other: Size) -> Size:
    return max(one[0], other[0]), max(one[1], other[1])


def _added_pixels(one: Size, other: Size, images: Counter[Size]) -> int:
    """Pixels of padding that a merger costs over all images."""
    height, width = _union(one, other)
    return sum(images[size] * (height * width - size[0] * size[1]) for size in (one, other))
