"""Weights from anywhere: recognised by content, never executed, and told apart from what does not fit."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from weight_files import CPU, published, same, tiny_state

import libra_det
from libra_det.models import build_model
from libra_det.train import Trainer
from libra_det.weights.classes import categories_of, coco_categories
from libra_det.weights.load import configuration, fill, read_weights
from libra_det.weights.recognise import num_classes_of, recognised

# Which model


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("faster_r50", "libra_faster_rcnn_r50"),
        ("faster_r101", "libra_faster_rcnn_r101"),
        ("faster_x101", "libra_faster_rcnn_x101_64x4d"),
        ("retina_r50", "libra_retinanet_r50"),
        ("fast_r50", "libra_fast_rcnn_r50"),
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_published_layouts_are_recognised(libra_goldens, layout, name, plain):
    shapes = json.loads((libra_goldens / "state_dict_keys.json").read_text())[layout]
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    if plain:  # no recipe has a plain detector on another backbone than ResNet-50
        if "101" in layout:
            pytest.skip("no such recipe")
        state = {key: value for key, value in state.items() if not key.startswith("neck.1.")}
    config, fit = recognised(state, num_classes_of(state))
    assert (config.recipe, fit.exact, num_classes_of(state)) == (
        name.removeprefix("libra_") if plain else name,
        True,
        80,
    )


@pytest.mark.parametrize("name", ["tiny_faster", "tiny_fast", "tiny_retina", "tiny_plain"])
def test_a_file_alone_is_enough(tiny_recipes, tmp_path, name):
    state = tiny_state(tiny_recipes[name], 3)
    file = published(tmp_path, state, meta={"CLASSES": ("a", "b", "c")})
    detector = libra_det.load(file, device="cpu")
    assert detector.config.recipe == name
    assert detector.categories == [(1, "a"), (2, "b"), (3, "c")]
    assert same(detector.model.state_dict(), state)


def test_the_recipe_that_is_named_wins_and_a_contradiction_is_a_table(tiny_recipes, tmp_path):
    file = published(tmp_path, tiny_state(tiny_recipes["tiny_faster"]))
    assert libra_det.load(file, device="cpu", recipe="tiny_faster").config.recipe == "tiny_faster"
    with pytest.raises(ValueError, match=r"does not fit --recipe tiny_plain, but tiny_faster \(2 classes\)") as error:
        libra_det.load(file, device="cpu", recipe="tiny_plain")
    assert re.search(r"unexpected +neck.1.refine.g.conv.weight +\[8, 8, 1, 1\]", str(error.value))
    with pytest.raises(ValueError, match=r"recipe: expected one of tiny_faster"):
        libra_det.load(file, device="cpu", recipe="tiny")


def test_a_run_that_is_given_another_recipe_is_an_error(tiny_recipes, tiny_config, tmp_path):
    Trainer(tiny_config(), tmp_path, CPU)._save()
    with pytest.raises(ValueError, match="does not fit --recipe tiny_retina"):
        libra_det.load(tmp_path, device="cpu", recipe="tiny_retina")


# Spellings


def test_older_spellings_are_read(tiny_recipes, tmp_path):
    def check(name, rename, **options):
        state = tiny_state(tiny_recipes[name])
        file = published(tmp_path, {rename(key): value for key, value in state.items()}, **options)
        weights = read_weights(file)
        assert same(weights.state, state)
        assert configuration(weights)[0].recipe == name

    check("tiny_faster", lambda key: f"module.{key}")
    check("tiny_faster", lambda key: key.removeprefix("roi_head."))  # before mmdetection had a roi_head
    check("tiny_fast", lambda key: key.removeprefix("roi_head."))  # in which no rpn_head tells it from RetinaNet
    check("tiny_plain", lambda key: key.replace("neck.0.", "neck."))
    check("tiny_retina", lambda key: key.replace("convs.0.conv.", "convs.0.") if "bbox_head" in key else key)
    check("tiny_faster", lambda key: key, _use_new_zipfile_serialization=False)  # as torch saved until 1.5


def test_what_older_files_lack_or_have_besides(tiny_recipes, tmp_path):
    state = tiny_state(tiny_recipes["tiny_faster"])
    other = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    other["ema_backbone_conv1_weight"] = torch.zeros(1)
    other["data_preprocessor.mean"] = torch.zeros(3, 1, 1)
    detector = libra_det.load(published(tmp_path, other), device="cpu")
    assert torch.equal(detector.model.backbone.conv1.weight, state["backbone.conv1.weight"])
    assert any("moving average" in note for note in detector.notes)


def as_version_1(state: dict, agnostic: bool) -> dict:
    """The state with the background before the classes, as mmdetection 1.x had it, and deltas for it too."""
    old = {key.replace("roi_head.", ""): value for key, value in state.items()}
    for parameter in ("weight", "bias"):
        classes, deltas = old[f"bbox_head.fc_cls.{parameter}"], old[f"bbox_head.fc_reg.{parameter}"]
        old[f"bbox_head.fc_cls.{parameter}"] = torch.cat((classes[-1:], classes[:-1]))
        if not agnostic:
            old[f"bbox_head.fc_reg.{parameter}"] = torch.cat((torch.full_like(deltas[:4], 7.0), deltas))
    return old


@pytest.mark.parametrize("agnostic", [False, True])
def test_version_1_is_refused_and_in_part_put_into_order(tiny_recipes, tmp_path, agnostic):
    config = tiny_recipes["tiny_faster"]
    config = replace(config, model=replace(config.model, class_specific_boxes=not agnostic))
    state = tiny_state(config, 3)
    file = published(tmp_path, as_version_1(state, agnostic))
    with pytest.raises(ValueError, match=r"trained by mmdetection 1.x, whose boxes are one pixel wider.*--partial"):
        libra_det.load(file, device="cpu")
    detector = libra_det.load(file, device="cpu", partial=True)
    assert same(detector.model.state_dict(), state)
    assert any("one pixel wider" in note for note in detector.notes)


def test_the_version_in_the_notes_does_not_decide(tiny_recipes, tmp_path):
    """Files that were published with mmdetection 2.0 say that 1.x wrote them."""
    state = tiny_state(tiny_recipes["tiny_faster"])
    file = published(tmp_path, state, meta={"mmdet_version": "1.0rc1+21bfc82"})
    assert same(libra_det.load(file, device="cpu").model.state_dict(), state)


# Files


def test_every_kind_is_recognised_by_content_not_by_name(tiny_recipes, tiny_config, tmp_path):
    run = tmp_path / "run"
    trainer = Trainer(tiny_config(), run, CPU)
    checkpoint = trainer._save()
    state = trainer.average.module.state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "weights.pth")
    (tmp_path / "weights.bin").write_bytes(checkpoint.read_bytes())
    torch.save(state, tmp_path / "weights.safetensors")
    for path in (run, checkpoint, tmp_path / "weights.bin", tmp_path / "weights.pth", tmp_path / "weights.safetensors"):
        weights = read_weights(str(path))
        assert same(weights.state, state), path
        assert configuration(weights)[0].model == tiny_recipes["tiny_faster"].model


class Exploit:
    """Unpickling this would run a command."""

    def __reduce__(self):
        return (os.system, ("touch exploited",))


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_is_run_and_the_reason_is_told(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    state = {"backbone.conv1.weight": torch.zeros(1)}
    for meta in ({"hook": Exploit()}, {"hook": np.array([Exploit()], dtype=object)}):
        file = published(tmp_path, state, meta=meta, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=r"W\.pth: cannot be read"):
            read_weights(file)
        assert not (tmp_path / "exploited").exists()
    file = published(tmp_path, state, meta={"hook": Exploit()}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"without running code from it \({os.name}\.system\).*only: .*torch.save"):
        read_weights(file)
    file = published(tmp_path, state, meta={"work_dir": Path("x")}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"pathlib"):
        read_weights(file)


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_notes_are_read(tiny_recipes, tmp_path, zipped):
    state = tiny_state(tiny_recipes["tiny_faster"])
    meta = {
        "env_info": "sys.platform: linux",
        "seed": np.int64(3),
        "hook_msgs": {"best_score": np.float32(0.383), "scores": np.arange(3.0)},
        "name": np.str_("libra"),
        "CLASSES": ("cat", "dog"),
        "PALETTE": [(220, 20, 60), (119, 11, 32)],
        "epoch": 12,
        "lr": None,
    }
    weights = read_weights(published(tmp_path, state, meta=meta, _use_new_zipfile_serialization=zipped))
    assert same(weights.state, state) and weights.meta["hook_msgs"]["best_score"] == pytest.approx(0.383)
    assert configuration(weights)[1] == [(1, "cat"), (2, "dog")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"no weights at all", "cannot be read"),
        (b"PK\x03\x04 cut off", "cannot be read"),
        (b"\x30\x00\x00\x00\x00\x00\x00\x00{" + b" " * 60, "cannot be read as safetensors"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    (tmp_path / "W.pth").write_bytes(content)
    with pytest.raises(ValueError, match=rf"W\.pth: .*{message}"):
        read_weights(tmp_path / "W.pth")
    with pytest.raises(FileNotFoundError, match="no such run folder or checkpoint file"):
        read_weights(tmp_path / "nowhere.pth")


def test_other_contents_are_told(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list and no state_dict"):
        read_weights(tmp_path / "list.pth")
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"holds 1 tensors \(a\.weight, \.\.\.\) but no class layer"):
        libra_det.load(tmp_path / "other.pth", device="cpu")
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"weights of a backbone alone.*--backbone-weights"):
        libra_det.load(tmp_path / "resnet18.pth", device="cpu")


HEAD = "roi_head.bbox_head.fc_cls.weight"


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1).expand(10**12, 1), r"claims the shape \[1000000000000, 1\], for which it holds too few"),
        (torch.empty(3, 4, device="meta"), "float32 on meta; expected dense tensors"),
        (torch.eye(3).to_sparse(), "sparse_coo"),
        (torch.zeros(3, dtype=torch.complex64), "complex64"),
        (torch.tensor(1.0), "but no class layer"),
    ],
)
def test_tensors_that_are_not_what_they_seem_are_named(tiny_config, tmp_path, tensor, message):
    with pytest.raises(ValueError, match=rf"W\.pth: .*{message}"):
        libra_det.load(published(tmp_path, {HEAD: tensor}), device="cpu")
    if tensor.dim() > 0:  # the same in what looks like a run's checkpoint
        values = torch.load(Trainer(tiny_config(), tmp_path, CPU)._save(), weights_only=True)
        torch.save({**values, "ema": {HEAD: tensor}}, tmp_path / "W.pt")
        with pytest.raises(ValueError, match=rf"W\.pt: .*{message}"):
            libra_det.load(tmp_path / "W.pt", device="cpu")


def test_a_checkpoint_without_weights_is_incomplete(tiny_config, tmp_path):
    file = Trainer(tiny_config(), tmp_path, CPU)._save()
    values = torch.load(file, weights_only=True)
    for broken in ({"model": [1]}, {"ema": {"a": 3}}):
        torch.save({**values, **broken}, file)
        with pytest.raises(ValueError, match="is no complete checkpoint"):
            read_weights(file)


def test_half_precision_files_are_read(tiny_recipes, tmp_path):
    state = tiny_state(tiny_recipes["tiny_faster"])
    halves = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    loaded = libra_det.load(published(tmp_path, halves), device="cpu").model.state_dict()
    assert same(loaded, {key: value.float() if value.is_floating_point() else value for key, value in halves.items()})


# What does not fit


def test_misfits_are_a_short_table_and_an_error_unless_in_part(tiny_recipes, tmp_path):
    state = tiny_state(tiny_recipes["tiny_faster"])
    broken = dict(state)
    broken["extra.weight"] = torch.zeros(3)
    del broken["rpn_head.rpn_cls.bias"]
    broken["neck.1.refine.g.conv.weight"] = torch.zeros(8, 4, 1, 1)
    file = published(tmp_path, broken)
    with pytest.raises(
        ValueError, match=r"does not fit any recipe, of which tiny_faster comes nearest \(2 classes\)"
    ) as error:
        libra_det.load(file, device="cpu")
    table = [" ".join(line.split()) for line in str(error.value).splitlines()[1:-1]]
    assert table == [
        "missing rpn_head.rpn_cls.bias [3]",
        "unexpected extra.weight [3]",
        "misshapen neck.1.refine.g.conv.weight [8, 4, 1, 1], the model has [8, 8, 1, 1]",
    ]
    detector = libra_det.load(file, device="cpu", partial=True)
    assert torch.equal(detector.model.rpn_head.rpn_conv.weight, state["rpn_head.rpn_conv.weight"])
    assert any("loaded in part" in note and "extra.weight" in note for note in detector.notes)


def test_long_tables_are_cut(tiny_recipes, tmp_path):
    state = tiny_state(tiny_recipes["tiny_faster"])
    state = {key: value for key, value in state.items() if not key.startswith("backbone.layer")}
    with pytest.raises(ValueError, match=r"missing +\.\.\. and \d+ more") as error:
        libra_det.load(published(tmp_path, state), device="cpu", recipe="tiny_faster")
    assert len(str(error.value).splitlines()) < 12


def test_diverged_weights_are_refused(tiny_recipes, tmp_path):
    state = tiny_state(tiny_recipes["tiny_faster"])
    state["rpn_head.rpn_conv.bias"][3] = torch.nan
    with pytest.raises(ValueError, match=r"rpn_head.rpn_conv.bias holds NaN"):
        libra_det.load(published(tmp_path, state), device="cpu")
    state["rpn_head.rpn_conv.bias"][3] = 0.0
    state["extra.weight"] = torch.full((3,), torch.nan)  # which nothing would read
    assert libra_det.load(published(tmp_path, state), device="cpu", partial=True)


@pytest.mark.parametrize(
    ("name", "anew"),
    [
        ("tiny_faster", ["roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg"]),
        ("tiny_fast", ["roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg"]),
        ("tiny_retina", ["bbox_head.retina_cls"]),
    ],
)
def test_other_classes_begin_anew_and_nothing_else(tiny_recipes, tmp_path, name, anew):
    state = tiny_state(tiny_recipes[name], 5)
    weights = read_weights(published(tmp_path, state))
    torch.manual_seed(2)
    model = build_model(tiny_recipes[name].model, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    notes = fill(model, weights, categories=[(1, "a"), (2, "b")])
    for key, value in model.state_dict().items():
        assert torch.equal(value, (before if key.rpartition(".")[0] in anew else state)[key]), key
    assert notes == [f"has 5 classes, the data 2: {' and '.join(anew)} start anew, all else is loaded"]
    broken = {key: value for key, value in state.items() if key != "neck.1.refine.g.conv.bias"}
    with pytest.raises(ValueError, match=r"missing +neck.1.refine.g.conv.bias") as error:
        fill(model, read_weights(published(tmp_path, broken)), categories=[(1, "a")])
    assert anew[0] not in str(error.value)


def test_as_many_classes_of_other_names_are_loaded_and_told(tiny_recipes, tmp_path):
    state = tiny_state(tiny_recipes["tiny_faster"])
    weights = read_weights(published(tmp_path, state, meta={"CLASSES": ("cat", "dog")}))
    model = build_model(tiny_recipes["tiny_faster"].model, 2)
    assert fill(model, weights, categories=[(7, "cat"), (9, "dog")]) == []
    (note,) = fill(model, weights, categories=[(7, "cat"), (9, "fox")])
    assert "1 names differ: what was 'dog' is now 'fox'" in note
    assert same(model.state_dict(), state)


# Classes and settings


def test_coco_has_its_own_ids_and_others_are_counted():
    coco = coco_categories()
    assert (len(coco), coco[0], coco[-1], coco[11]) == (80, (1, "person"), (90, "toothbrush"), (13, "stop sign"))
    names = tuple(name.replace(" ", "_") for _, name in coco)  # as mmdetection 1.x spelt them
    assert categories_of({"CLASSES": names}, 80) == (coco, [])
    assert categories_of({"dataset_meta": {"classes": names}}, 80)[0] == coco
    assert categories_of({}, 80)[0] == coco
    assert categories_of({"CLASSES": "ship"}, 1)[0] == [(1, "ship")]
    categories, notes = categories_of({"CLASSES": names}, 2)
    assert categories == [(1, "class 1"), (2, "class 2")] and "names 80 classes but has 2" in notes[0]
