"""Small data sets written on the spot, sound unless a test spoils them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from libra_det.config import DataConfig

WIDTH, HEIGHT = 40, 30


class CocoFolder:
    """A folder of COCO JSON: four images of 40x30, one object each, ids 10 to 13; tests change `content` and files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = DataConfig(data=str(folder), short_side=30, long_side=40, size_divisor=16, workers=0)
        self.content: dict[str, Any] = {
            "images": [{"id": 10 + i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(4)],
            "annotations": [
                {"id": 100 + i, "image_id": 10 + i, "category_id": 7, "bbox": [5, 6, 10, 8], "area": 80, "iscrowd": 0}
                for i in range(4)
            ],
            "categories": [{"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}],
        }
        for i in range(4):
            self.picture(f"{i}.png")

    def picture(self, name: str, mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> Path:
        """Writes a picture whose box (5, 6, 15, 14) is bright."""
        pixels = np.full((size[1], size[0]), 40, dtype=np.uint8)
        pixels[6:14, 5:15] = 220
        Image.fromarray(pixels).convert(mode).save(self.folder / name, **options)
        return self.folder / name

    def write(self, split: str = "train") -> DataConfig:
        (self.folder / f"{split}.json").write_text(json.dumps(self.content))
        return self.config


@pytest.fixture
def coco_folder(tmp_path: Path) -> CocoFolder:
    return CocoFolder(tmp_path)


@pytest.fixture
def voc_folder(tmp_path: Path) -> Callable[..., DataConfig]:
    """Writes a VOC folder: write({"name": [(class, xmin, ymin, xmax, ymax, difficult)]}, split="train")."""

    def write(images: dict[str, list[tuple]], split: str = "train", root: str = "") -> DataConfig:
        base = tmp_path / root
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (base / part).mkdir(parents=True, exist_ok=True)
        for stem, objects in images.items():
            Image.new("RGB", (WIDTH, HEIGHT)).save(base / "JPEGImages" / f"{stem}.jpg")
            rows = "".join(
                f"<object><name>{name}</name><difficult>{int(difficult)}</difficult><bndbox><xmin>{x1}</xmin>"
                f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
                for name, x1, y1, x2, y2, difficult in objects
            )
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
            (base / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{rows}</annotation>")
        (base / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(images) + "\n")
        return DataConfig(data=str(tmp_path), short_side=30, long_side=40, workers=0)

    return write
