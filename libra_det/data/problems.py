"""What is unusual in a data set: counted with one example each where it is handled, collected where it stops a run."""

from __future__ import annotations

from collections.abc import Iterable

from libra_det.terminal import printable

KINDS = {
    "partly_outside": "boxes reach more than a pixel out of their image: clipped",
    "outside": "boxes lie outside their image: left out",
    "no_area": "boxes have no area: left out",
    "inverted": "boxes have negative width or height: left out",
    "not_finite": "boxes hold NaN or infinity: left out",
    "unknown_image": "annotations belong to images that are not listed: left out",
    "outside_name": "file names lead elsewhere: the images of that name in the image folder are taken",
    "category_by_name": "categories have another id than in the training split: matched by name",
    "difficult": "objects are marked difficult: not trained on, and neither right nor wrong in evaluation",
    "no_objects": "images have no objects: not trained on unless skip_empty is off, always evaluated",
    "grayscale": "images are grayscale: the channel is repeated",
    "alpha": "images have an alpha channel: ignored",
    "palette": "images have a palette: converted to RGB",
    "high_depth": "images have 16 bits per pixel: the upper 8 are used",
    "other_colors": "images are neither RGB nor grayscale: converted to RGB",
    "rotated": "images are turned as their EXIF data says: boxes are taken to refer to the displayed image",
    "not_rotated": "images are annotated as stored, by their annotated size: their EXIF rotation is ignored",
}
"""Kinds of handled problems: what is counted and what is done about it."""

_SHOWN_ERRORS = 10


class AnnotationError(ValueError):
    """Mistakes that cannot be handled. The message shows the first ones; `errors` holds all of them."""

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = list(errors)
        more = len(self.errors) - _SHOWN_ERRORS
        rest = [f"... and {more} more; `libra check` lists them"] if more > 0 else []
        super().__init__("\n".join([*map(printable, self.errors[:_SHOWN_ERRORS]), *rest]))


class Problems:
    """Counts of handled problems with an example of each, and errors that are raised together.

    `counts` maps a kind (a key of `KINDS`) to how often it was met, `examples` to the file and annotation of the first;
    `errors` holds messages of what cannot be handled, in the order found.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, str] = {}
        self.errors: list[str] = []

    def add(self, kind: str, example: str, count: int = 1) -> None:
        """Counts a handled problem. `kind` is a key of `KINDS`; `example` names file and annotation."""
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.examples.setdefault(kind, example)

    def extend(self, other: Problems) -> None:
        """Takes over the counts, examples and errors of `other`."""
        for kind, count in other.counts.items():
            self.add(kind, other.examples[kind], count)
        self.errors.extend(other.errors)

    def raise_errors(self) -> None:
        """Raises one AnnotationError for all errors, if there are any."""
        if self.errors:
            raise AnnotationError(self.errors)

    def summary(self) -> str:
        """One line for each kind of handled problem; an empty string if there was none."""
        found = [kind for kind in KINDS if kind in self.counts]
        return "\n".join(
            f"{self.counts[kind]} {KINDS[kind]} (such as {printable(self.examples[kind])})" for kind in found
        )

    def __bool__(self) -> bool:
        return bool(self.counts or self.errors)
