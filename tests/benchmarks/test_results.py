"""RESULTS.md comes from the JSON alone."""

import json
import shutil

import pytest

from benchmarks.case import COMPILED, COPY, EAGER, OURS
from benchmarks.goals import GOALS
from benchmarks.report import FOLDER, load_runs, main, results_text, write_report


def side(median: float, **more) -> dict:
    return {"median": median, "low": median * 0.9, "high": median * 1.1, "samples": 9, "calls per sample": 1, **more}


def a_run(compiled: float = 12e-3, **more) -> dict:
    """A run with one case, in which torch.compile takes `compiled` seconds and ours 1 ms."""
    case = {
        "subject": "match_boxes",
        "case": "200,000 x 100",
        "size": 20_000_000,
        "bytes": 5_801_700,
        "operations": 340_000_000,
        "training": False,
        "checks": {COMPILED: "a remark", EAGER: "agrees"},
        "failures": [],
        "sides": {OURS: side(1e-3, peak=2e6, result=1e6), COMPILED: side(compiled), EAGER: {"not run": "no room"}},
    }
    return {
        "kind": "cpu",
        "device": "a processor",
        "driver": "none",
        "host": "a processor",
        "versions": {"torch": "2.11.0"},
        "commit": "abc",
        "command": "python -m benchmarks",
        "date": "2026-01-01 00:00 UTC",
        "ceilings": {"copy": 2e10, "fma": 1e12},
        "cases": [case],
    } | more


def test_the_committed_results_are_those_of_the_committed_json(tmp_path):
    (tmp_path / "results").mkdir()
    for file in (FOLDER / "results").glob("*.json"):
        shutil.copy(file, tmp_path / "results")
    write_report(tmp_path / "results", tmp_path / "RESULTS.md")
    wanted = "run `python -m benchmarks.report`: RESULTS.md is not that of the JSON in benchmarks/results"
    assert (tmp_path / "RESULTS.md").read_text() == (FOLDER / "RESULTS.md").read_text(), wanted
    for picture in (tmp_path / "results").glob("*.svg"):
        assert (FOLDER / "results" / picture.name).is_file(), wanted


def test_what_was_not_measured_says_so_with_the_command():
    text = results_text({"cpu": [], "cuda": []}, {})
    assert text.count("| not measured |") == len(GOALS)
    assert "benchmarks/gpu.sh" in text and "python -m benchmarks" in text


def test_goals_are_judged_in_every_run():
    text = results_text({"cpu": [a_run(), a_run(8e-3), a_run(11e-3)], "cuda": []}, {})
    assert "| 12x / 8.00x / 11x | **met in 2 of 3 runs** |" in text
    text = results_text({"cpu": [a_run(8e-3)], "cuda": []}, {})
    assert "| 8.00x | **missed** |" in text


def test_a_cell_says_why_a_side_did_not_run():
    text = results_text({"cpu": [a_run()], "cuda": []}, {"cpu": {"match_boxes": "results/picture.svg"}})
    assert "| 200,000 x 100 | 1 ms (900 us to 1.1 ms) | 12 ms (12x) | no room | nominal 340 G/s, 34% of FMA |" in text
    assert f"- {COMPILED}: a remark." in text
    assert "2 MB, of which result 1 MB" in text
    assert "(results/picture.svg)" in text


