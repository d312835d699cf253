"""Batches of few padded sizes: nothing is lost, little is padded, and the same in every process and after resuming."""

from collections import Counter

import pytest
from test_dataset import dataset, many, same, tensors

from libra_det.data import make_loader
from libra_det.data.sampler import PlannedBatch, assign, choose_buckets, plan_batches

LANDSCAPE, WIDE, PORTRAIT, SQUARE = (800, 1088), (800, 1344), (1088, 800), (800, 800)


def mixed_shapes(folder, count=20):
    """`count` images: every third one portrait, every fifth wide."""
    content = many(folder, count).content
    for number, image in enumerate(content["images"]):
        size = (30, 40) if number % 3 == 0 else (80, 30) if number % 5 == 0 else (40, 30)
        image.update(file_name=f"{size[0]}x{size[1]}.png", width=size[0], height=size[1])
        folder.picture(image["file_name"], size=size)
    return folder


def shaped(folder, **changes):
    return dataset(folder, **{"short_side": 30, "long_side": 80, "size_divisor": 10, **changes})


def test_buckets_waste_little_and_keep_orientations_apart():
    sizes = [LANDSCAPE] * 60 + [WIDE] * 30 + [PORTRAIT] * 8 + [SQUARE]
    assert choose_buckets(sizes, 9) == [WIDE, LANDSCAPE, SQUARE, PORTRAIT]
    # One square into landscape costs less than 60 landscapes into wide; few portraits do not go into a square.
    assert choose_buckets(sizes, 3) == [WIDE, LANDSCAPE, PORTRAIT]
    assert choose_buckets(sizes, 2) == [WIDE, PORTRAIT]
    assert choose_buckets(sizes, 1) == [(1088, 1344)]
    assert choose_buckets([LANDSCAPE] * 5, 4) == [LANDSCAPE]


def test_images_go_into_the_smallest_bucket_with_room():
    assert assign([SQUARE, LANDSCAPE, (768, 1344), PORTRAIT], [WIDE, LANDSCAPE, PORTRAIT]) == [1, 1, 0, 2]


def test_batches_are_of_one_bucket_and_the_rest_is_mixed():
    buckets = [WIDE, LANDSCAPE, PORTRAIT]
    bucket_of = [1, 2, 1, 0, 1, 2, 0, 2, 1, 1]
    batches = plan_batches(range(10), bucket_of, buckets, 2)
    assert batches == [
        PlannedBatch([9, 7], (1088, 1344)),  # landscape and portrait: room for all
        PlannedBatch([0, 2], LANDSCAPE),
        PlannedBatch([1, 5], PORTRAIT),
        PlannedBatch([3, 6], WIDE),
        PlannedBatch([4, 8], LANDSCAPE),
    ]
    assert plan_batches([0, 3, 4], bucket_of, buckets, 3) == [PlannedBatch([3, 0, 4], WIDE)]  # that has room for both
    assert plan_batches([], bucket_of, buckets, 2) == []


def test_every_image_is_seen_as_without_buckets(coco_folder):
    plain, grouped = shaped(mixed_shapes(coco_folder), batch_size=3), shaped(coco_folder, batch_size=3, size_buckets=3)
    assert plain.steps_per_epoch == grouped.steps_per_epoch == 6
    for epoch in range(4):
        one, other = ([i for batch in data.batches(epoch) for i in batch.index] for data in (plain, grouped))
        assert sorted(one) == sorted(other) and len(set(other)) == 18
    assert grouped.batches(0) != grouped.batches(1)
    assert shaped(coco_folder, batch_size=3, size_buckets=3).batches(2) == grouped.batches(2)


def test_padded_sizes_are_few_and_each_batch_has_its_bucket_s(coco_folder):
    mixed_shapes(coco_folder)
    options = {"batch_size": 3, "size_buckets": 3, "scale_jitter": (0.5, 1.5)}
    data = shaped(coco_folder, **options)
    shapes = Counter(tuple(batch.images.shape[2:]) for epoch in range(3) for batch in make_loader(data, epoch=epoch))
    assert set(shapes) <= {(50, 60), (50, 120), (60, 50), (60, 120)}
    assert sum(count for shape, count in shapes.items() if shape != (60, 120)) >= 9
    largest = {
        size for epoch in range(3) for batch in make_loader(data, epoch=epoch) for size in batch.sizes.tolist()[0]
    }
    assert len(largest) > 4  # images within are jittered as ever
    free = shaped(coco_folder, **{**options, "size_buckets": 0})
    assert len({batch.images.shape for epoch in range(3) for batch in make_loader(free, epoch=epoch)}) > len(shapes)


def test_one_image_size_is_batched_as_without_buckets(coco_folder):
    many(coco_folder)
    assert same(make_loader(dataset(coco_folder), epoch=3), make_loader(dataset(coco_folder, size_buckets=4), epoch=3))


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_and_workers_change_nothing(coco_folder, workers):
    options = {"batch_size": 4, "size_buckets": 2, "color_jitter": 0.2}
    whole = list(make_loader(shaped(mixed_shapes(coco_folder), **options), epoch=1))
    rest = make_loader(shaped(coco_folder, workers=workers, **options), epoch=1, start_step=2)
    assert len(rest) == 3 and same(whole[2:], rest)


def test_processes_share_each_batch_equally_and_pad_it_alike(coco_folder):
    data = shaped(mixed_shapes(coco_folder), batch_size=4, size_buckets=2)
    whole = list(make_loader(data, epoch=1))
    shares = [list(make_loader(data, epoch=1, part=part, parts=2)) for part in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert [id for part in parts for id in part.image_ids] == batch.image_ids
        for all_of_it, *pieces in zip(tensors(batch), *map(tensors, parts), strict=True):
            assert all((piece == part).all() for piece, part in zip(pieces, all_of_it.chunk(2), strict=True))


def test_evaluation_has_no_buckets(coco_folder):
    mixed_shapes(coco_folder)
    plain = dataset(coco_folder, training=False, batch_size=4)
    assert dataset(coco_folder, training=False, batch_size=4, size_buckets=2).batches(0) == plain.batches(0)
