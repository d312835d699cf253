"""What a published file's own configuration says that its tensors do not show: anchors, thresholds, sizes of images.

mmdetection keeps the configuration of a training in its checkpoints as the text of a Python file. It is read as data:
assignments of literals and of dict(...), nothing is executed. Where the text gives other values than the recipe that
the tensors fit, as after somebody's own training, these are what makes the detections equal.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from libra_det.config import Config
from libra_det.models import retinanet, roi_head, rpn
from libra_det.terminal import shown

_LARGEST = 1e18  # of numbers that are computed: each line of a hostile text could square the one before
_LONGEST = 2**17  # letters of a text; published ones have some ten thousand
_MOST_VALUES = 100_000  # of one name, counted as often as other names bring them in
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


@dataclass
class Settings:
    """Values for fields of `ModelConfig` and `DataConfig`, and what no field can be set to."""

    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    impossible: list[str] = field(default_factory=list)

    def applied(self, config: Config) -> tuple[Config, list[str]]:
        """The configuration with these settings, and which they changed.

        Raises:
            TypeError, ValueError: a value does not do for its field.
        """
        changed = []
        for part, values in (("model", self.model), ("data", self.data)):
            old = getattr(config, part)
            new = {name: value for name, value in values.items() if getattr(old, name) != value}
            config = replace(config, **{part: replace(old, **new)})  # which refuses what is no value of its field
            changed += [f"{name} {value} (recipe: {getattr(old, name)})" for name, value in new.items()]
        return config, changed


def settings_of(meta: dict[str, Any]) -> Settings:
    """The settings in the notes of a published file: `config` as mmdetection 2 writes it, or `cfg` as 3 does.

    Raises:
        ValueError: there is a configuration, but it cannot be read as data.
    """
    text = meta.get("config") or meta.get("cfg")
    if not isinstance(text, str):
        return Settings()
    values = read_assignments(text)
    settings = Settings()
    try:
        _read_model(values, settings)
        _read_data(values, settings)
    except (AttributeError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"has an unusual form ({error!r})") from error
    return settings


def read_assignments(text: str) -> dict[str, Any]:
    """The top-level names of a Python text with literals and dict(...); what else is in it is passed over.

    Raises:
        ValueError: it is no Python text, or it is far longer than a configuration.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"has {len(text)} letters")
    # The first line of some is the name of the file they were read from.
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if "=" in line), len(lines))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python about the style of the text
            tree = ast.parse("\n".join(lines[start:]))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"is no Python text ({error})") from error
    reader = _Reader()
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            reader.assign(statement.targets[0].id, statement.value)
    return reader.values


