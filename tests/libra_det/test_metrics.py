"""The evaluator against pycocotools' published numbers, and against curves that can be worked out by hand."""

import copy
import json

import pytest

from libra_det.metrics import COCO_NAMES, evaluate_results, voc_average_precision


def truth(*annotations, categories=("cat", "dog"), images=2):
    """Ground truth with one object for each (image_id, category_id, bbox, **flags)."""
    entries = [
        {"id": number, "image_id": image, "category_id": category, "bbox": bbox, **(flags[0] if flags else {})}
        for number, (image, category, bbox, *flags) in enumerate(annotations)
    ]
    return {
        "images": [{"id": number + 1, "width": 100, "height": 100} for number in range(images)],
        "categories": [{"id": number + 1, "name": name} for number, name in enumerate(categories)],
        "annotations": entries,
    }


def found(image, category, bbox, score):
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score}


def test_fixture_equals_pycocotools(libra_data, capsys):
    folder = libra_data / "coco_eval_fixture"
    ground_truth, results = (json.loads((folder / name).read_text()) for name in ("gts.json", "results.json"))
    expected = json.loads((folder / "expected_pycocotools_2.0.11.json").read_text())
    before = copy.deepcopy((ground_truth, results))
    metrics = evaluate_results(ground_truth, results)
    assert tuple(metrics.coco) == COCO_NAMES == tuple(expected)
    assert metrics.coco == pytest.approx(expected, abs=1e-9, rel=0)
    with_objects = [ap for ap in metrics.class_ap.values() if ap >= 0]
    assert sum(with_objects) / len(with_objects) == pytest.approx(expected["AP"], abs=1e-9)
    with_objects = [ap for ap in metrics.class_ap50.values() if ap >= 0]
    assert sum(with_objects) / len(with_objects) == pytest.approx(expected["AP50"], abs=1e-9)
    assert (ground_truth, results) == before
    assert capsys.readouterr().out == ""


def test_perfect_detections_and_a_class_without_objects():
    ground_truth = truth((1, 1, [10, 10, 20, 20]), (2, 1, [0, 0, 50, 50]))
    results = [found(1, 1, [10, 10, 20, 20], 0.9), found(2, 1, [0, 0, 50, 50], 0.8)]
    metrics = evaluate_results(ground_truth, results)
    assert metrics.coco["AP"] == pytest.approx(1.0)
    assert metrics.coco["APl"] == -1.0
    assert metrics.class_ap == pytest.approx({"cat": 1.0, "dog": -1.0})
    assert metrics.class_voc_ap50 == pytest.approx({"cat": 1.0, "dog": -1.0})
    assert metrics.voc_ap50 == pytest.approx(1.0)


def test_the_first_annotation_counts_even_when_its_id_is_zero():
    ground_truth = truth((1, 1, [10, 10, 20, 20]))
    assert ground_truth["annotations"][0]["id"] == 0
    assert evaluate_results(ground_truth, [found(1, 1, [10, 10, 20, 20], 0.9)]).coco["AP"] == pytest.approx(1.0)


def test_no_detections_at_all():
    metrics = evaluate_results(truth((1, 1, [10, 10, 20, 20])), [])
    assert (metrics.coco["AP"], metrics.coco["AR100"], metrics.voc_ap50) == (0.0, 0.0, 0.0)


def test_nothing_to_find():
    metrics = evaluate_results(truth(), [found(1, 1, [10, 10, 20, 20], 0.9)])
    assert (metrics.coco["AP"], metrics.voc_ap50) == (-1.0, -1.0)


def test_two_classes_of_one_name_stay_apart():
    ground_truth = truth((1, 1, [10, 10, 20, 20]), (1, 2, [60, 60, 20, 20]), categories=("cat", "cat"))
    metrics = evaluate_results(ground_truth, [found(1, 2, [60, 60, 20, 20], 0.9)])
    assert metrics.class_ap == pytest.approx({"cat": 0.0, "cat (2)": 1.0})


