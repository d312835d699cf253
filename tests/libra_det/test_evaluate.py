"""Evaluating a model: category ids of the data set, empty images, matching by name."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from libra_det.checkpoint import load_checkpoint
from libra_det.config import DataConfig, ModelConfig
from libra_det.data import DetectionDataset, load_annotations
from libra_det.evaluate import category_ids, draw_pictures, evaluate, evaluate_run, write_evaluation
from libra_det.inference import Inference
from libra_det.models import build_model
from libra_det.structures import Batch, Detections
from libra_det.train import Trainer

CPU = torch.device("cpu")


class Oracle(torch.nn.Module):
    """Knows all the objects of a data set, and pads its answers as a detector does."""

    def __init__(self, dataset: DetectionDataset) -> None:
        super().__init__()
        self.records = {record.id: record for record in dataset.annotations.images}

    def detect(self, batch: Batch) -> Detections:
        size, slots = len(batch.image_ids), 6
        boxes, scores = torch.zeros(size, slots, 4), torch.zeros(size, slots)
        labels, valid = torch.zeros(size, slots, dtype=torch.int64), torch.zeros(size, slots, dtype=torch.bool)
        for position, image_id in enumerate(batch.image_ids):
            record = self.records[image_id]
            count = len(record.boxes)
            boxes[position, :count], labels[position, :count] = record.boxes, record.labels
            scores[position, :count], valid[position, :count] = 0.9, True
        return Detections(boxes, scores, labels, valid)


@pytest.fixture
def dataset(tiny_data) -> DetectionDataset:
    config = DataConfig(data=str(tiny_data), short_side=96, long_side=96, batch_size=2, workers=0)
    return DetectionDataset(load_annotations(config, "val"), config, training=False, seed=0)


def test_a_perfect_model_is_perfect(dataset):
    model = Oracle(dataset).train()
    evaluation = evaluate(model, dataset, CPU, [(3, "red box"), (7, "green box")])
    assert evaluation.metrics.coco["AP"] == pytest.approx(1.0)
    assert evaluation.metrics.voc_ap50 == pytest.approx(1.0)
    assert {entry["category_id"] for entry in evaluation.results} == {3, 7}
    assert len(evaluation.results) == 4  # padding is not a detection
    assert model.training


def test_a_model_that_knows_fewer_classes_is_matched_by_name(dataset):
    evaluation = evaluate(Oracle(dataset), dataset, CPU, [(1, "red box"), (2, "unheard of")])
    assert evaluation.metrics.class_ap == pytest.approx({"red box": 1.0, "green box": 0.0})


def test_labels_are_mapped_to_the_data_sets_ids(dataset):
    assert category_ids([(0, "green box"), (1, "cat"), (2, "red box")], dataset.annotations) == [7, None, 3]


def test_no_class_in_common_is_an_error(dataset):
    with pytest.raises(ValueError, match=r"the run knows cat, dog.*has red box, green box"):
        category_ids([(1, "cat"), (2, "dog")], dataset.annotations)


def test_results_and_numbers_are_written(dataset, tmp_path):
    evaluation = evaluate(Oracle(dataset), dataset, CPU, [(3, "red box"), (7, "green box")])
    write_evaluation(evaluation, tmp_path / "out", note="x")
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert numbers["coco"]["AP50"] == pytest.approx(1.0) and numbers["note"] == "x"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    truth = dataset.annotations.coco()["annotations"]
    assert sorted(entry["bbox"] for entry in results) == sorted(entry["bbox"] for entry in truth)


def test_pictures_show_truth_beside_detections(dataset, tmp_path):
    evaluation = evaluate(Oracle(dataset), dataset, CPU, [(3, "red box"), (7, "green box")])
    files = draw_pictures(dataset.annotations, evaluation.results, tmp_path)
    assert len(files) == 3 and all(file.stat().st_size > 0 for file in files)


def test_the_training_annotations_are_not_needed(tiny_config, tmp_path, tiny_data):
    (tiny_data / "train.json").rename(tmp_path / "mine.json")
    config = tiny_config(epochs=1)
    data = replace(config.data, train_annotations=str(tmp_path / "mine.json"), image_folder=str(tiny_data))
    run = tmp_path / "run"
    run.mkdir()
    trained = Trainer(replace(config, data=data), run, CPU)
    trained._save()
    before = evaluate(trained.evaluated_model, trained.eval_dataset, CPU, trained.categories)
    (tmp_path / "mine.json").unlink()
    _, evaluation = evaluate_run(run, device=CPU)
    assert evaluation.metrics == before.metrics
    # Nor do the classes that another data set trains on matter.
    content = json.loads((tiny_data / "val.json").read_text())
    content["categories"][1]["id"] = 8
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] == 3]
    (tiny_data / "train.json").write_text(json.dumps({**content, "categories": content["categories"][:1]}))
    _, evaluation = evaluate_run(run, device=CPU, data=str(tiny_data))
    assert evaluation.metrics == before.metrics


def test_a_run_is_evaluated_on_its_own_and_on_other_data(tiny_config, tmp_path, tiny_data):
    run = tmp_path / "run"
    run.mkdir()
    trainer = Trainer(tiny_config(epochs=1), run, CPU)
    trained = trainer.train()
    dataset, evaluation = evaluate_run(run, device=CPU)
    assert evaluation.metrics == trained.metrics
    assert load_checkpoint(run).ema is not None  # which is what both have measured
    dataset, evaluation = evaluate_run(run, device=CPU, split="train", batch_size=3)
    assert (dataset.annotations.name, len(dataset), dataset.config.batch_size) == ("train", 8, 3)
    content = json.loads((tiny_data / "val.json").read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] += 100
    for category in content["categories"]:
        category["id"] += 100
    other = tmp_path / "other"
    other.mkdir()
    (other / "val.json").write_text(json.dumps(content))
    for file in tiny_data.glob("*.png"):
        (other / file.name).write_bytes(file.read_bytes())
    dataset, evaluation = evaluate_run(run, device=CPU, data=str(other), split="val")
    assert evaluation.metrics.coco == pytest.approx(trained.metrics.coco)
    assert {entry["category_id"] for entry in evaluation.results} <= {103, 107}


def test_what_it_took_is_measured(dataset, tmp_path):
    evaluation = evaluate(Oracle(dataset), dataset, CPU, [(3, "red box"), (7, "green box")])
    assert evaluation.images_per_second > 3 / evaluation.seconds
    assert evaluation.peak_memory > 50 * 2**20  # PyTorch alone
    write_evaluation(evaluation, tmp_path)
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert numbers["images_per_second"] > 0 and numbers["peak_memory_mib"] > 50


def test_neither_batches_nor_their_order_change_the_results(tiny_recipes, tiny_data):
    """Images of other shapes stand between those of one; a batch holds images of one padded size."""
    content = json.loads((tiny_data / "val.json").read_text())
    with Image.open(tiny_data / "val_1.png") as image:
        image.rotate(90, expand=True).save(tiny_data / "val_1.png")
    content["images"][1] |= {"width": 48, "height": 64}
    (tiny_data / "val.json").write_text(json.dumps(content))
    torch.manual_seed(1)
    model = build_model(tiny_recipes["tiny_faster"].model, 2)
    results = []
    for batch_size in (1, 3):
        config = DataConfig(data=str(tiny_data), short_side=48, long_side=64, batch_size=batch_size, workers=0)
        dataset = DetectionDataset(load_annotations(config, "val"), config, training=False, seed=0)
        evaluation = evaluate(model, dataset, CPU, [(3, "red box"), (7, "green box")])
        results.append([(entry["image_id"], *entry["bbox"], entry["score"]) for entry in evaluation.results])
    assert [entry[0] for entry in results[0]] == [1] * 5 + [2] * 5 + [3] * 5
    torch.testing.assert_close(torch.tensor(results[0]), torch.tensor(results[1]), atol=1e-3, rtol=0)


def test_mirrored_images_and_half_precision(dataset):
    model = Oracle(dataset)
    model.config = ModelConfig()
    evaluation = evaluate(model, dataset, CPU, [(3, "red box"), (7, "green box")], Inference(flip=True, half=True))
    assert len(evaluation.results) > 4  # the oracle knows nothing of mirrors, and finds all where it was, too
    assert evaluation.metrics.coco["AR100"] == pytest.approx(1.0)
