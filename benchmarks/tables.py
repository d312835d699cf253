"""The tables of a run: the same rows for the terminal (rich) and for RESULTS.md (Markdown)."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from benchmarks.case import COPY, OURS
from benchmarks.subjects import SUBJECTS


def seconds(value: float) -> str:
    """Three digits, in the unit that suits."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * factor >= 1 or unit == "us":
            return f"{value * factor:.3g} {unit}" if value * factor < 1000 else f"{value * factor:,.0f} {unit}"
    raise AssertionError


def size(value: float) -> str:
    """Bytes, in the unit that suits (1 MB is 10^6 bytes)."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"


def ratio(value: float) -> str:
    return f"{value:.2f}x" if value < 10 else f"{value:.0f}x"


def times_of(document: dict, subject: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: the case, our time with quartiles, and every other side with its time over ours."""
    cases = [case for case in document["cases"] if case["subject"] == subject]
    others = [name for name in dict.fromkeys(n for case in cases for n in case["sides"]) if name not in (OURS, COPY)]
    cuda = document["kind"] == "cuda"
    columns = ["size", title_of(subject), *(["with launches"] if cuda else []), *others, "ceiling"]
    rows = []
    for case in cases:
        ours, images = case["sides"][OURS], case.get("images", 0)
        row = [case["case"], _ours(ours, images), *([seconds(ours["call"]) if "call" in ours else ""] if cuda else [])]
        row += [_other(case["sides"].get(name), ours, images) for name in others]
        rows.append([*row, share_of_ceiling(case, document)[1]])
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return columns, rows


def _ours(side: dict, images: int) -> str:
    if "not run" in side:
        return side["not run"]
    spread = f"({seconds(side['low'])} to {seconds(side['high'])})"
    return f"{seconds(side['median'])} {spread}{_rate(side, images)}{_visible(side)}"


def _other(side: dict | None, ours: dict, images: int) -> str:
    if side is None:
        return ""
    if "not run" in side:
        return side["not run"]
    times = f" ({ratio(side['median'] / ours['median'])})" if "median" in ours else ""
    return f"{seconds(side['median'])}{times}{_rate(side, images)}{_visible(side)}"


def _rate(side: dict, images: int) -> str:
    return f", {images / side['median']:.3g} images/s" if images else ""


def _visible(side: dict) -> str:
    """A mark where the host took longer to enqueue a call than the GPU was kept busy."""
    return "" if side.get("hidden", True) else ", host not hidden"


def remarks_of(document: dict, subject: str) -> list[str]:
    """Where a side's result differs from ours, or was not compared."""
    found = dict.fromkeys(
        f"{name}: {words}"
        for case in document["cases"]
        if case["subject"] == subject
        for name, words in case["checks"].items()
        if words != "agrees"
    )
    return list(found)


def share_of_ceiling(case: dict, document: dict) -> tuple[float | None, str]:
    """Our share of what binds, and in words: of the copy of the same bytes, or of the multiply-adds.

    Operations are nominal, without culling; where the visited pairs were counted, theirs follow and are the share.
    """
    ours = case["sides"][OURS]
    if "not run" in ours:
        return None, ""
    if case["operations"]:
        most = document["ceilings"]["fma"]
        share, words = _of_multiply_adds(case["operations"] / ours["median"], most)
        words = f"nominal {words}"
        if "visits" in case:
            share, visited = _of_multiply_adds(case["visit operations"] / ours["median"], most)
            words += f"; visited {case['visits'] / case['size']:.0%} of pairs: {visited}"
        return share, words
    if COPY not in case["sides"]:
        return None, ""
    share = case["sides"][COPY]["median"] / ours["median"]
    return share, f"{case['bytes'] / ours['median'] / 1e9:,.3g} GB/s, {share:.0%} of copy"


def _of_multiply_adds(rate: float, most: float | None) -> tuple[float | None, str]:
    words = f"{rate / 1e9:,.0f} G/s"
    return (rate / most, f"{words}, {rate / most:.0%} of FMA") if most else (None, words)


def memory_of(document: dict, subject: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: peak memory beyond the inputs, of cases where it was measured."""
    cases = [
        case
        for case in document["cases"]
        if case["subject"] == subject and any("peak" in side for side in case["sides"].values())
    ]
    others = [name for name in dict.fromkeys(n for case in cases for n in case["sides"]) if name != COPY]
    rows = []
    for case in cases:
        cells = []
        for name in others:
            side = case["sides"].get(name, {})
            words = f"{size(side['peak'])}, of which result {size(side['result'])}" if "peak" in side else ""
            cells.append(words or side.get("not run", ""))
        rows.append([case["case"], *cells])
    return ["size", *(title_of(subject) if name == OURS else name for name in others)], rows


def title_of(subject: str) -> str:
    """What our side is called in a subject's tables: libra_ops, or libra_det where whole detectors compete."""
    return getattr(SUBJECTS[subject], "OURS_IS", OURS)


def breakdowns_of(document: dict, subject: str) -> list[tuple[list[str], list[list[str]]]]:
    """For each case that has one, columns and rows: where the time of each side goes, and how often it waits."""
    tables = []
    for case in document["cases"]:
        found = {name: side["breakdown"] for name, side in case["sides"].items() if "breakdown" in side}
        if case["subject"] != subject or not found:
            continue
        rows = [["a call", *(seconds(one["seconds"]) for one in found.values())]]
        for part in dict.fromkeys(part for one in found.values() for part in one["parts"]):
            rows.append([part, *(_share(one["parts"].get(part, 0.0), one["seconds"]) for one in found.values())])
        for what in dict.fromkeys(what for one in found.values() for what in one["counts"]):
            rows.append([f"{what}, times", *(f"{one['counts'].get(what, 0):.3g}" for one in found.values())])
        rows.append(["multiply-adds", *(f"{one['multiply-adds'] / 1e9:.3g} G" for one in found.values())])
        tables.append(([case["case"], *(title_of(subject) if name == OURS else name for name in found)], rows))
    return tables


def _share(part: float, whole: float) -> str:
    return f"{seconds(part)}, {part / whole:.0%}" if part else ""


def print_results(document: dict, console: Console) -> None:
    ceilings = document["ceilings"]
    fma = f"{ceilings['fma'] / 1e9:,.0f} G/s" if ceilings["fma"] else "not measured"
    console.print(f"{document['device']}; copy {ceilings['copy'] / 1e9:,.3g} GB/s, multiply-adds {fma}")
    for subject in dict.fromkeys(case["subject"] for case in document["cases"]):
        for what, (columns, rows) in (
            ("time (times ours)", times_of(document, subject)),
            ("peak memory beyond the inputs", memory_of(document, subject)),
            *(("where the time goes", one) for one in breakdowns_of(document, subject)),
        ):
            if not rows:
                continue
            table = Table(*columns, title=f"{SUBJECTS[subject].TITLE}: {what}", title_justify="left")
            for row in rows:
                table.add_row(*row)
            console.print(table)
        for remark in remarks_of(document, subject):
            console.print(remark, soft_wrap=True, markup=False)


def print_failures(document: dict, console: Console) -> list[str]:
    """Every side that failed or disagreed; returns them."""
    failures = [failure for case in document["cases"] for failure in case["failures"]]
    for failure in failures:
        console.print(f"FAILED {failure}", soft_wrap=True, style="bold red", markup=False)
    return failures


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
