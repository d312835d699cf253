"""Pictures: boxes where they belong, in colours that tell classes apart."""

import itertools

from PIL import Image

from libra_det.draw import beside, class_color, draw_boxes


def test_box_lines_lie_on_the_box():
    image = Image.new("RGB", (600, 400), "gray")
    drawn = draw_boxes(image, [[100, 200, 300, 350]], [2], ["cat"], [0.75])
    assert drawn.size == image.size
    assert drawn.getpixel((100, 300)) == drawn.getpixel((300, 300)) == drawn.getpixel((200, 350)) == class_color(2)
    assert drawn.getpixel((200, 300)) == (128, 128, 128)
    assert drawn.crop((100, 180, 160, 200)).getcolors(10000) != [(60 * 20, (128, 128, 128))]  # the label above the box
    assert image.getcolors() == [(600 * 400, (128, 128, 128))]


def test_small_pictures_are_enlarged_with_their_boxes():
    drawn = draw_boxes(Image.new("L", (100, 50)), [[10, 20, 40, 45]], [0], ["cat"])
    assert drawn.size == (500, 250)
    assert drawn.getpixel((50, 200)) == class_color(0)


def test_boxes_at_and_beyond_the_border_and_without_area():
    boxes = [[-10, -10, 700, 500], [0, 0, 0, 0], [50, 60, 40, 30]]
    assert draw_boxes(Image.new("RGB", (600, 400)), boxes, [0, 1, 2], ["a", "ü", "猫"], [1, 0.5, 0]).size == (600, 400)


def test_neighbouring_classes_have_different_colors():
    colors = [class_color(label) for label in range(20)]
    assert len(set(colors)) == 20
    for first, second in itertools.pairwise(colors):
        assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 60


def test_two_pictures_side_by_side():
    joined = beside(Image.new("RGB", (60, 40), "red"), Image.new("RGB", (60, 40), "blue"), ("left", "right"))
    assert joined.width == 128 and joined.height > 40
    assert joined.getpixel((30, joined.height - 1)) == (255, 0, 0)
    assert joined.getpixel((100, joined.height - 1)) == (0, 0, 255)
