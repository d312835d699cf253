"""The thesis: no shape in a training step depends on data, and nothing in it asks the device for a value.

Under FakeTensorMode there are no values: whatever needs one (.item(), nonzero, a boolean index, `if tensor`) is an
error. The steps here are of full COCO size, which costs no memory there.
"""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch._subclasses.fake_tensor import FakeTensorMode

from libra_det.config import ModelConfig
from libra_det.models import build_model
from libra_det.recipes import recipe, recipe_names
from libra_det.structures import Proposals, Targets
from libra_det.train_step import LossFunction

IMAGES, HEIGHT, WIDTH, TARGETS, PROPOSALS = 2, 800, 1344, 500, 2000
RECIPES = [name for name in recipe_names() if not name.endswith("_2x")]  # which have the models of the others


def inputs(device: str = "cpu") -> tuple:
    """images, sizes, targets and proposals of a batch whose every slot is taken, zeros."""
    boxes = torch.zeros(IMAGES, TARGETS, 4, device=device)
    valid = torch.ones(IMAGES, TARGETS, dtype=torch.bool, device=device)
    labels = torch.zeros(IMAGES, TARGETS, dtype=torch.int64, device=device)
    sizes = torch.full((IMAGES, 2), 800.0, device=device)
    regions = torch.zeros(IMAGES, PROPOSALS, 4, device=device)
    scores = torch.zeros(IMAGES, PROPOSALS, device=device)
    found = torch.ones(IMAGES, PROPOSALS, dtype=torch.bool, device=device)
    images = torch.zeros(IMAGES, 3, HEIGHT, WIDTH, dtype=torch.uint8, device=device)
    return images, sizes, Targets(boxes, labels, valid, ~valid), Proposals(regions, scores, found)


def config_of(name: str) -> ModelConfig:
    return replace(recipe(name).model, backbone_weights=None)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_a_step_at_coco_size_asks_for_no_value(name, amp):
    if amp and "101" in name:
        pytest.skip("its layers are those of ResNet-50, only more")
    with FakeTensorMode():
        model = build_model(config_of(name), 80)
        images, sizes, targets, proposals = inputs()
        losses, features = LossFunction(model, amp)(images, sizes, targets, proposals)
        assert len(features) == 5 and all(loss.shape == () for loss in losses.values())
        torch.stack(list(losses.values())).sum().backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert all(parameter.grad.shape == parameter.shape for parameter in trained)


def test_a_value_that_is_asked_for_is_found():
    """That the test above can fail."""
    with FakeTensorMode():
        model = build_model(config_of("shapes"), 80)
        find = model.roi_head.sample
        model.roi_head.sample = lambda matches, seed: find(matches, seed) if bool((matches.state == 1).any()) else None
        with pytest.raises(Exception, match=r"data-dependent|_local_scalar_dense"):
            LossFunction(model, False)(*inputs())


@pytest.mark.parametrize("name", ["shapes", "libra_fast_rcnn_r50", "libra_retinanet_r50"])
def test_the_losses_compile_to_one_program_for_all_batches_of_a_size(name):
    """Without a break, and with the losses and gradients of eager mode."""
    config = replace(
        config_of(name), backbone="resnet18", norm="group_norm", fpn_channels=16, fc_channels=16, retina_convs=1
    )
    torch.manual_seed(0)
    losses = LossFunction(build_model(config, 3), amp=False)
    programs = []

    def backend(graph, example_inputs):
        programs.append(graph)
        return aot_eager(graph, example_inputs)

    torch._dynamo.reset()
    compiled = torch.compile(losses, fullgraph=True, dynamic=False, backend=backend)
    for seed, objects in ((1, 4), (2, 0), (3, 7)):
        batch = small_batch(seed, objects)
        results = []
        for function in (losses, compiled):
            torch.manual_seed(seed)
            values, _ = function(*batch)
            losses.zero_grad(set_to_none=True)
            torch.stack(list(values.values())).sum().backward()
            trained = [parameter for parameter in losses.parameters() if parameter.requires_grad]
            results.append((values, [parameter.grad.clone() for parameter in trained]))
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    assert len(programs) == 1


def small_batch(seed: int, objects: int) -> tuple:
    """Two images of 96 x 128 with `objects` of 8 slots taken."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, 8 + 40, 2, 2, generator=generator) * torch.tensor([128.0, 96.0])
    boxes, regions = torch.cat([corners.amin(-2), corners.amax(-2)], -1).split((8, 40), 1)
    valid = (torch.arange(8) < objects).expand(2, 8)
    labels = torch.randint(3, (2, 8), generator=generator)
    found = torch.ones(2, 40, dtype=torch.bool)
    images = torch.randint(256, (2, 3, 96, 128), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([[96.0, 128.0], [96.0, 100.0]])
    targets = Targets(boxes.clone(), labels, valid.clone(), torch.zeros_like(valid))
    return images, sizes, targets, Proposals(regions.clone(), torch.ones(2, 40), found)