class _Reader:
    """Values of the names in a text. A list may name an earlier one, and so grow with every line: all are counted."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._counts: dict[str, int] = {}  # of values in each name
        self._count = 0  # of values in the statement that is read

    def assign(self, name: str, node: ast.expr) -> None:
        """Read a statement, or pass over it if it is no plain value."""
        self._count = 0
        try:
            value = self._value(node)
        except (ValueError, TypeError, RecursionError, OverflowError):
            return
        self.values[name], self._counts[name] = value, self._count

    def _add(self, count: int) -> None:
        self._count += count
        if self._count > _MOST_VALUES:
            raise ValueError(f"has more than {_MOST_VALUES} values")

    def _value(self, node: ast.AST) -> Any:
        self._add(1)
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, (ast.List, ast.Tuple)):
            return [self._value(item) for item in node.elts]
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            return {_checked_key(self._value(key)): self._value(value) for key, value in pairs if key}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
            return {keyword.arg: self._value(keyword.value) for keyword in node.keywords if keyword.arg}
        if isinstance(node, ast.Name) and node.id in self.values:
            self._add(self._counts[node.id])
            return self.values[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            number = self._value(node.operand)
            if isinstance(number, (int, float)):
                return -number
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = self._value(node.left), self._value(node.right)
            if all(isinstance(x, (int, float)) and abs(x) < _LARGEST for x in (left, right)) and right != 0:
                return _OPERATORS[type(node.op)](left, right)
        raise ValueError(f"{type(node).__name__} is no plain value")


def _checked_key(key: Any) -> Any:
    """Text or a small number. (Large numbers can be chosen so that all collide in a dictionary.)"""
    if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < 2**31):
        raise ValueError("a key is neither text nor a small number")
    return key


def _read_model(values: dict[str, Any], settings: Settings) -> None:
    model = values.get("model") or {}
    found = settings.model
    style = (model.get("backbone") or {}).get("style", "pytorch")
    if style != "pytorch":
        settings.impossible.append(f"a backbone of style {shown(style)}, whose strides are in other convolutions")
    for neck in _list(model.get("neck")):
        if neck.get("relu_before_extra_convs"):
            settings.impossible.append("a ReLU before the pyramid's coarser levels")
        if (neck.get("upsample_cfg") or {}).get("mode", "nearest") != "nearest":
            settings.impossible.append(f"a pyramid enlarged by {shown(neck['upsample_cfg'])}")
        if neck.get("type") == "BFP":
            _take(found, "refine_level", neck, "refine_level")
            found["pyramid"] = neck.get("refine_type") or "mean"  # which has no tensors
    test = model.get("test_cfg") or values.get("test_cfg") or {}
    roi = model.get("roi_head") or model  # 1.x had no roi_head
    if model.get("type") == "RetinaNet":
        head = model.get("bbox_head") or {}
        last = test
        _take(found, "retina_candidates_per_level", test, "nms_pre")
        _expect_plain_anchors(head, retinanet.STRIDES, settings)
        _expect(True, head.get("loss_cls") or {}, settings, "use_sigmoid")
    else:
        head = model.get("rpn_head") or {}
        last = test.get("rcnn") or {}
        first = test.get("rpn") or {}
        _take(found, "proposals_per_level_test", first, "nms_pre")
        _take(found, "proposals_test", first, "max_per_img", "max_num")
        _take(found, "proposal_nms_iou", {**first, **(first.get("nms") or {})}, "iou_threshold", "iou_thr", "nms_thr")
        _expect(False, first, settings, "nms_across_levels")
        _expect_plain_anchors(head, rpn.STRIDES, settings)
        box_head = (_list(roi.get("bbox_head")) or [{}])[0]
        _take(found, "roi_delta_stds", {**box_head, **(box_head.get("bbox_coder") or {})}, "target_stds")
        extractor = (_list(roi.get("bbox_roi_extractor")) or [{}])[0]
        layer = extractor.get("roi_layer") or {}
        _take(found, "roi_finest_scale", extractor, "finest_scale")
        _take(found, "roi_size", layer, "output_size", "out_size")
        _take(found, "roi_sampling_ratio", layer, "sampling_ratio", "sample_num")
        _expect("RoIAlign", layer, settings, "type")
        _expect(True, layer, settings, "aligned")
        _expect("SingleRoIExtractor", extractor, settings, "type")
        _expect(list(roi_head.STRIDES), extractor, settings, "featmap_strides")
        _expect(False, box_head.get("loss_cls") or {}, settings, "use_sigmoid")
    _take(found, "score_threshold", last, "score_thr")
    _take(found, "detections_per_image", last, "max_per_img")
    nms = last.get("nms") or {}
    _take(found, "nms_iou", nms, "iou_threshold", "iou_thr")
    if nms.get("type", "nms") != "nms":
        settings.impossible.append(f"{shown(nms['type']).strip(chr(39))} in place of non-maximum suppression")
    anchors = {**head, **(head.get("anchor_generator") or {})}
    _take(found, "anchor_ratios", anchors, "ratios", "anchor_ratios")
    _take(found, "anchor_scales_per_octave", anchors, "scales_per_octave")
    scales = _list(anchors.get("octave_base_scale") or anchors.get("scales") or anchors.get("anchor_scales"))
    if len(scales) == 1:
        found["anchor_scale"] = scales[0]
    elif scales:
        settings.impossible.append(f"anchors of several scales {shown(scales)}")


def _expect_plain_anchors(head: dict[str, Any], strides: tuple[int, ...], settings: Settings) -> None:
    """RPN and RetinaNet have deltas without standardisation here, and anchors that are centred on the grid."""
    values = {**head, **(head.get("bbox_coder") or {}), **(head.get("anchor_generator") or {})}
    _expect([1] * 4, values, settings, "target_stds")
    _expect([0] * 4, values, settings, "target_means")
    _expect(list(strides), values, settings, "strides", "anchor_strides")
    _expect(0, values, settings, "center_offset")


def _expect(possible: Any, values: dict[str, Any], settings: Settings, *keys: str) -> None:
    """What is there under one of the keys has to be this; no tensor shows it."""
    for key in keys:
        if values.get(key) not in (None, possible):
            settings.impossible.append(f"{key} {shown(values[key])} instead of {possible}")


def _read_data(values: dict[str, Any], settings: Settings) -> None:
    found = settings.data
    loader = values.get("test_dataloader") or {}
    for place in (
        (values.get("data") or {}).get("test"),
        loader.get("dataset"),
        {"pipeline": values.get("test_pipeline")},
    ):
        for step in _steps(place):
            scale = step.get("img_scale") or step.get("scale")
            if step.get("type") in ("Resize", "MultiScaleFlipAug") and scale and isinstance(scale, list):
                scale = scale[0] if isinstance(scale[0], list) else scale
                found["long_side"], found["short_side"] = max(scale), min(scale)
            if step.get("type") == "Resize" and step.get("keep_ratio") is False:
                settings.impossible.append("images resized without keeping their ratio")
            if step.get("type") == "Normalize":
                _read_pixels(step, "to_rgb", settings)
            if step.get("type") == "Pad":
                _take(found, "size_divisor", step, "size_divisor")
    model = values.get("model") or {}
    preprocessor = model.get("data_preprocessor") or {}
    _read_pixels(preprocessor, "bgr_to_rgb", settings)
    _take(found, "size_divisor", preprocessor, "pad_size_divisor")


def _read_pixels(step: dict[str, Any], to_rgb: str, settings: Settings) -> None:
    _take(settings.model, "pixel_mean", step, "mean")
    _take(settings.model, "pixel_std", step, "std")
    if step.get("mean") is not None and step.get(to_rgb) is False:
        settings.impossible.append("pixels in the order blue, green, red")


def _steps(value: Any, seen: set[int] | None = None) -> Iterator[dict[str, Any]]:
    """Every dictionary with a `type` in a pipeline, with those inside it; what a text names many times, once."""
    seen = set() if seen is None else seen
    if isinstance(value, (dict, list)):
        if id(value) in seen:
            return
        seen.add(id(value))
    if isinstance(value, dict):
        if "type" in value:
            yield value
        for inner in value.values():
            yield from _steps(inner, seen)
    elif isinstance(value, list):
        for inner in value:
            yield from _steps(inner, seen)


def _take(found: dict[str, Any], name: str, values: dict[str, Any], *keys: str) -> None:
    """found[name] = what is there under the first of the keys; lists become tuples, as in the configuration."""
    for key in keys:
        value = values.get(key)
        if value is not None:
            found[name] = tuple(value) if isinstance(value, list) else value
            return


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
