"""`libra_ops.nms_padded`, as `postprocess` calls it, in ONNX's operations."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper
from onnxscript import opset18 as op

_NO_SCORE = -1.0  # below every score, which are in 0..1
_UNLIMITED = np.iinfo(np.int64).max


def nms_padded(boxes, scores, groups, iou_threshold: float, max_output: int, score_threshold, valid):
    """Arguments and results of the operator, with `groups` and `valid` given and `score_threshold` None.

    The valid slots of all images are one list of M boxes, and each group of each image one "class" of ONNX's
    NonMaxSuppression, in which the others' boxes have no score. It compares in float32.
    """
    chosen = op.Reshape(op.NonZero(op.Reshape(valid, [-1])), [-1])  # [M]
    batch = op.Slice(op.Shape(valid), [0], [1])  # [1]
    image = op.Unsqueeze(op.Range(_number(0), op.Squeeze(batch), _number(1)), [1])  # [B, 1]
    group = op.Gather(op.Reshape(op.Add(op.Mul(groups, batch), image), [-1]), chosen)
    # One slot more, without a score: some operations would not work on none at all.
    group = op.Concat(group, _array([0], np.int64), axis=0)
    own_boxes = op.Concat(op.Gather(op.Reshape(boxes, [-1, 4]), chosen), _array([[0.0] * 4], np.float32), axis=0)
    own_scores = op.Concat(op.Gather(op.Reshape(scores, [-1]), chosen), _array([_NO_SCORE], np.float32), axis=0)
    groups_used = op.Range(_number(0), op.Add(op.ReduceMax(group, keepdims=0), _number(1)), _number(1))
    own_group = op.Equal(op.Unsqueeze(groups_used, [1]), op.Unsqueeze(group, [0]))  # [groups, M + 1]
    by_group = op.Where(own_group, op.Unsqueeze(own_scores, [0]), _array(_NO_SCORE, np.float32))
    found = op.NonMaxSuppression(  # [survivors, 3]: 0, group, position among the M + 1
        op.Unsqueeze(own_boxes, [0]),
        op.Unsqueeze(by_group, [0]),
        _array([_UNLIMITED], np.int64),
        _array([iou_threshold], np.float32),
        _array([_NO_SCORE / 2], np.float32),
    )
    survivors = op.Gather(chosen, op.Gather(found, _number(2), axis=1))
    slots = op.Shape(op.Reshape(valid, [-1]))
    none = op.ConstantOfShape(slots, value=numpy_helper.from_array(np.array([False])))
    yes = op.ConstantOfShape(op.Shape(survivors), value=numpy_helper.from_array(np.array([True])))
    kept = op.Reshape(op.ScatterElements(none, survivors, yes, axis=0), op.Shape(valid))  # [B, N]
    ranked = op.Where(kept, scores, _array(_NO_SCORE, np.float32))
    wanted = op.Min(_array([max_output], np.int64), op.Slice(op.Shape(valid), [1], [2]))  # [1]: K
    best, index = op.TopK(ranked, wanted, axis=1)  # [B, K] each; of equal scores the lower index first
    return index, op.Greater(best, _array(_NO_SCORE / 2, np.float32))


def _array(values: object, dtype: type):
    return op.Constant(value=numpy_helper.from_array(np.array(values, dtype)))


def _number(value: int):
    return _array(value, np.int64)
