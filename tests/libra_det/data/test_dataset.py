"""Samples and batches: exact flips, one shape, the same in every process and after resuming."""

import dataclasses
import multiprocessing
import signal
import subprocess

import pytest
import torch

from libra_det.data import DetectionDataset, load_annotations, make_loader
from libra_det.data.dataset import Sample


def dataset(folder, training=True, seed=0, **changes):
    folder.write()
    config = dataclasses.replace(folder.config, **{"batch_size": 2, **changes})
    return DetectionDataset(load_annotations(config, "train"), config, training, seed)


def many(folder, count=12):
    """`count` images, all with the pictures of the first four."""
    content = folder.content
    content["images"] = [{"id": 10 + i, "file_name": f"{i % 4}.png", "width": 40, "height": 30} for i in range(count)]
    content["annotations"] = [
        {"id": 1 + i, "image_id": 10 + i, "category_id": 7, "bbox": [i % 20, 6, 10, 8]} for i in range(count)
    ]
    return folder


def tensors(batch):
    return [batch.images, batch.sizes, batch.original_sizes, *batch.targets, torch.tensor(batch.image_ids)]


def same(batches, others):
    pairs = list(zip(batches, others, strict=True))
    return bool(pairs) and all(
        torch.equal(a, b) for one, other in pairs for a, b in zip(tensors(one), tensors(other), strict=True)
    )


def test_a_batch_holds_what_was_annotated(coco_folder):
    coco_folder.content["annotations"][1].update(category_id=90, iscrowd=1)
    coco_folder.content["annotations"].append({"id": 9, "image_id": 11, "category_id": 7, "bbox": [0, 0, 4, 3]})
    batch = next(iter(make_loader(dataset(coco_folder, training=False, short_side=60, long_side=80))))
    assert (tuple(batch.images.shape), batch.images.dtype) == ((2, 3, 64, 80), torch.uint8)
    assert batch.sizes.tolist() == [[60, 80], [60, 80]] and batch.original_sizes.tolist() == [[30, 40], [30, 40]]
    assert (batch.image_ids, batch.file_names) == ([10, 11], ["0.png", "1.png"])
    boxes, labels, valid, crowd = batch.targets
    assert tuple(boxes.shape) == (2, 8, 4)
    assert boxes[0, 0].tolist() == [10, 12, 30, 28] and boxes[1, 1].tolist() == [0, 0, 8, 6]
    assert labels[1, :2].tolist() == [1, 0]
    assert valid[1].tolist() == [False, True] + [False] * 6 and crowd[1].tolist() == [True] + [False] * 7
    assert not boxes[0, 1:].any() and not labels[0, 1:].any()
    assert not batch.images[:, :, 60:].any()
    assert batch.images[0, 0, 14:26, 12:28].min() > 200 and batch.images[0, 0, 32:60].max() < 60


@pytest.mark.parametrize("horizontal", [0.0, 1.0])
@pytest.mark.parametrize("vertical", [0.0, 1.0])
def test_flips_are_exact(coco_folder, horizontal, vertical):
    coco_folder.content["annotations"][0]["bbox"] = [3.25, 4.5, 7.125, 8.75]
    plain = dataset(coco_folder, horizontal_flip=0.0)[0]
    flipped = dataset(coco_folder, horizontal_flip=horizontal, vertical_flip=vertical)[0]
    (x1, y1, x2, y2), height, width = plain.boxes[0].tolist(), 30, 40
    if horizontal:
        x1, x2 = width - x2, width - x1
    if vertical:
        y1, y2 = height - y2, height - y1
    dims = [1] * bool(vertical) + [2] * bool(horizontal)
    assert flipped.boxes.tolist() == [[x1, y1, x2, y2]]
    assert torch.equal(flipped.image, plain.image.flip(dims))
    assert type(flipped.boxes) is torch.Tensor


