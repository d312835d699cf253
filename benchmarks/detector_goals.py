"""The goals of whole detectors: a training step against torchvision's, what it waits for and needs, and its data."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import loader, photos
from benchmarks.case import OURS
from benchmarks.detectors import COCO, COCO_RETINA, SMALL
from benchmarks.goal import Goal, find, quotient
from benchmarks.train_step import COMPILED, GRAPH, OWN_NORM, PLAIN, TORCHVISION, case_name, in_format

STEP = "train_step"
THEIRS = (TORCHVISION, OWN_NORM)


def rate(value: float) -> str:
    return f"{value:.3g} images/s"


def times(value: float) -> str:
    return f"{value:.3g}"


def fastest(run: dict, case: str, *names: str) -> float | None:
    """Seconds of a step: the least of these sides, in either format; on a GPU with all that the host does."""
    sides = [
        side
        for one in (case, f"{case}, compiled")
        for name in names
        for last in (True, False)
        if (side := (find(run, STEP, one) or {"sides": {}})["sides"].get(in_format(name, last)))
    ]
    return min((side.get("call", side["median"]) for side in sides if "median" in side), default=None)


def over_torchvision(case: str, *names: str) -> Callable[[dict], float | None]:
    """Our time over torchvision's, each in its better format and torchvision with its faster batch norm."""
    return lambda run: quotient(fastest(run, case, *names), fastest(run, case, *THEIRS))


def torchvision_over(case: str, *names: str) -> Callable[[dict], float | None]:
    return lambda run: quotient(fastest(run, case, *THEIRS), fastest(run, case, *names))


def images_per_second(case: str, images: int, *names: str) -> Callable[[dict], float | None]:
    return lambda run: quotient(images, fastest(run, case, *names))


def waits(case: str) -> Callable[[dict], float | None]:
    """How often a step waits for the GPU."""

    def measure(run: dict) -> float | None:
        side = (find(run, STEP, case) or {"sides": {}})["sides"].get(OURS, {})
        counts = side.get("breakdown", {}).get("counts")
        return counts["synchronisations"] + counts["copies to the host"] if counts else None

    return measure


def peak_over_torchvision(case: str) -> Callable[[dict], float | None]:
    def measure(run: dict) -> float | None:
        sides = (find(run, STEP, case) or {"sides": {}})["sides"]
        return quotient(*(sides.get(name, {}).get("peak") for name in (OURS, TORCHVISION)))

    return measure


def loaded_over_trained(size: tuple[int, int], step: str, images: int, *names: str) -> Callable[[dict], float | None]:
    """Images a second of the data loader, with the number of processes that suits it best, over those of a step.

    Not measured without photos: drawn shapes are loaded in no time.
    """
    beginning = loader.case_name(size, 0).split(",")[0]

    def measure(run: dict) -> float | None:
        rates = [
            quotient(case["images"], case["sides"][OURS].get("median"))
            for case in run["cases"]
            if case["subject"] == "loader" and case["case"].startswith(beginning) and case.get("source") == photos.BCCD
        ]
        best = max((one for one in rates if one is not None), default=None)
        return quotient(best, quotient(images, fastest(run, step, *names)))

    return measure


def _cpu() -> list[Goal]:
    small = case_name(SMALL, amp=False)
    loaded = loaded_over_trained(loader.SMALL_SIZE, small, SMALL.batch, OURS)
    return [
        Goal(
            "cpu",
            STEP,
            f"{small}, plain pyramid, over torchvision's",
            0.8,
            over_torchvision(small, PLAIN),
            at_most=True,
        ),
        Goal(
            "cpu", STEP, f"{small}, all of Libra, over torchvision's", 0.9, over_torchvision(small, OURS), at_most=True
        ),
        Goal("cpu", "loader", f"images a second, over those of {small}", 1, loaded),
    ]


def _cuda() -> list[Goal]:
    found, ours = [], (OURS, GRAPH, COMPILED)
    for setting in (COCO, COCO_RETINA):
        case = case_name(setting, amp=True)
        found += [
            Goal("cuda", STEP, f"{case}, torchvision's time", 3, torchvision_over(case, *ours)),
            Goal("cuda", STEP, f"{case}", 200, images_per_second(case, setting.batch, *ours), rate),
            Goal("cuda", STEP, f"{case}, waits for the GPU in a step", 0, waits(case), times, at_most=True),
            Goal(
                "cuda",
                STEP,
                f"{case}, peak memory without a graph, over torchvision's",
                1,
                peak_over_torchvision(case),
                at_most=True,
            ),
        ]
    case = case_name(COCO, amp=True)
    loaded = loaded_over_trained(loader.COCO_SIZE, case, COCO.batch, *ours)
    return [*found, Goal("cuda", "loader", f"images a second, over those of {case}", 1, loaded)]


DETECTOR_GOALS = [*_cpu(), *_cuda()]
