"""`libra doctor` finds a broken operation, and says how to build a missing extension."""

import io
import sys

import pytest
import torch
from rich.console import Console

from libra_det.doctor import doctor

libra_ops = pytest.importorskip("libra_ops")


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=120)


def test_a_healthy_installation(console):
    assert doctor(console) is True
    text = console.file.getvalue()
    assert torch.__version__.split("+")[0] in text and "failed" not in text
    losses = ("balanced_l1_loss", "sigmoid_focal_loss", "box_regression_loss")
    for operation in ("box_iou", "match_boxes", "sample_iou_balanced", "nms_padded", *losses):
        assert operation in text


def test_an_operation_that_fails_or_is_wrong_is_found(console, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no kernel image [for] this device")

    monkeypatch.setattr(libra_ops, "match_boxes", broken)
    monkeypatch.setattr(libra_ops, "balanced_l1_loss", lambda pred, target, **_: (pred - target).abs().sum())
    assert doctor(console) is False
    text = console.file.getvalue()
    assert "failed: no kernel image [for] this device" in text
    assert "failed: gradient: expected [-1.5" in text


def test_a_missing_extension_is_explained(console, monkeypatch):
    monkeypatch.setitem(sys.modules, "libra_ops", None)
    assert doctor(console) is False
    assert "libra_ops cannot be used" in console.file.getvalue()
    assert "pip install -e ." in console.file.getvalue()
