"""Valid files of every kind, made once: what hostile ones are made from."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from libra_det import cli
from libra_det.config import Config
from tests.attack.files import tiny
from tests.attack.files.images import valid_images


@dataclass
class Valid:
    """What lies in the folder of seeds, in memory."""

    folder: Path
    configs: dict[str, Config]
    states: dict[str, dict[str, Tensor]]
    coco: dict[str, Any]
    bytes: dict[str, bytes] = field(default_factory=dict)  # by path within the folder
    images: dict[str, bytes] = field(default_factory=dict)  # by file name

    def config(self, recipe: str = "tiny_faster") -> dict[str, Any]:
        """The value as JSON has it."""
        return json.loads(json.dumps(asdict(self.configs[recipe])))


def make(folder: Path) -> None:
    """Writes everything. Trains, so it is called in a child: its threads would not survive a fork."""
    data, voc = folder / "data", folder / "voc"
    data.mkdir()
    configs = tiny.install(data)
    tiny.write_coco(data, "train", 2)
    tiny.write_coco(data, "val", 1)
    tiny.write_voc(voc, "train", 2)
    tiny.write_voc(voc, "val", 1)
    for name, config in configs.items():
        state = tiny.state_of(config)
        torch.save(tiny.published(config, state), folder / f"{name}.pth")
        torch.save(tiny.published(config, state), folder / f"{name}-legacy.pth", _use_new_zipfile_serialization=False)
    backbone = {key: value.clone() for key, value in tiny.TinyResNet().state_dict().items()}
    torch.save(backbone, folder / "backbone.pth")
    (folder / "backbone.safetensors").write_bytes(save(backbone))
    run, published = str(folder / "run"), str(folder / "tiny_faster.pth")
    proposals = str(folder / "proposals.safetensors")
    commands = (
        ["train", "--output", run, "--epochs", "1"],
        ["convert", published, "--output", str(folder / "converted.safetensors")],
        ["proposals", published, "--data", str(data), "--split", "train", "--output", proposals],
    )
    for arguments in commands:
        code = cli.main(arguments)
        if code:
            raise RuntimeError(f"libra {' '.join(arguments)} ended with {code}")
    for name, content in valid_images().items():
        (folder / name).write_bytes(content)


def load(folder: Path) -> Valid:
    """What `make` wrote. The tiny recipes are the only ones from now on."""
    configs = tiny.install(folder / "data")
    states = {name: tiny.state_of(config) for name, config in configs.items()}
    files = [file for file in folder.rglob("*") if file.is_file() and "tensorboard" not in file.parts]
    content = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
    images = {name: content[name] for name in valid_images()}
    return Valid(folder, configs, states, json.loads(content["data/train.json"]), content, images)


def pickle_in(archive: bytes) -> tuple[str, bytes]:
    """Name and content of the pickle in an archive of torch.save."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        name = next(entry for entry in opened.namelist() if entry.endswith("/data.pkl"))
        return name, opened.read(name)


def with_pickle(archive: bytes, program: bytes) -> bytes:
    """The archive with another pickle, its checksums right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(stream, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, program if entry.filename.endswith("/data.pkl") else old.read(entry))
    return stream.getvalue()


def legacy_header_length(data: bytes) -> int:
    """Bytes of the pickles before the one with the content."""
    stream = io.BytesIO(data)
    for _ in range(3):
        pickle.load(stream)  # of our own making
    return stream.tell()
