"""Backbones: names, norms, frozen stages and where the weights come from."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from libra_det.models.backbone import Backbone, FrozenStatisticsBatchNorm, backbone_names, check_not_random, group_norm


def test_maps_have_the_strides_of_a_resnet() -> None:
    backbone = Backbone("resnet18")
    maps = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [
        (1, 64, 16, 24),
        (1, 128, 8, 12),
        (1, 256, 4, 6),
        (1, 512, 2, 3),
    ]
    assert backbone.channels == (64, 128, 256, 512)
    assert Backbone("resnet50").channels == (256, 512, 1024, 2048)


def test_parameters_and_maps_are_torchvisions() -> None:
    resnet = torchvision.models.resnet18().eval()
    backbone = Backbone("resnet18").eval()
    wanted = {key: value for key, value in resnet.state_dict().items() if not key.startswith("fc.")}
    backbone.load_state_dict(wanted)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        logits = resnet.fc(backbone(images)[-1].mean((2, 3)))
        torch.testing.assert_close(logits, resnet(images))


def test_wrong_names_list_the_choices() -> None:
    assert {"resnet18", "resnet50", "resnext101_64x4d"} <= set(backbone_names())
    with pytest.raises(ValueError, match=r"backbone: expected one of .*resnet50.*got 'vgg16'"):
        Backbone("vgg16")
    with pytest.raises(ValueError, match=r"norm: expected one of .*group_norm.*got 'layer_norm'"):
        Backbone("resnet18", norm="layer_norm")
    with pytest.raises(ValueError, match=r"frozen_stages.*got 5"):
        Backbone("resnet18", frozen_stages=5)


@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 4])
def test_frozen_stages_are_not_trained(frozen_stages: int) -> None:
    backbone = Backbone("resnet18", frozen_stages=frozen_stages)
    frozen = ("conv1", "bn1") if frozen_stages >= 0 else ()
    frozen += tuple(f"layer{stage}" for stage in range(1, frozen_stages + 1))
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad == (not name.startswith(frozen) if frozen else True), name


def _statistics(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in backbone.state_dict().items() if "running" in k or "tracked" in k}


def test_frozen_statistics_never_change_and_the_affine_part_trains() -> None:
    backbone = Backbone("resnet18", norm="frozen_batch_norm", frozen_stages=1).train()
    before = _statistics(backbone)
    images = torch.randn(2, 3, 64, 64) * 5
    maps = backbone(images)
    maps[-1].sum().backward()
    after = _statistics(backbone)
    assert len(before) == 60  # 20 layers with a mean, a variance and a counter each
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert backbone.layer2[0].bn1.weight.grad is not None
    assert backbone.layer1[0].bn1.weight.grad is None
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)[-1], backbone.eval()(images)[-1])


def test_batch_norm_trains_its_statistics_except_in_frozen_stages() -> None:
    backbone = Backbone("resnet18", norm="batch_norm", frozen_stages=1).train()
    before = _statistics(backbone)
    backbone(torch.randn(2, 3, 64, 64) * 5)
    changed = {key for key, value in _statistics(backbone).items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.startswith(("layer2", "layer3", "layer4"))}


def test_one_cell_has_no_statistics() -> None:
    images = torch.zeros(1, 3, 32, 20)
    with pytest.raises(ValueError, match=r"one image of 32 x 20 pixels.*--norm group_norm.*--short-side.*--batch-size"):
        Backbone("resnet18")(images)
    Backbone("resnet18").eval()(images)
    Backbone("resnet18", frozen_stages=4).train()(images)
    Backbone("resnet18", norm="frozen_batch_norm").train()(images)
    Backbone("resnet18")(images.repeat(2, 1, 1, 1))
    Backbone("resnet18")(torch.zeros(1, 3, 33, 20))


@pytest.mark.parametrize(("norm", "frozen_stages"), [("frozen_batch_norm", -1), ("batch_norm", 0), ("group_norm", 1)])
def test_a_random_backbone_may_not_stay_so(norm: str, frozen_stages: int) -> None:
    with pytest.raises(ValueError, match=r"--backbone-weights DEFAULT.*--norm group_norm --frozen-stages -1"):
        check_not_random(norm, frozen_stages, None)
    check_not_random(norm, frozen_stages, "DEFAULT")
    check_not_random("group_norm", -1, None)


def test_group_norm_has_no_statistics_and_depends_on_one_image_alone() -> None:
    backbone = Backbone("resnet18", norm="group_norm").train()
    assert not _statistics(backbone)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)[-1][:1], backbone(images[:1])[-1])
    assert [group_norm(channels).num_groups for channels in (256, 64, 16, 2)] == [32, 32, 8, 1]


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_from_a_file(tmp_path, ending: str) -> None:
    state = torchvision.models.resnet18().state_dict()
    path = tmp_path / f"resnet18.{ending}"
    if ending == "pth":
        torch.save({"state_dict": state}, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, path)
    backbone = Backbone("resnet18", weights=str(path))
    assert torch.equal(backbone.layer3[1].conv2.weight, state["layer3.1.conv2.weight"])
    assert torch.equal(backbone.bn1.running_var, state["bn1.running_var"])


def test_weights_that_do_not_fit_are_named(tmp_path) -> None:
    state = torchvision.models.resnet18().state_dict()
    state["extra.weight"] = state.pop("layer1.0.conv1.weight")
    state["conv1.weight"] = state["conv1.weight"][:32]
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(ValueError) as error:
        Backbone("resnet18", weights=str(tmp_path / "broken.pth"))
    for part in (
        "broken.pth",
        "missing     layer1.0.conv1.weight",
        "unexpected  extra.weight",
        "misshapen   conv1.weight           [32, 3, 7, 7], the model has [64, 3, 7, 7]",
    ):
        assert part in str(error.value)


def test_weights_of_another_norm_are_an_error(tmp_path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"unexpected +bn1.running_mean(.|\n)*and \d+ more"):
        Backbone("resnet18", norm="group_norm", weights=str(tmp_path / "resnet18.pth"))


def test_weights_that_are_no_state_dict_or_no_file(tmp_path) -> None:
    torch.save({"model": nn.Linear(1, 1).state_dict(), "step": 3}, tmp_path / "linear.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"missing +conv1.weight"):
        Backbone("resnet18", weights=str(tmp_path / "linear.pth"))
    with pytest.raises(ValueError, match="holds a list and no state_dict"):
        Backbone("resnet18", weights=str(tmp_path / "list.pth"))
    with pytest.raises(ValueError, match=r"there is no file .*absent.pth"):
        Backbone("resnet18", weights=str(tmp_path / "absent.pth"))
    with pytest.raises(ValueError, match=r"one of IMAGENET1K_V1, DEFAULT.*got 'IMAGENET'"):
        Backbone("resnet18", weights="IMAGENET")


def test_a_failed_download_says_how_to_give_a_file(monkeypatch) -> None:
    def refuse(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", refuse)
    with pytest.raises(ConnectionError, match=r"https://.*no network.*FILE.pth"):
        Backbone("resnet18", weights="DEFAULT")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_folded_normalisation_gives_the_same_maps_and_gradients(monkeypatch, name: str) -> None:
    """Everywhere, as on a GPU, against nowhere."""
    torch.manual_seed(0)
    backbone = Backbone(name, norm="frozen_batch_norm", frozen_stages=0).double()
    for module in backbone.modules():
        if isinstance(module, FrozenStatisticsBatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    found = []
    for everywhere in (True, False):
        monkeypatch.setattr(torch.Tensor, "is_cuda", everywhere)
        backbone.zero_grad()
        if not everywhere:
            monkeypatch.setattr("libra_det.models.backbone._SMALL_WEIGHT", 0)
        maps = backbone(images)
        sum(x.square().mean() for x in maps).backward()
        found.append((maps, [p.grad.clone() for p in backbone.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)
    assert len(found[0][1]) == len(list(backbone.parameters())) - 3


def test_on_a_cpu_small_layers_that_are_not_trained_are_folded(monkeypatch) -> None:
    folded = []
    fold = FrozenStatisticsBatchNorm.folded_into
    monkeypatch.setattr(
        FrozenStatisticsBatchNorm, "folded_into", lambda norm, conv: folded.append(conv) or fold(norm, conv)
    )
    backbone = Backbone("resnet18", norm="frozen_batch_norm", frozen_stages=1)
    backbone(torch.zeros(1, 3, 64, 64))
    assert len(folded) == 5  # the stem and layer1
    with torch.no_grad():
        backbone(torch.zeros(1, 3, 64, 64))
    assert len(folded) == 5 + 12  # layer2 and the later shortcuts as well
