"""The goals, each with how it is measured from a run's JSON. RESULTS.md begins with this table.

A goal's `measure` takes the run and returns the number, or None where the run has not what it needs.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.balanced_l1_loss import bytes_moved as loss_bytes
from benchmarks.case import COMPILED, COPY, EAGER, OURS
from benchmarks.detector_goals import DETECTOR_GOALS
from benchmarks.goal import Goal, find, percent, quotient, time_of
from benchmarks.match_and_sample import GRAPH, PUBLISHED
from benchmarks.tables import seconds, size

TORCHVISION = "torchvision"


def over_ours(subject: str, case: str, side: str) -> Callable[[dict], float | None]:
    """How many times our time the side takes."""
    return lambda run: quotient(time_of(find(run, subject, case), side), time_of(find(run, subject, case), OURS))


def ours_over(subject: str, case: str, side: str) -> Callable[[dict], float | None]:
    return lambda run: quotient(time_of(find(run, subject, case), OURS), time_of(find(run, subject, case), side))


def extra_memory(subject: str, case: str) -> Callable[[dict], float | None]:
    def measure(run: dict) -> float | None:
        side = (find(run, subject, case) or {"sides": {}})["sides"].get(OURS, {})
        return side.get("peak")

    return measure


def share_of_copy(subject: str, case: str) -> Callable[[dict], float | None]:
    """Bytes a second over those of a large copy."""

    def measure(run: dict) -> float | None:
        found = find(run, subject, case)
        return quotient(quotient(found and found["bytes"], time_of(found, OURS)), run["ceilings"]["copy"])

    return measure


def share_of_fma(subject: str, case: str) -> Callable[[dict], float | None]:
    """Operations of the visited pairs a second, over the multiply-adds; None where visits were not counted."""

    def measure(run: dict) -> float | None:
        found = find(run, subject, case)
        done = found.get("visit operations") if found else None
        return quotient(quotient(done, time_of(found, OURS)), run["ceilings"]["fma"])

    return measure


def compiled_over_ours(case: dict) -> float | None:
    """torch.compile's time over ours: the smaller of the ratios of the device's time and of the whole call's."""
    sides = [case["sides"].get(name, {}) for name in (COMPILED, OURS)]
    ratios = [quotient(*(side.get(clock) for side in sides)) for clock in ("median", "call")]
    return min(ratios) if None not in ratios else None


def cases_of_goal(run: dict, subject: str, training: bool) -> list[dict]:
    return [case for case in run["cases"] if case["subject"] == subject and (case["training"] or not training)]


def least_over_ours(subject: str, training: bool) -> Callable[[dict], float | None]:
    """`compiled_over_ours`, the least of all sizes (training: of training sizes) where both ran."""

    def measure(run: dict) -> float | None:
        ratios = map(compiled_over_ours, cases_of_goal(run, subject, training))
        return min((one for one in ratios if one is not None), default=None)

    return measure


def cases_counted(subject: str, training: bool) -> Callable[[dict], str]:
    def words(run: dict) -> str:
        cases = cases_of_goal(run, subject, training)
        in_it = [case["case"] for case in cases if compiled_over_ours(case) is not None]
        left_out = [case["case"] for case in cases if compiled_over_ours(case) is None]
        return f"counted: {'; '.join(in_it) or 'none'}" + (f". Not run: {'; '.join(left_out)}" if left_out else "")

    return words