def test_goals_on_a_gpu_are_read_from_its_run():
    case = {
        "subject": "box_iou",
        "case": "16,384 x 16,384",
        "size": 2**28,
        "bytes": 2**30,
        "operations": 0,
        "training": True,
        "checks": {},
        "failures": [],
        "sides": {
            OURS: side(3e-4, call=4e-4, hidden=True),
            COMPILED: side(9e-4, call=10e-4, hidden=False),
            COPY: side(2.8e-4, call=3e-4),
        },
    }
    alone = case | {"case": "2,000 x 2,000", "size": 4_000_000, "bytes": 2**24, "sides": {OURS: case["sides"][OURS]}}
    run = a_run(kind="cuda", cases=[case, alone | {"sides": alone["sides"] | {COPY: case["sides"][COPY]}}])
    run["ceilings"] = {"copy": 4.2e12, "fma": 3e13}
    text = results_text({"cpu": [], "cuda": [run]}, {})
    assert "| box_iou | 16,384 x 16,384, of copy bandwidth | at least 85% | 85% | met |" in text
    counted = "counted: 16,384 x 16,384. Not run: 2,000 x 2,000"
    assert f"device alone or whole call. {counted} | at least 3.00x | 2.50x | **missed** |" in text
    assert "93% of copy" in text and "with launches" in text
    assert text.count(", host not hidden") == 1 and "| 900 us (3.00x), host not hidden |" in text


