"""The printed tables."""

import io

from rich.console import Console

from libra_det.metrics import evaluate_results
from libra_det.report import print_metrics


def test_names_are_printed_as_they_are():
    names = ("[red]apple", "[/]", ":cat:")
    truth = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
        "categories": [{"id": id, "name": name} for id, name in enumerate(names, start=1)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}],
    }
    console = Console(file=io.StringIO(), width=120)
    print_metrics(evaluate_results(truth, []), "runs/[bold]x", console)
    text = console.file.getvalue()
    assert all(name in text for name in (*names, "runs/[bold]x"))