def test_results_of_another_data_set_are_refused():
    with pytest.raises(ValueError, match=r"results\[0\]: image_id 9 "):
        evaluate_results(truth((1, 1, [10, 10, 20, 20])), [found(9, 1, [0, 0, 5, 5], 0.5)])
    with pytest.raises(ValueError, match=r"results\[0\]: category_id 9 "):
        evaluate_results(truth((1, 1, [10, 10, 20, 20])), [found(1, 9, [0, 0, 5, 5], 0.5)])


def test_voc_curve_by_hand():
    # Two objects; ranked: correct, wrong, a second one on the same object (wrong), correct.
    ground_truth = truth((1, 1, [0, 0, 10, 10]), (2, 1, [0, 0, 10, 10]), categories=("cat",))
    results = [
        found(2, 1, [0, 0, 10, 10], 0.2),
        found(1, 1, [50, 50, 10, 10], 0.8),
        found(1, 1, [0, 0, 10, 9], 0.7),
        found(1, 1, [0, 0, 10, 10], 0.9),
    ]
    # Recall 1/2 at precision 1, recall 1 at precision 2/4.
    assert voc_average_precision(ground_truth, results) == {1: pytest.approx(0.5 * 1.0 + 0.5 * 0.5)}


def test_voc_interpolates_precision_from_the_right():
    # Ranked: wrong, correct, correct: precision 1/2 and 2/3, so 2/3 everywhere.
    ground_truth = truth((1, 1, [0, 0, 10, 10]), (2, 1, [0, 0, 10, 10]), categories=("cat",))
    results = [
        found(1, 1, [70, 70, 5, 5], 0.9),
        found(1, 1, [0, 0, 10, 10], 0.8),
        found(2, 1, [0, 0, 10, 10], 0.7),
    ]
    assert voc_average_precision(ground_truth, results) == {1: pytest.approx(2 / 3)}


@pytest.mark.parametrize("flag", ["difficult", "ignore", "iscrowd"])
def test_voc_leaves_out_what_need_not_be_found(flag):
    ground_truth = truth((1, 1, [0, 0, 10, 10]), (1, 1, [40, 40, 40, 40], {flag: 1}), categories=("cat",))
    results = [found(1, 1, [40, 40, 40, 38], 0.9), found(1, 1, [0, 0, 10, 10], 0.8)]
    assert voc_average_precision(ground_truth, results) == {1: pytest.approx(1.0)}


def test_voc_a_detection_of_a_difficult_object_needs_half_an_overlap_too():
    """An object that is passed to COCO's evaluator as a crowd region is none by VOC's rules."""
    difficult = {"iscrowd": 1, "difficult": 1}
    ground_truth = truth((1, 1, [0, 0, 10, 10]), (1, 1, [40, 40, 40, 40], difficult), categories=("cat",))
    found_it, part_of_it = found(1, 1, [40, 40, 40, 21], 0.9), found(1, 1, [40, 40, 40, 19], 0.85)
    correct = found(1, 1, [0, 0, 10, 10], 0.8)
    assert voc_average_precision(ground_truth, [found_it, correct]) == {1: pytest.approx(1.0)}
    assert voc_average_precision(ground_truth, [part_of_it, correct]) == {1: pytest.approx(0.5)}


def test_voc_detections_inside_a_crowd_do_not_count_but_others_do():
    ground_truth = truth((1, 1, [0, 0, 10, 10]), (1, 1, [40, 40, 40, 40], {"iscrowd": 1}), categories=("cat",))
    inside, outside = found(1, 1, [45, 45, 6, 6], 0.9), found(1, 1, [85, 0, 6, 6], 0.85)
    correct = found(1, 1, [0, 0, 10, 10], 0.8)
    assert voc_average_precision(ground_truth, [inside, correct]) == {1: pytest.approx(1.0)}
    assert voc_average_precision(ground_truth, [outside, correct]) == {1: pytest.approx(0.5)}


def test_voc_needs_half_an_overlap():
    ground_truth = truth((1, 1, [0, 0, 10, 10]), categories=("cat",))
    assert voc_average_precision(ground_truth, [found(1, 1, [0, 0, 10, 5], 0.9)]) == {1: pytest.approx(1.0)}
    assert voc_average_precision(ground_truth, [found(1, 1, [0, 0, 10, 4.9], 0.9)]) == {1: pytest.approx(0.0)}