def test_the_goal_of_matching_is_judged_by_visited_pairs():
    """17 nominal operations of 2.1e9 pairs would be 90% of FMA; 11 of the tenth that is visited are 6%."""
    pairs = 16 * 268_569 * 500
    case = a_run()["cases"][0] | {
        "case": "RPN, 16 x 268,569 x 500",
        "size": pairs,
        "operations": 17 * pairs,
        "visits": pairs // 10,
        "visit operations": 11 * (pairs // 10),
        "sides": {OURS: side(17 * pairs / 0.9e13, call=1.0)},
    }
    run = a_run(kind="cuda", cases=[case], ceilings={"copy": 4e12, "fma": 1e13})
    text = results_text({"cpu": [], "cuda": [run]}, {})
    assert "visited pairs, of FMA peak | at least 60% | 6% | **missed** |" in text
    assert "nominal 9,000 G/s, 90% of FMA; visited 10% of pairs: 582 G/s, 6% of FMA" in text


def a_step(name: str, **sides: dict) -> dict:
    return {
        "subject": "train_step",
        "case": name,
        "size": 4,
        "images": 4,
        "bytes": 0,
        "operations": 0,
        "training": True,
        "checks": {},
        "failures": [],
        "plot": False,
        "sides": sides,
    }


def test_a_training_step_is_judged_by_the_better_format_of_each_side_and_shows_where_its_time_goes():
    name = "Faster R-CNN R-18, 4 x 240 x 320, float32"
    parts = {"seconds": 0.5, "parts": {"batch norm": 0.1, "libra_ops": 0.4}, "operations": [], "multiply-adds": 5e9}
    sides = {
        OURS: side(0.5, breakdown=parts | {"counts": {"nonzero": 0.0}}),
        "libra_det, NCHW": side(0.4),
        "plain pyramid": side(0.3),
        "torchvision": side(0.5),
        "torchvision, NCHW": side(0.8),
    }
    runs = [a_run(), a_run(cases=[a_step(name, **sides)])]
    text = results_text({"cpu": runs, "cuda": []}, {})
    assert f"| {name}, plain pyramid, over torchvision's | at most 0.80x | 0.60x | met |" in text
    assert f"| {name}, all of Libra, over torchvision's | at most 0.90x | 0.80x | met |" in text
    assert "| size | libra_det | libra_det, NCHW | plain pyramid | torchvision | torchvision, NCHW |" in text
    assert "| 300 ms (0.60x), 13.3 images/s |" in text
    assert "| batch norm | 100 ms, 20% |" in text and "| nonzero, times | 0 |" in text
    assert "| 200,000 x 100 |" in text  # of the other run


def test_a_step_on_a_gpu_is_judged_by_images_waits_and_memory():
    name = "Faster R-CNN R-50, 16 x 800 x 1344, bfloat16"
    waits = {"synchronisations": 0.0, "copies to the host": 1.0}
    parts = {"seconds": 0.1, "parts": {}, "operations": [], "multiply-adds": 0, "counts": waits}
    sides = {
        OURS: side(0.09, call=0.1, enqueue=0.05, hidden=False, peak=2e10, result=0, breakdown=parts),
        "CUDA graph": side(0.06, call=0.064, enqueue=0.01, hidden=False, peak=2e10, result=0),
        "torchvision": side(0.2, call=0.256, enqueue=0.2, hidden=False, peak=4e10, result=0),
    }
    loaded = a_step("898 / 1344, 8 processes", **{OURS: side(16.0, call=16.0)})
    loaded |= {"subject": "loader", "images": 8000, "source": "photos of BCCD"}
    text = results_text({"cpu": [], "cuda": [a_run(kind="cuda", cases=[a_step(name, **sides), loaded])]}, {})
    assert f"| {name}, torchvision's time | at least 3.00x | 4.00x | met |" in text
    assert f"| {name} | at least 200 images/s | 250 images/s | met |" in text
    assert f"| {name}, waits for the GPU in a step | at most 0 | 1 | **missed** |" in text
    assert f"| {name}, peak memory without a graph, over torchvision's | at most 1.00x | 0.50x | met |" in text
    assert f"| loader | images a second, over those of {name} | at least 1.00x | 2.00x | met |" in text


def test_runs_are_read_in_the_order_of_their_names_and_other_json_is_left_alone(tmp_path):
    for name, commit in (("cpu-2", "second"), ("cpu", "first"), ("cpu-3", "third")):
        (tmp_path / f"{name}.json").write_text(json.dumps(a_run(commit=commit)))
    (tmp_path / "other.json").write_text("[1]")
    assert [run["commit"] for run in load_runs(tmp_path)["cpu"]] == ["first", "second", "third"]
    assert main([str(tmp_path)]) == 0 and (tmp_path / "RESULTS.md").is_file()
    assert main([str(tmp_path / "nowhere")]) == 2


def test_counts_of_compiled_kernels_are_shown_as_counts(tmp_path):
    kernel = {
        "op": "box_iou",
        "kernel": "box_iou_kernel<float>",
        "registers": 32,
        "shared_bytes": 16,
        "spill_bytes": 0,
        "local_accesses": 0,
        "global_loads_128": 2,
        "global_loads": 3,
        "global_stores_128": 1,
        "global_stores": 1,
        "occupancy": {"blocks_per_multiprocessor": 8, "share_of_warps": 1.0, "limited_by": "warps"},
        "hot_loop": {"instructions": 60, "fast_path": 40},
    }
    facts = {"architecture": "sm_90", "nvcc": "13.0", "commit": "abc", "command": "python -m benchmarks.sass"}
    (tmp_path / "sass_sm_90.json").write_text(json.dumps({**facts, "kernels": [kernel]}))
    text = write_report(tmp_path, tmp_path / "RESULTS.md").read_text()
    assert "## Compiled for sm_90" in text and "nothing here was measured" in text
    assert "| 32 | 16 | 0 / 0 | 2 of 3 | 1 of 1 | 100%, by warps | 60 (40) |" in text


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: f"{goal.kind} {goal.subject} {goal.words}")
def test_every_goal_is_measured_by_a_case_that_is_run(goal):
    """A goal whose case's name is mistyped would stay "not measured" for ever: here all cases that a run has."""
    import torch

    from benchmarks.case import Plan
    from benchmarks.subjects import SUBJECTS, cases_of

    plan = Plan(torch.device(goal.kind))
    cases = []
    for subject in SUBJECTS:
        for case in cases_of(subject, plan):
            sides = {name: side(1e-3, call=1e-3, peak=1, result=1) for name in [*case.sides, COPY]}
            for name, one in case.sides.items():
                if one.breakdown:
                    sides[name]["breakdown"] = {"counts": {"synchronisations": 0, "copies to the host": 0}}
            known = {"subject": subject, "case": case.name, "bytes": case.bytes, "operations": case.operations}
            known |= {"images": case.images, "source": "photos of BCCD"}
            known |= {"visit operations": case.visit_operations} if case.visits else {}
            cases.append({**known, "training": case.training, "sides": sides})
    assert goal.measure({"cases": cases, "ceilings": {"copy": 1e12, "fma": 1e12}}) is not None