def test_augmentation_depends_on_seed_epoch_and_index_alone(coco_folder):
    options = {"scale_jitter": (0.5, 2.0), "color_jitter": 0.5, "vertical_flip": 0.5}
    data = dataset(coco_folder, **options)
    first = data.sample(2, epoch=3)
    torch.manual_seed(1)
    data.sample(1, epoch=3)
    again = dataset(coco_folder, **options).sample(2, epoch=3)
    assert torch.equal(first.image, again.image) and torch.equal(first.boxes, again.boxes)
    shapes = {tuple(sample.image.shape) for sample in (data.sample(i, e) for i in range(4) for e in range(3))}
    assert len(shapes) > 4
    assert dataset(coco_folder, seed=5, **options).sample(2, 3).image.shape != first.image.shape


@pytest.mark.parametrize("options", [{}, {"scale_jitter": (0.5, 1.5)}, {"cache_mb": 1}, {"color_jitter": 0.3}])
def test_boxes_stay_on_their_object(coco_folder, options):
    data = dataset(coco_folder, short_side=90, long_side=120, vertical_flip=0.5, **options)
    for epoch in range(6):
        image, boxes, *_ = data.sample(epoch % 4, epoch)
        x1, y1, x2, y2 = boxes[0].round().int().tolist()
        inside = image[0, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].float()
        around = image[0].float().sum() - image[0, y1 - 2 : y2 + 2, x1 - 2 : x2 + 2].float().sum()
        around /= image[0].numel() - (y2 - y1 + 4) * (x2 - x1 + 4)
        assert inside.min() > around + 60


def test_workers_change_nothing(coco_folder):
    many(coco_folder)
    options = {"scale_jitter": (0.5, 1.0), "color_jitter": 0.2, "batch_size": 3}
    alone = list(make_loader(dataset(coco_folder, **options), epoch=1))
    helped = list(make_loader(dataset(coco_folder, workers=2, **options), epoch=1))
    assert len(alone) == 4 and same(alone, helped)


@pytest.mark.parametrize("jitter", [(1.0, 1.0), (0.5, 1.0)])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_changes_nothing_but_reads_files_once(coco_folder, jitter, workers):
    plain = dataset(many(coco_folder), scale_jitter=jitter)
    cached = dataset(coco_folder, scale_jitter=jitter, cache_mb=1, workers=workers)
    for epoch in range(2):
        assert same(make_loader(plain, epoch=epoch), make_loader(cached, epoch=epoch))
    for i in range(4):
        (coco_folder.folder / f"{i}.png").unlink()
    assert len(list(make_loader(cached, epoch=2))) == 6
    with pytest.raises(FileNotFoundError, match="missing"):
        list(make_loader(plain, epoch=2))


def test_the_cache_keeps_to_its_bound(coco_folder):
    size = {"short_side": 480, "long_side": 640}  # 0.88 MiB an image
    data = dataset(coco_folder, cache_mb=2, **size)
    expected = [data[i] for i in range(4)]
    for i in range(2, 4):
        (coco_folder.folder / f"{i}.png").unlink()
    assert all(torch.equal(data[i].image, expected[i].image) for i in range(2))
    with pytest.raises(FileNotFoundError):
        data[2]


def test_resuming_within_an_epoch_continues_exactly(coco_folder):
    data = dataset(many(coco_folder), color_jitter=0.2)
    whole = list(make_loader(data, epoch=4))
    rest = make_loader(data, epoch=4, start_step=2)
    assert len(rest) == 4 and same(whole[2:], rest)
    assert len(make_loader(data, start_step=6)) == 0
    with pytest.raises(ValueError, match=r"start_step: expected 0 to 6.* got 7"):
        make_loader(data, start_step=7)


def test_torch_s_random_numbers_are_not_touched(coco_folder):
    data = dataset(coco_folder, scale_jitter=(0.5, 1.0), color_jitter=0.2)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    list(make_loader(data))
    assert torch.equal(state, torch.get_rng_state())


