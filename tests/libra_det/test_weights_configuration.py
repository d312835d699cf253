"""The configuration inside a published file: read as data, followed where it can be, refused where not."""

import pytest
from weight_files import published, tiny_state

import libra_det
from libra_det.recipes import recipe

OWN = """/home/me/libra.py
model = dict(
    type='FasterRCNN',
    backbone=dict(type='ResNet', depth=18, style='pytorch'),
    neck=[dict(type='FPN'), dict(type='BFP', refine_level=1, refine_type='non_local')],
    rpn_head=dict(anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0, 2.0])),
    roi_head=dict(bbox_head=dict(bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2]))))
test_cfg = dict(rpn=dict(nms_pre=30, nms_thr=0.7), rcnn=dict(score_thr=0.01, nms=dict(type='nms', iou_thr=0.6)))
test_pipeline = [
    dict(type='MultiScaleFlipAug', img_scale=(500, 300), transforms=[
        dict(type='Resize', keep_ratio=True),
        dict(type='Normalize', mean=[1.0, 2.0, 3.0], std=[4, 5, 6], to_rgb=True), dict(type='Pad', size_divisor=64)])]
__import__('os').system('touch exploited')
"""


def test_the_configuration_in_a_file_is_used_as_data(tiny_recipes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = tiny_state(tiny_recipes["tiny_faster"])
    file = published(tmp_path, state, meta={"config": OWN})
    detector = libra_det.load(file, device="cpu")
    model, data = detector.config.model, detector.config.data
    assert (model.refine_level, model.anchor_scale, model.score_threshold, model.nms_iou) == (1, 4, 0.01, 0.6)
    assert (model.proposals_per_level_test, model.pixel_mean, model.pixel_std) == (30, (1.0, 2.0, 3.0), (4, 5, 6))
    assert (data.short_side, data.long_side, data.size_divisor) == (300, 500, 64)
    assert any("refine_level 1 (recipe: 2)" in note for note in detector.notes)
    assert not (tmp_path / "exploited").exists()
    named = libra_det.load(file, device="cpu", recipe="tiny_faster")
    assert named.config.model.refine_level == 2
    assert any("--recipe decides" in note for note in named.notes)


def test_a_configuration_that_cannot_be_followed(tiny_recipes, tmp_path):
    state = tiny_state(tiny_recipes["tiny_faster"])
    file = published(tmp_path, state, meta={"config": OWN.replace("pytorch", "caffe").replace("='nms'", "='soft_nms'")})
    with pytest.raises(ValueError, match=r"a backbone of style 'caffe'.*; soft_nms in place of"):
        libra_det.load(file, device="cpu")
    assert libra_det.load(file, device="cpu", partial=True).config.model.refine_level == 1
    for text in ("model = (", "model = dict(neck=[3])"):
        file = published(tmp_path, state, meta={"config": text})
        assert any("configuration is not used" in note for note in libra_det.load(file, device="cpu").notes)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("type='FPN'", "type='FPN', relu_before_extra_convs=True", "a ReLU before the pyramid's coarser levels"),
        ("type='FPN'", "type='FPN', upsample_cfg=dict(mode='bilinear')", "a pyramid enlarged by"),
        ("scales=[4]", "scales=[4], center_offset=0.5", "center_offset 0.5 instead of 0"),
        ("scales=[4]", "scales=[4], strides=[8, 16, 32, 64, 128]", "strides .* instead of .*4, 8, 16, 32, 64"),
        ("rpn_head=dict(", "rpn_head=dict(target_means=[0.5, 0, 0, 0], ", "target_means"),
        ("roi_head=dict(", "roi_head=dict(bbox_roi_extractor=dict(type='GenericRoIExtractor'), ", "GenericRoIExtr"),
        (
            "roi_head=dict(",
            "roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(type='RoIAlign', aligned=False)), ",
            "aligned False instead of True",
        ),
        ("bbox_head=dict(", "bbox_head=dict(loss_cls=dict(use_sigmoid=True), ", "use_sigmoid True instead of False"),
        ("nms_pre=30", "nms_pre=30, nms_across_levels=True", "nms_across_levels True"),
    ],
)
def test_what_no_tensor_shows_is_seen_in_the_configuration(tiny_recipes, tmp_path, old, new, message):
    assert OWN.count(old) == 1
    file = published(tmp_path, tiny_state(tiny_recipes["tiny_faster"]), meta={"config": OWN.replace(old, new)})
    with pytest.raises(ValueError, match=message):
        libra_det.load(file, device="cpu")


def test_hostile_texts_end_soon():
    from libra_det.weights.published_config import read_assignments, settings_of

    assert read_assignments("a = 9\n" + "a = a * a\n" * 60)["a"] < 1e36  # not 9 ** 2 ** 60
    assert settings_of({"config": "a = [dict(type='x')]\n" + "a = [a, a]\n" * 60 + "test_pipeline = a"}).data == {}
    huge = "1" + "0" * 4000
    text = f"a = {huge} / 3\nb = {huge} * 1.5\nc = {{[1]: 2}}\nd = {'1+' * 900}1\ne = 5"
    assert read_assignments(text)["e"] == 5


def test_mmdetections_own_text_changes_no_recipe(libra_goldens):
    """The published values are the recipe's."""
    from libra_det.weights.published_config import settings_of

    text = """
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
        pad_size_divisor=32),
    neck=[dict(type='FPN', start_level=1), dict(type='BFP', refine_level=1, refine_type='non_local')],
    bbox_head=dict(type='RetinaHead', anchor_generator=dict(octave_base_scale=4, scales_per_octave=3,
        ratios=[0.5, 1.0, 2.0]), bbox_coder=dict(target_stds=[1.0, 1.0, 1.0, 1.0])),
    test_cfg=dict(nms_pre=1000, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
test_dataloader = dict(dataset=dict(type='CocoDataset', pipeline=[dict(type='Resize', scale=(1333, 800),
    keep_ratio=True)]))
"""
    settings = settings_of({"cfg": text})
    assert settings.impossible == [] and len(settings.model) == 11 and len(settings.data) == 3
    assert settings.applied(recipe("libra_retinanet_r50"))[1] == []
