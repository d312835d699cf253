"""Images as tensors: decoded to 8-bit RGB, turned as viewers turn them, resized and padded to a batch.

B images of a batch, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from libra_det.config import DataConfig
from libra_det.data.image_file import QUIET, TRANSPOSING, annotated_as_stored, open_image, read_header, reason

_STRIP_PIXELS = 2**22  # converted at once, so that a large image does not need its memory three times over
_WEIGHT_ONE = 2048  # OpenCV's weight of a whole pixel


def load_image(
    file: Path | str, *, annotated_size: tuple[int, int] | None = None, smallest: tuple[int, int] | None = None
) -> Tensor:
    """Decodes an image to RGB, turned as its EXIF data says.

    Grayscale is repeated over the channels, alpha is ignored, palettes and 16-bit images are converted.

    Args:
        file: of one of `FORMATS`.
        annotated_size: width and height that the annotations give. If they are those of the image as stored but not
            as displayed, it was annotated without its EXIF rotation, and is returned without.
        smallest: width and height (as displayed) that are needed: a JPEG may be decoded at a fraction of its size that
            is still at least twice as large, which is faster and not visible after resizing.

    Returns:
        uint8 [3, H, W].

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: naming the file, if it is damaged, has more than `MOST_PIXELS`, or its size is not `annotated_size`.
    """
    file = Path(file)
    with open_image(file) as image:
        header = read_header(image)
        as_stored = annotated_size is not None and annotated_as_stored(file, header, annotated_size)
        turn = header.orientation != 1 and not as_stored
        if smallest is not None and header.kind is None and image.format == "JPEG":
            width, height = smallest[::-1] if turn and header.orientation in TRANSPOSING else smallest
            image.draft(None, (2 * width, 2 * height))
        return _decode(image, turn, f"{file}", "replace the file or take it out of the annotations")


def pil_to_tensor(image: Image.Image) -> Tensor:
    """What `load_image` makes of a file, of an opened PIL image: uint8 [3, H, W].

    Raises:
        ValueError: if its file is damaged.
    """
    name = getattr(image, "filename", "") or f"PIL image of {image.width}x{image.height}"
    return _decode(image, read_header(image).orientation != 1, name, "replace the file")


def resized_size(width: int, height: int, config: DataConfig, factor: float = 1.0) -> tuple[int, int]:
    """Width and height of an image after resizing: `short_side` unless the longer one would pass `long_side`.

    `factor` multiplies both limits.
    """
    scale = factor * min(config.short_side / min(width, height), config.long_side / max(width, height))
    return max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))


def resize(image: Tensor, width: int, height: int, antialias: bool = True) -> Tensor:
    """Bilinear, with antialiasing or as OpenCV does it. image: uint8 [3, H, W] -> uint8 [3, height, width]."""
    if antialias:
        return transforms.resize(image, [height, width], antialias=True)
    return resize_as_opencv(image, width, height)


def resize_as_opencv(image: Tensor, width: int, height: int) -> Tensor:
    """As cv2.resize with INTER_LINEAR, to the last bit. image: uint8 [3, H, W] -> uint8 [3, height, width].

    OpenCV interpolates in whole numbers, columns first: weights in 1/2048, of each product the upper 16 bits. Half the
    size in both directions is the mean of four pixels. Source: OpenCV 4.10, imgproc/src/resize.cpp, as it is on x86.
    """
    if image.shape[1:] == (height, width):
        return image
    if image.shape[1:] == (2 * height, 2 * width):
        fours = image.unflatten(2, (width, 2)).unflatten(1, (height, 2))  # [3, height, 2, width, 2]
        return ((fours.sum((2, 4), dtype=torch.int32) + 2) >> 2).to(torch.uint8)
    left, right, left_weight, right_weight = _linear_weights(image.shape[2], width)
    # Beyond the outermost pixels' centres a column is the outermost pixel, a row a rounded sum of twice the same.
    outside = (left == right) | (left < 0)
    left_weight = torch.where(outside, _WEIGHT_ONE, left_weight)
    right_weight = torch.where(outside, 0, right_weight)
    pixels = image.int()
    columns = pixels[:, :, left.clamp(min=0)] * left_weight + pixels[:, :, right] * right_weight  # [3, H, width]
    columns >>= 4
    top, bottom, top_weight, bottom_weight = _linear_weights(image.shape[1], height)
    upper = (columns[:, top.clamp(min=0)] * top_weight[:, None]) >> 16  # [3, height, width]
    lower = (columns[:, bottom] * bottom_weight[:, None]) >> 16
    return ((upper + lower + 2) >> 2).clamp_(max=255).to(torch.uint8)


def _linear_weights(old: int, new: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each of `new` positions the two of `old` around it (the first may be -1), and their weights in 1/2048."""
    position = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).float()
    first = position.floor()
    share = position - first  # of the second
    first = first.long()
    weights = (((1 - share) * _WEIGHT_ONE).round().int(), (share * _WEIGHT_ONE).round().int())
    return first.clamp(max=old - 1), (first + 1).clamp(max=old - 1), *weights


def resize_and_pad(images: Sequence[Tensor], config: DataConfig) -> tuple[Tensor, Tensor]:
    """A batch for testing: each image resized as in evaluation, padded with zeros at the right and bottom.

    Args:
        images: uint8 [3, H, W] each, of any sizes.
        config: short_side, long_side, size_divisor and antialias are used.

    Returns:
        images: uint8 [B, 3, H, W], H and W multiples of size_divisor.
        sizes: float32 [B, 2], height and width of each resized image without the padding.
    """
    if not images:
        raise ValueError("images: expected at least one image, got none")
    for position, image in enumerate(images):
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8 or not image.numel():
            raise ValueError(
                f"images[{position}]: expected uint8 [3, H, W], as load_image gives, "
                f"got {image.dtype} {list(image.shape)}"
            )
    return pad(
        [resize(image, *resized_size(image.shape[2], image.shape[1], config), config.antialias) for image in images],
        config.size_divisor,
    )


def pad(images: Sequence[Tensor], size_divisor: int, size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Pads images to `size` (height, width) or else to the largest of them, rounded up to a multiple of `size_divisor`.

    Returns as `resize_and_pad`.
    """
    sizes = torch.tensor([image.shape[1:] for image in images], dtype=torch.float32)  # [B, 2] height, width
    height, width = size or (-(-int(side) // size_divisor) * size_divisor for side in sizes.amax(0))
    batch = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    for slot, image in zip(batch, images, strict=True):
        slot[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes


def _decode(image: Image.Image, turn: bool, name: str, advice: str) -> Tensor:
    """uint8 [3, H, W], turned as the EXIF data says if `turn`; `name` and `advice` are for the error."""
    try:
        with QUIET:
            image.load()
            return _to_tensor(ImageOps.exif_transpose(image) if turn else image)
    except Exception as error:  # a damaged file can make Pillow raise anything
        raise ValueError(f"{name}: cannot be decoded ({reason(error, name)}); {advice}") from error


def _to_tensor(image: Image.Image) -> Tensor:
    """uint8 [3, H, W], in channels-last memory as decoded."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers without a known range; save it with 8 bits per channel")
    rows = max(1, _STRIP_PIXELS // image.width)
    if rows >= image.height:
        return torch.from_numpy(_rgb(image)).permute(2, 0, 1)
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = _rgb(image.crop((0, top, image.width, bottom)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _rgb(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] of an image of any mode but F."""
    if image.mode.startswith("I"):  # 16 bits; Pillow would clip them to 255 instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return np.array(image.convert("RGB") if image.mode != "RGB" else image)