def test_training_shuffles_and_drops_the_rest_and_evaluation_does_neither(coco_folder):
    many(coco_folder, 7)
    training = dataset(coco_folder)
    orders = [[i for batch in make_loader(training, epoch=epoch) for i in batch.image_ids] for epoch in range(3)]
    assert training.steps_per_epoch == 3 and all(len(set(order)) == 6 for order in orders)
    assert orders[0] != orders[1] != orders[2] and orders[0] != sorted(orders[0])
    evaluation = dataset(coco_folder, training=False)
    batches = [batch.image_ids for batch in make_loader(evaluation)]
    assert batches == [[10, 11], [12, 13], [14, 15], [16]] and evaluation.steps_per_epoch == 4
    few = dataset(coco_folder, batch_size=20)
    assert [len(batch.image_ids) for batch in make_loader(few)] == [7]


def test_images_without_objects(coco_folder):
    """An empty image and one with only a crowd are evaluated, but trained on only if asked for."""
    del coco_folder.content["annotations"][0]
    coco_folder.content["annotations"][0]["iscrowd"] = 1
    assert [image.id for image in dataset(coco_folder).images] == [12, 13]
    assert len(dataset(coco_folder, training=False)) == 4
    everything = dataset(coco_folder, skip_empty=False)
    assert len(everything) == 4
    batch = everything.collate([everything[0], everything[1]])
    assert not batch.targets.valid.any() and batch.targets.crowd.sum() == 1
    assert dataset(coco_folder).problems.counts == {"no_objects": 2}


def test_slots_hold_the_fullest_image(coco_folder):
    coco_folder.content["annotations"] += [
        {"id": i, "image_id": 12, "category_id": 7, "bbox": [1, 1, 9, 9]} for i in range(8)
    ]
    data = dataset(coco_folder)
    assert data.target_slots == 16
    assert {batch.targets.boxes.shape[1] for batch in make_loader(data)} == {16}


def test_nothing_to_train_on_is_an_error(coco_folder):
    coco_folder.content["annotations"].clear()
    with pytest.raises(ValueError, match="train: none of its 4 images has an object to train on"):
        dataset(coco_folder)
    batch = next(iter(make_loader(dataset(coco_folder, training=False))))
    assert tuple(batch.targets.boxes.shape) == (2, 8, 4) and not batch.targets.valid.any()


def test_bad_files_are_found_before_training(coco_folder):
    (coco_folder.folder / "1.png").unlink()
    coco_folder.picture("2.png", size=(80, 60))
    with pytest.raises(ValueError) as error:
        dataset(coco_folder)
    assert "1.png: this image file is missing (image 11)" in str(error.value)
    assert "2.png: is 80x60 pixels, but annotated as 40x30" in str(error.value)


def test_conversions_are_counted(coco_folder):
    coco_folder.picture("0.png", "L")
    coco_folder.picture("1.png", "RGBA")
    coco_folder.picture("2.png", "P")
    assert dataset(coco_folder).problems.counts == {"grayscale": 1, "alpha": 1, "palette": 1}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_without_the_traceback_of_its_worker(coco_folder, workers):
    data = dataset(coco_folder, workers=workers)
    file = coco_folder.folder / "3.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"^\S+3\.png: cannot be decoded") as error:
        list(make_loader(data))
    assert len(str(error.value).splitlines()) == 1


def test_sigterm_ends_a_worker_and_raises_nothing_in_the_middle_of_a_step(coco_folder):
    """A scheduler sends it to all processes of a job; the parent finishes its step."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        batches = iter(make_loader(dataset(many(coco_folder), workers=1)))
        next(batches)
        (worker,) = multiprocessing.active_children()
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)  # torch tells its parent from other senders
        worker.join(10)
        assert worker.exitcode == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_samples_name_their_image(coco_folder):
    sample = dataset(coco_folder)[3]
    assert isinstance(sample, Sample) and (sample.record.id, sample.record.file_name) == (13, "3.png")


@pytest.mark.cuda
def test_batches_for_cuda_are_pinned(coco_folder):
    batch = next(iter(make_loader(dataset(coco_folder), device="cuda")))
    assert batch.images.is_pinned() and batch.targets.boxes.is_pinned()
    assert batch.to("cuda").targets.valid.device.type == "cuda"
