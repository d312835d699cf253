"""Exported files give the detections of the model that they were made from, at every size and batch length."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from libra_det import cli, recipes
from libra_det.config import Config
from libra_det.data.images import load_image, resize_and_pad
from libra_det.export import export_detector
from libra_det.export.graph import ExportableDetector, side_divisor, smallest_side
from libra_det.models import build_model, postprocess
from libra_det.predict import Detector
from libra_det.weights.load import metadata

CPU = torch.device("cpu")
CATEGORIES = [(3, "red box"), (7, "green box"), (90, "blue box")]
pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch's, about its own functions


def make_detector(**model) -> Detector:
    """The small model of recipe `shapes` at random, with scores that are spread enough to have one order."""
    torch.manual_seed(0)
    config = recipes.shapes()
    small = {"fpn_channels": 32, "fc_channels": 64, "retina_convs": 1, "proposals_per_level_test": 300}
    config = replace(config, model=replace(config.model, score_threshold=0.0, **{**small, **model}))
    detector = Detector(build_model(config.model, len(CATEGORIES)), config, CATEGORIES, CPU)
    with torch.no_grad():
        for name, parameter in detector.model.named_parameters():
            if any(last in name for last in ("fc_cls", "fc_reg", "rpn_cls", "rpn_reg", "retina_cls", "retina_reg")):
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return detector


def detectors() -> dict[str, Detector]:
    return {
        "faster_rcnn": make_detector(roi_sampling_ratio=0),
        "retinanet": make_detector(detector="retinanet", anchor_scales_per_octave=3, refine_level=1),
    }


def batch_of(height: int, width: int, images: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(height * width)
    coarse = torch.randint(0, 256, (images, 3, height // 16, width // 16), generator=generator).float()
    pixels = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").to(torch.uint8)
    sizes = torch.tensor([[height - 5.0, width - 9.0]] * images)
    return pixels, sizes, sizes * 1.5


def check_same(run, detector: Detector, inputs: tuple[torch.Tensor, ...], boxes: float, scores: float) -> None:
    with torch.no_grad():
        expected = ExportableDetector(detector.model)(*inputs)
    found = run(*inputs)
    assert not any(tensor.requires_grad for tensor in found)
    slots = detector.config.model.detections_per_image
    assert found[0].shape == (len(inputs[0]), slots, 4) and found[1].shape == found[2].shape == found[3].shape
    assert expected[3].sum() >= slots // 2
    assert (found[0] - expected[0]).abs().max() <= boxes
    assert (found[1] - expected[1]).abs().max() <= scores
    assert torch.equal(found[2], expected[2]) and torch.equal(found[3], expected[3])


SIZES = [(160, 192, 1), (224, 160, 3), (352, 416, 2)]  # odd and even numbers of cells on the coarser levels


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_pt2_gives_the_same_detections(kind, tmp_path, libra_data, capsys):
    """Written by the command, beside the file of weights that it is given."""
    detector = detectors()[kind]
    facts = metadata(detector.config, CATEGORIES, "first.pth")
    save_file(detector.model.state_dict(), tmp_path / "W.safetensors", facts)
    assert cli.main(["export", str(tmp_path / "W.safetensors")]) == 0
    text = capsys.readouterr().out
    side = smallest_side(detector.config)
    assert f"written to {tmp_path / 'W.pt2'}" in text
    assert f"images: uint8 [B, 3, H, W] RGB, zeros beyond each image, H and W multiples of 32, at least {side}" in text
    assert "Not inside: decoding, resizing and padding of images" in text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["W.pt2", "W.safetensors"]

    stored = {"metadata.json": ""}
    run = torch.export.load(tmp_path / "W.pt2", extra_files=stored).module()
    for size in SIZES:
        check_same(run, detector, batch_of(*size), boxes=1e-3, scores=1e-5)
    check_photo(run, detector, libra_data)
    check_metadata(json.loads(stored["metadata.json"]), detector, "W.safetensors", "torchvision::nms")
    small = torch.zeros(1, 3, 32, 160, dtype=torch.uint8)
    with pytest.raises(Exception, match=rf"images.size\(\)\[2\] >= {side}"):
        run(small, torch.tensor([[32.0, 160.0]]), torch.tensor([[32.0, 160.0]]))


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_onnx_gives_the_same_detections(kind, tmp_path, libra_data):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    detector = detectors()[kind]
    file = tmp_path / "new" / "detector.onnx"
    facts = export_detector(detector, file, "onnx", source="runs/mine")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["images", "sizes", "original_sizes"]
    assert [value.name for value in session.get_outputs()] == ["boxes", "scores", "labels", "valid"]

    def run(*inputs):
        named = dict(zip(("images", "sizes", "original_sizes"), (value.numpy() for value in inputs), strict=True))
        return [torch.from_numpy(value) for value in session.run(None, named)]

    for size in SIZES:
        check_same(run, detector, batch_of(*size), boxes=5e-3, scores=1e-4)
    check_photo(run, detector, libra_data)
    stored = session.get_modelmeta().custom_metadata_map
    assert stored == facts
    check_metadata(stored, detector, "runs/mine", "ONNX NonMaxSuppression")


def check_photo(run, detector, libra_data) -> None:
    photo = load_image(sorted((libra_data / "coco_free" / "images").iterdir())[0])
    images, sizes = resize_and_pad([photo], replace(detector.config.data, short_side=192, long_side=320))
    original_sizes = torch.tensor([photo.shape[1:]], dtype=torch.float32)
    check_same(run, detector, (images, sizes, original_sizes), boxes=2e-2, scores=1e-4)


def check_metadata(stored, detector, source, nms) -> None:
    assert Config.from_json(stored["config"]) == detector.config
    assert json.loads(stored["class_names"]) == ["red box", "green box", "blue box"]
    assert json.loads(stored["category_ids"]) == [3, 7, 90]
    assert json.loads(stored["categories"]) == [list(category) for category in CATEGORIES]
    assert nms in stored["contents"] and stored["source"] == source


class Suppress(nn.Module):
    def forward(self, boxes, scores, groups, valid):
        return postprocess.non_maximum_suppression(boxes, scores, groups, valid, 0.5, 100)


def candidates(share_valid: float) -> tuple[torch.Tensor, ...]:
    """Boxes of two images in three groups, many of which overlap; what is not valid may hold anything."""
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(2, 120, 2, generator=generator) * 60
    boxes = torch.cat((corner, corner + 10 + torch.rand(2, 120, 2, generator=generator) * 30), -1)
    valid = torch.rand(2, 120, generator=generator) < share_valid
    boxes = torch.where(valid[..., None], boxes, torch.nan)
    scores = torch.rand(2, 120, generator=generator)
    return boxes, scores, torch.randint(0, 3, (2, 120), generator=generator), valid


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_suppression_keeps_the_same_boxes_also_of_none_and_one(format, tmp_path):
    inputs = candidates(0.7)
    if format == "pt2":
        run = torch.export.export(Suppress(), inputs, strict=False).module()
    else:
        pytest.importorskip("onnxscript")
        onnxruntime = pytest.importorskip("onnxruntime")
        from libra_det.export.onnx_nms import nms_padded

        table = {torch.ops.libra_ops.nms_padded.default: nms_padded}
        names = ("boxes", "scores", "groups", "valid")
        program = torch.onnx.export(
            Suppress(), inputs, dynamo=True, input_names=names, custom_translation_table=table, verbose=False
        )
        program.save(tmp_path / "suppress.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "suppress.onnx")

        def run(*values):
            named = {name: value.numpy() for name, value in zip(names, values, strict=True)}
            return [torch.from_numpy(value) for value in session.run(None, named)]

    for share in (0.7, 0.1, 0.0, 1.0):
        values = candidates(share)
        index, kept = Suppress()(*values)
        found, found_valid = run(*values)
        assert index.shape == (2, 100) and torch.equal(found_valid, kept)
        assert torch.equal(found[kept], index[kept])
        assert share < 0.7 or 10 < kept.sum() < values[3].sum()
    boxes, scores, groups, valid = candidates(1.0)
    valid = torch.zeros_like(valid).index_fill(1, torch.tensor([5]), True)
    found, found_valid = run(boxes, scores, groups, valid)
    assert found_valid.sum(1).tolist() == [1, 1] and found[:, 0].tolist() == [5, 5]


def test_mistakes_are_explained_before_anything_is_written(tmp_path, monkeypatch):
    fast = make_detector(detector="fast_rcnn")
    with pytest.raises(ValueError, match=r"W.pth: a Fast R-CNN cannot be exported: it has no way from an image"):
        export_detector(fast, tmp_path / "fast.pt2", source="W.pth")
    detector = make_detector()
    with pytest.raises(ValueError, match=r"--output: expected a name ending in .onnx with --format onnx, got .*a.pt2"):
        export_detector(detector, tmp_path / "a.pt2", "onnx")
    with pytest.raises(ValueError, match="--format: expected one of pt2, onnx; got 'torchscript'"):
        export_detector(detector, tmp_path / "a.pt", "torchscript")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="--format onnx: needs onnx and onnxscript, which is not installed: pip install"
    ):
        export_detector(detector, tmp_path / "a.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_sizes_are_multiples_of_the_backbones_strides_whatever_the_configuration():
    config = recipes.shapes()
    assert side_divisor(config) == 32 and smallest_side(config) == 96  # the coarsest map has stride 64
    for divisor, expected in ((1, 32), (48, 96), (64, 64)):
        assert side_divisor(replace(config, data=replace(config.data, size_divisor=divisor))) == expected
    retina = replace(config, model=replace(config.model, detector="retinanet"))
    assert smallest_side(retina) == 160
