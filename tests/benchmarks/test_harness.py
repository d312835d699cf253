"""The harness end to end on the CPU at sizes of no interest, with nothing said about time."""

import json
import re
import time
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from benchmarks import inputs, memory
from benchmarks.__main__ import main
from benchmarks.balanced_l1_loss import bytes_moved as loss_bytes
from benchmarks.box_iou import bytes_moved as matrix_bytes
from benchmarks.case import COPY, OURS, Case, Mismatch, Plan, Side, close, mostly_equal
from benchmarks.ceilings import measure_ceilings
from benchmarks.clock import CpuClock, CudaClock
from benchmarks.harness import run_case
from benchmarks.match_boxes import bytes_moved as match_bytes
from benchmarks.match_boxes import visited_pairs
from benchmarks.report import write_report
from benchmarks.run import run
from benchmarks.subjects import SUBJECTS, cases_of
from benchmarks.tables import times_of

CPU = torch.device("cpu")
TINY = Plan(CPU, sizes="tiny", seconds=0.002, samples=3, fewest=2, compile=False, memory="none")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of a run of all subjects, and what it printed."""
    folder = tmp_path_factory.mktemp("results")
    console = Console(record=True, width=200, file=open(folder / "printed", "w"))
    file, good = run([], TINY, folder, cores=[0], console=console, copied_bytes=1 << 20)
    assert good and file == folder / "cpu.json"
    write_report(folder, folder / "RESULTS.md")
    return folder, console.export_text()


def test_every_side_ran_and_agreed_or_says_why(results):
    document = json.loads((results[0] / "cpu.json").read_text())
    assert {case["subject"] for case in document["cases"]} == set(SUBJECTS)
    for case in document["cases"]:
        assert case["failures"] == []
        for name, side in case["sides"].items():
            if "not run" in side:
                assert side["not run"], (case["case"], name)
                continue
            assert 0 < side["low"] <= side["median"] <= side["high"]
            assert side["samples"] >= 2
            assert name in (OURS, COPY) or case["checks"][name]
        assert (COPY in case["sides"]) == (case["operations"] == 0 and "images" not in case)


def test_a_run_says_where_and_with_what_it_was_made(results):
    document = json.loads((results[0] / "cpu.json").read_text())
    for fact in ("device", "driver", "versions", "build", "commit", "command", "date", "ceilings", "sizes"):
        assert document[fact], fact
    assert {"python", "torch", "numpy"} <= set(document["versions"])


def test_the_tables_are_printed_and_written(results):
    folder, printed = results
    text = (folder / "RESULTS.md").read_text()
    for subject in SUBJECTS.values():
        assert subject.TITLE in printed
        assert f"### {subject.TITLE}" in text
    assert text.index("## Goals on the CPU") < text.index("## CPU")
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (folder / picture).read_text().count("<path") > 3


def test_the_command_runs_what_it_is_told_and_nothing_unknown(capsys):
    with pytest.raises(SystemExit):
        main(["nms"])
    assert "match_boxes" in capsys.readouterr().err
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            main(["--device", "cuda"])
        assert "needs an NVIDIA GPU" in capsys.readouterr().err


@pytest.mark.parametrize("sizes", ["full", "quick", "tiny"])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_cases_have_names_of_their_own(subject, sizes):
    for device in ("cpu", "cuda"):  # cases hold no tensors: listing them needs no GPU
        for case in cases_of(subject, Plan(torch.device(device), sizes=sizes)):
            assert (case.bytes > 0 or case.whole) and case.size > 0 and OURS in case.sides


def case_of(sides: dict[str, Side]) -> Case:
    return Case("test", "one", 1, lambda generator: (torch.rand(8, generator=generator),), sides, bytes=64)


def test_a_side_that_disagrees_is_not_timed_and_the_run_fails():
    def agrees(ours, theirs):
        close(ours, theirs, "twice")

    sides = {
        OURS: Side(lambda x: 2 * x),
        "right": Side(lambda x: x + x, agrees=agrees),
        "wrong": Side(lambda x: x, agrees=agrees),
        "broken": Side(lambda x: x.reshape(7)),
    }
    result = run_case(case_of(sides), TINY, CpuClock())
    assert "median" in result["sides"]["right"]
    assert result["sides"]["wrong"] == {"not run": "DOES NOT AGREE"}
    assert "FAILED" in result["sides"]["broken"]["not run"]
    assert len(result["failures"]) == 2 and "twice: 8 of 8 differ" in result["failures"][0]


def test_a_side_without_room_says_what_it_would_need():
    sides = {OURS: Side(lambda x: x), "large": Side(lambda x: x, needs=10**15)}
    result = run_case(case_of(sides), TINY, CpuClock())
    assert result["sides"]["large"] == {"not run": "would need 1e+06 GB"}


def test_sides_take_turns_and_slow_ones_give_fewer_samples():
    calls = []

    def slow(x):
        calls.append("slow")
        torch.cumsum(torch.rand(3_000_000), 0)

    sides = {OURS: Side(lambda x: calls.append("fast")), "slow": Side(slow)}
    plan = replace(TINY, seconds=0.05, samples=30)
    result = run_case(case_of(sides), plan, CpuClock())
    assert result["sides"][OURS]["samples"] > result["sides"]["slow"]["samples"] >= 2
    timed = calls[-sum(calls.count(name) for name in ("fast", "slow")) // 2 :]
    first, last = timed.index("slow"), len(timed) - 1 - timed[::-1].index("slow")
    assert "fast" in timed[first:last]


def test_input_sets_take_turns_where_a_sample_is_one_call():
    seen = []

    def look(x):
        time.sleep(0.002)  # longer than the shortest sample
        seen.append(x.sum().item())

    case = replace(case_of({OURS: Side(look)}), whole=True, fewest=8)
    run_case(case, replace(TINY, sizes="full", samples=8), CpuClock())
    assert len(set(seen[-8:])) == 4


def test_a_whole_program_has_no_ceiling_is_released_and_shows_its_images(tmp_path):
    given_up = []
    sides = {OURS: Side(lambda x: None, release=lambda: given_up.append(OURS)), "other": Side(lambda x: None)}
    result = run_case(replace(case_of(sides), subject="loader", bytes=0, whole=True, images=12), TINY, CpuClock())
    assert given_up == [OURS] and set(result["sides"]) == {OURS, "other"}
    document = {"kind": "cpu", "cases": [result], "ceilings": {"copy": 1e10, "fma": None}}
    columns, rows = times_of(document, "loader")
    assert columns == ["size", "libra_det", "other"]
    assert rows[0][1].endswith("images/s") and "x), " in rows[0][2]


def test_differences_are_found():
    one = torch.tensor([1.0, 2.0, torch.nan])
    close(one, one.clone(), "same")
    for other in (torch.tensor([1.0, 2.1, torch.nan]), torch.tensor([1.0, 2.0, 3.0]), torch.ones(2)):
        with pytest.raises(Mismatch):
            close(one, other, "other")
    with pytest.raises(Mismatch):
        mostly_equal(torch.zeros(1000), torch.cat([torch.ones(2), torch.zeros(998)]), "more than one in a thousand")


def test_bytes_counted_by_hand():
    # 3 boxes x 2 boxes: 5 boxes of 16 bytes, 6 pairs of 4.
    assert matrix_bytes(1, 3, 2) == 104
    # 10 boxes of 16 bytes; 2 targets of 16 and a flag each; index 8, IoU 4 and state 1 for each box.
    assert match_bytes(1, 10, 2, shared=True) == 160 + 34 + 130
    assert match_bytes(3, 10, 2, shared=True) == 160 + 3 * (34 + 130)
    assert match_bytes(3, 10, 2, shared=False) == 3 * (160 + 34 + 130)
    # 5 boxes of 4 deltas: prediction, target and gradient of 4 bytes each; one sum. Scaled: the gradient twice more.
    assert loss_bytes(5, 1.0) == 5 * 4 * 12 + 4
    assert loss_bytes(5) == 5 * 4 * 20 + 4


def test_visited_pairs_counted_by_hand():
    """300 images of 700 boxes of 5 px at x 0, 10, ...: warps of 128, the last of 60; targets in two of the warps."""
    left = torch.arange(700.0) * 10
    boxes = torch.stack([left, left * 0, left + 5, left * 0 + 5], -1)
    targets = torch.tensor([[100.0, 0, 102, 3], [6990, 0, 6991, 9], [0, 50, 9999, 60], [7000, 0, 8000, 5]])
    images, valid = targets.expand(300, 4, 4), torch.ones(300, 4, dtype=torch.bool)
    assert visited_pairs(boxes, images, valid) == 300 * (128 + 60)
    assert visited_pairs(boxes.expand(300, -1, -1), images, valid) == 300 * (128 + 60)
    assert visited_pairs(boxes, images[:2], valid[:2]) == 2 * 700 * 4  # small: no hulls


@pytest.mark.cuda
def test_a_host_that_is_slower_than_the_spin_is_not_hidden():
    clock = CudaClock(torch.device("cuda"))
    x = torch.ones(8, device="cuda")
    for pause, hidden in ((0.0, True), (0.02, False)):
        for _ in range(3):
            clock.sample(lambda pause=pause: (time.sleep(pause), x.add(1)), [()])
        assert (clock.enqueue <= clock.spin) == hidden


def test_the_anchors_are_those_of_the_image():
    anchors = inputs.anchors()
    assert anchors.shape == (inputs.ANCHORS, 4)
    sides = anchors[:, 2:] - anchors[:, :2]
    areas = sides.prod(1).sqrt()
    assert areas.unique().round().unique().tolist() == [32, 64, 128, 256, 512]


def test_proposals_begin_with_the_targets():
    generator = torch.Generator().manual_seed(0)
    targets = inputs.random_boxes(generator, 2, 5)
    proposals = inputs.proposals(generator, targets, 40)
    assert proposals.shape == (2, 40, 4) and torch.equal(proposals[:, :5], targets)
    assert (proposals[..., 2:] >= proposals[..., :2]).all()


def test_peak_memory_of_a_call_that_gives_it_back():
    """32 MB come and go, 8 MB are returned; asked again, the answer is the same.

    Whether the 8 MB lie in what the 32 left behind is the allocator's choice.
    """

    def call():
        torch.ones(8 << 20, dtype=torch.float32).add_(1)
        return torch.ones(2 << 20, dtype=torch.float32)

    for _ in range(2):
        found = memory.peak_on_cpu(call)
        assert found["result"] == 8 << 20
        assert 28 << 20 < found["peak"] < 44 << 20


def test_peak_memory_in_a_process_of_its_own():
    found = memory.peak_in_a_process("box_iou", "40 x 30", OURS, "tiny")
    assert found["result"] == 40 * 30 * 4
    assert found["peak"] < 8 << 20


def test_ceilings_are_plausible():
    """Between 100 MB and 10 TB a second, between 0.1 and 100,000 G multiply-adds."""
    found = measure_ceilings(CPU, copied_bytes=1 << 22)
    assert 1e8 < found["copy"] < 1e13
    assert found["fma"] is None or 1e8 < found["fma"] < 1e14
