"""What exported models gather is what PyTorch's own operations give, bit for bit, at any pair of sizes."""

import pytest
import torch
import torch.nn.functional as F

from libra_det.models.resize import gather_nearest, max_of_windows


@pytest.mark.parametrize("height", [1, 2, 3, 7, 13, 25, 50])
def test_largest_of_windows_is_adaptive_max_pooling(height):
    generator = torch.Generator().manual_seed(height)
    for width in (1, 2, 5, 13, 34, 68):
        x = torch.randn(2, 3, height, width, generator=generator)
        x[0, 0, height // 2, width // 2] = torch.nan
        x[1, 2] = -torch.inf
        for size in ((1, 1), (height, width), (2, 3), (13, 17), (26, 9), (75, 101)):
            ours = max_of_windows(max_of_windows(x, 2, size[0]), 3, size[1])
            assert torch.equal(ours.nan_to_num(7e9), F.adaptive_max_pool2d(x, size).nan_to_num(7e9)), (width, size)


def test_gathered_nearest_is_interpolation():
    """Among them the sizes at which i N / count is a whole number that float32 misses, such as 24 -> 74."""
    for old in range(1, 75):
        x = torch.arange(old, dtype=torch.float32).reshape(1, 1, 1, old)
        for new in range(1, 151):
            expected = F.interpolate(x, size=(1, new), mode="nearest")
            assert torch.equal(gather_nearest(x, 3, new), expected), (old, new)