def _cpu() -> list[Goal]:
    match, large = "200,000 x 100", "200,000 x 10,000"
    found = [
        Goal("cpu", "match_boxes", f"{match}, torch.compile's time", 10, over_ours("match_boxes", match, COMPILED)),
        Goal("cpu", "match_boxes", f"{match}, eager's time", 60, over_ours("match_boxes", match, EAGER)),
        Goal("cpu", "match_boxes", f"{large}, extra memory", 1e8, extra_memory("match_boxes", large), size, True),
    ]
    for targets in (10, 50, 100):
        case = f"R-CNN, 1 x 2,000 x {targets}"
        words = f"match + sample, 2,000 x {targets}, the published algorithm's time"
        found.append(Goal("cpu", "match_and_sample", words, 20, over_ours("match_and_sample", case, PUBLISHED)))
    loss, one, small, matrix = "200,000 x 4", "200,000 x 4, factor 1", "512 x 4", "2,000 x 2,000"
    return [
        *found,
        Goal(
            "cpu",
            "balanced_l1_loss",
            f"{loss}, torch.compile's time",
            1.5,
            over_ours("balanced_l1_loss", loss, COMPILED),
        ),
        Goal(
            "cpu",
            "balanced_l1_loss",
            f"{loss}, over the time of copying the same {size(loss_bytes(200_000))}",
            2,
            ours_over("balanced_l1_loss", loss, COPY),
            at_most=True,
        ),
        Goal(
            "cpu",
            "balanced_l1_loss",
            f"{one}, over the time of copying the same {size(loss_bytes(200_000, 1.0))}",
            2,
            ours_over("balanced_l1_loss", one, COPY),
            at_most=True,
        ),
        Goal("cpu", "balanced_l1_loss", f"{small}, eager's time", 1, over_ours("balanced_l1_loss", small, EAGER)),
        Goal("cpu", "box_iou", f"{matrix}, torch.compile's time", 2, over_ours("box_iou", matrix, COMPILED)),
        Goal("cpu", "box_iou", f"{matrix}, torchvision's time", 5, over_ours("box_iou", matrix, TORCHVISION)),
    ]


def _cuda() -> list[Goal]:
    matrix, loss, match = "16,384 x 16,384", "4,000,000 x 4", "RPN, 16 x 268,569 x 500"
    batch = "R-CNN, 16 x 2,000 x 50"
    found = [
        Goal("cuda", "box_iou", f"{matrix}, of copy bandwidth", 0.85, share_of_copy("box_iou", matrix), percent),
        Goal(
            "cuda",
            "balanced_l1_loss",
            f"{loss}, of copy bandwidth",
            0.85,
            share_of_copy("balanced_l1_loss", loss),
            percent,
        ),
        Goal(
            "cuda",
            "match_boxes",
            f"{match}, visited pairs, of FMA peak",
            0.6,
            share_of_fma("match_boxes", match),
            percent,
        ),
        Goal(
            "cuda",
            "match_and_sample",
            "match + sample, 16 x 2,000 x 50, a graph replay",
            25e-6,
            lambda run: time_of(find(run, "match_and_sample", batch), GRAPH),
            seconds,
            True,
        ),
    ]
    subjects = ("match_boxes", "sample_iou_balanced", "balanced_l1_loss", "box_iou")
    for training, limit, words in ((True, 3, "training sizes"), (False, 1, "any size of the sweep")):
        for subject in subjects:
            found.append(
                Goal(
                    "cuda",
                    subject,
                    f"{words}, torch.compile's time, the least, device alone or whole call",
                    limit,
                    least_over_ours(subject, training),
                    counted=cases_counted(subject, training),
                )
            )
    return found


GOALS = [*_cpu(), *_cuda(), *DETECTOR_GOALS]
COLUMNS = ["operation", "goal", "expected", "measured", ""]


def goal_rows(kind: str, runs: list[dict]) -> list[list[str]]:
    """A row for each goal of this kind of device, with what every run measured."""
    rows = []
    for goal in GOALS:
        if goal.kind == kind:
            limit = f"{'at most' if goal.at_most else 'at least'} {goal.show(goal.limit)}"
            counted = dict.fromkeys(goal.counted(run) for run in runs) if goal.counted else {}
            rows.append([goal.subject, ". ".join([goal.words, *counted]), limit, *_verdict(goal, runs)])
    return rows


def _verdict(goal: Goal, runs: list[dict]) -> tuple[str, str]:
    values = [goal.measure(run) for run in runs if any(case["subject"] == goal.subject for case in run["cases"])]
    met = [goal.met(value) for value in values if value is not None]
    if not met:
        return "not measured", ""
    words = "met" if all(met) else "**missed**" if not any(met) else f"**met in {sum(met)} of {len(met)} runs**"
    return " / ".join("not measured" if value is None else goal.show(value) for value in values), words
