"""The tables that the commands print."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from libra_det.metrics import Metrics
from libra_det.terminal import short

FEW_CLASSES = 30  # in longer tables those without objects are left out
MANY_CLASSES = 2000  # lines of the longest table

_MEANING = {
    "AP": "mean over IoU 0.50:0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "objects under 32² pixels",
    "APm": "objects of 32² to 96² pixels",
    "APl": "objects over 96² pixels",
    "AR1": "recall, 1 detection an image",
    "AR10": "recall, 10 detections an image",
    "AR100": "recall, 100 detections an image",
    "ARs": "recall, objects under 32² pixels",
    "ARm": "recall, objects of 32² to 96² pixels",
    "ARl": "recall, objects over 96² pixels",
}


def print_metrics(metrics: Metrics, title: str, console: Console | None = None) -> None:
    """COCO's twelve numbers, and a line for each class. `[red]` and `:cat:` in names mean nothing."""
    console = console or Console()
    table = Table(title=Text(short(title), style="table.title"), title_justify="left")
    table.add_column("COCO")
    table.add_column("value", justify="right")
    table.add_column("of")
    for name, value in metrics.coco.items():
        table.add_row(name, number(value), _MEANING[name])
    table.add_row("VOC AP50", number(metrics.voc_ap50), "Pascal VOC, all points")
    console.print(table)
    classes = Table()
    classes.add_column("class", overflow="fold")
    for column in ("AP", "AP50", "VOC AP50"):
        classes.add_column(column, justify="right")
    shown = {
        name: value for name, value in metrics.class_ap.items() if value >= 0 or len(metrics.class_ap) <= FEW_CLASSES
    }
    for name, value in list(shown.items())[:MANY_CLASSES]:
        others = (number(values[name]) for values in (metrics.class_ap50, metrics.class_voc_ap50))
        classes.add_row(Text(short(name)), number(value), *others)
    console.print(classes)
    if len(shown) > MANY_CLASSES:
        console.print(f"... and {len(shown) - MANY_CLASSES} more classes with objects")
    if len(shown) < len(metrics.class_ap):
        console.print(f"{len(metrics.class_ap) - len(shown)} classes have no objects in these images and are not shown")


def number(value: float) -> str:
    """Three decimals; n/a for COCO's -1, which stands where the data has no object to measure with."""
    return "n/a" if value < 0 else f"{value:.3f}"
