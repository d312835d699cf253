"""Files of proposals that were damaged or written to hurt: each is a sentence that names the file."""

import random
import struct

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from libra_det.data import proposal_file
from libra_det.data.proposal_file import FORMAT, ProposalFile, ProposalWriter

METADATA = {"format": FORMAT, "model": "m"}
FLOATS = np.float32


def sound() -> dict[str, np.ndarray]:
    """Three images with ids 1 to 3 and with 2, 0 and 3 boxes."""
    return {
        "boxes": np.array([[i, i, i + 2, i + 3] for i in range(5)], dtype=np.float32),
        "scores": np.linspace(1, 0, 5).astype(np.float16),
        "offsets": np.array([0, 2, 2, 5]),
        "image_ids": np.array([1, 2, 3]),
        "file_names": np.frombuffer("a\0ü\0c".encode(), dtype=np.uint8),
    }


def names(text: bytes) -> np.ndarray:
    return np.frombuffer(text, dtype=np.uint8)


def test_the_sound_file_is_read(tmp_path):
    save_file(sound(), tmp_path / "p", METADATA)
    proposals = ProposalFile(tmp_path / "p")
    assert [len(proposals.read(id, 10)[0]) for id in (1, 2, 3)] == [2, 0, 3]


def test_a_file_without_images_is_read(tmp_path):
    writer = ProposalWriter(tmp_path / "p", images=0, limit=1)
    writer.write()
    assert ProposalFile(tmp_path / "p").most([]) == 0


BROKEN = [
    ("offsets", np.array([0, 2, 2, 6]), "offsets: expected numbers that rise from 0 to the 5 boxes"),
    ("offsets", np.array([0, 2, 2, 4]), "offsets: expected numbers that rise"),
    ("offsets", np.array([1, 2, 2, 5]), "offsets: expected numbers that rise"),
    ("offsets", np.array([0, -1, 2, 5]), "offsets: expected numbers that rise"),
    ("offsets", np.array([0, 4, 2, 5]), "offsets: expected numbers that rise"),
    ("offsets", np.array([0, 2**63 - 1, -(2**63), 5]), "offsets: expected numbers that rise"),  # differences wrap
    ("offsets", np.array([0, 2, 5]), "offsets: expected 4 numbers for 3 image_ids, got 3"),
    ("offsets", np.array([0, 2, 2, 2, 5]), "offsets: expected 4 numbers for 3 image_ids, got 5"),
    ("offsets", np.zeros(0, np.int64), "offsets: expected 4 numbers for 3 image_ids, got 0"),
    ("offsets", np.array([0.0, 2, 2, 5]), r"offsets: expected I64 \[I \+ 1\], got F64 \[4\]"),
    ("offsets", np.array([0, 2, 2, 5], np.int32), r"offsets: expected I64 \[I \+ 1\], got I32 \[4\]"),
    ("image_ids", np.array([1, 1, 3]), "image_ids: 1 are there more than once"),
    ("image_ids", np.array([1, 2]), "offsets: expected 3 numbers for 2 image_ids, got 4"),
    ("image_ids", np.array([[1, 2, 3]]), r"image_ids: expected I64 \[I\], got I64 \[1, 3\]"),
    ("boxes", np.zeros((5, 3), FLOATS), r"boxes: expected F32 \[T, 4\], got F32 \[5, 3\]"),
    ("boxes", np.zeros((2, 3), FLOATS), r"boxes: expected F32 \[T, 4\], got F32 \[2, 3\]"),
    ("boxes", np.zeros((5, 4), np.float16), r"boxes: expected F32 \[T, 4\], got F16 \[5, 4\]"),
    ("boxes", np.zeros((5, 4), np.int64), r"boxes: expected F32 \[T, 4\], got I64 \[5, 4\]"),
    ("boxes", np.zeros(20, FLOATS), r"boxes: expected F32 \[T, 4\], got F32 \[20\]"),
    ("boxes", np.zeros((6, 4), FLOATS), "scores: expected 6 numbers for 6 boxes, got 5"),
    ("boxes", np.zeros((0, 4), FLOATS), "scores: expected 0 numbers for 0 boxes, got 5"),
    ("scores", np.zeros(4, np.float16), "scores: expected 5 numbers for 5 boxes, got 4"),
    ("scores", np.zeros(5, FLOATS), r"scores: expected F16 \[T\], got F32 \[5\]"),
    ("file_names", names(b"a\0b"), "file_names: expected 3, one for each image, got 2"),
    ("file_names", names(b""), "file_names: expected 3, one for each image, got 1"),
    ("file_names", names(b"a\0\xff\xfe\0c"), "'utf-8' codec can't decode"),
    ("file_names", names(b"a" * 40_000), "file_names: 40000 bytes are too many for 3 images"),
    *[(name, None, f"it has no tensor {name}") for name in sound()],
]


@pytest.mark.parametrize(("tensor", "value", "message"), BROKEN)
def test_broken_files_are_told_when_they_are_opened(tmp_path, tensor, value, message):
    tensors = {**sound(), tensor: value}
    save_file({name: array for name, array in tensors.items() if array is not None}, tmp_path / "p", METADATA)
    with pytest.raises(ValueError, match=rf"^proposals: .*p is not what `libra proposals` writes \({message}"):
        ProposalFile(tmp_path / "p")


def test_a_file_without_any_tensor(tmp_path):
    save_file({}, tmp_path / "p", METADATA)
    with pytest.raises(ValueError, match="it has no tensor boxes, file_names, image_ids, offsets, scores"):
        ProposalFile(tmp_path / "p")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("boxes", [np.nan] * 4, "a box that is NaN, infinite"),
        ("boxes", [0, 0, np.inf, 1], "a box that is NaN, infinite"),
        ("boxes", [-np.inf, 0, 1, 1], "a box that is NaN, infinite"),
        ("boxes", [0, 0, 3e38, 3e38], "a box that is NaN, infinite, inverted or far outside"),
        ("boxes", [5, 0, 1, 1], "a box that is NaN, infinite, inverted"),
        ("boxes", [0, 5, 1, 1], "a box that is NaN, infinite, inverted"),
        ("scores", np.nan, r"a score that is not in 0\.\.1"),
        ("scores", np.inf, r"a score that is not in 0\.\.1"),
        ("scores", -0.5, r"a score that is not in 0\.\.1"),
        ("scores", 1.5, r"a score that is not in 0\.\.1"),
    ],
)
def test_boxes_and_scores_that_are_none_name_the_image(tmp_path, tensor, value, message):
    tensors = sound()
    tensors[tensor][3] = value
    save_file(tensors, tmp_path / "p", METADATA)
    proposals = ProposalFile(tmp_path / "p")
    assert proposals.read(1, 10)[0].isfinite().all()
    assert len(proposals.read(3, 1)[0]) == 1  # only what is used is looked at
    with pytest.raises(ValueError, match=rf"^proposals: .*p has {message}.* for image 3 \(c\)"):
        proposals.read(3, 10)


def test_notes_of_any_size_keep_messages_short(tmp_path):
    save_file(sound(), tmp_path / "p", {"format": "x" * 10**6})  # a header just short enough
    with pytest.raises(ValueError, match="its format is 'xxx") as error:
        ProposalFile(tmp_path / "p")
    assert len(str(error.value)) < 1000


def header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        struct.pack("<Q", 2**63),
        header(b"{" * 1000),
        header(b"[" * 100_000),
        header(b'{"boxes":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'),
        header(b'{"boxes":{"dtype":"F32","shape":[1,4],"data_offsets":[0,99]}}'),
        header(b'{"boxes":{"dtype":"F32","shape":[-1,4],"data_offsets":[0,0]}}'),
        header(b'{"boxes":3}'),
        header(b"\xff\xfe"),
    ],
)
def test_headers_that_were_written_to_hurt(tmp_path, content):
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(ValueError, match="p is not what `libra proposals` writes"):
        ProposalFile(tmp_path / "p")


def test_a_header_of_very_many_tensors_is_refused_unread(tmp_path, monkeypatch):
    """200,000 empty ones, 11 MB, took 17 seconds and 900 MB to open."""
    empty = b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % number for number in range(20_000))
    (tmp_path / "p").write_bytes(header(b"{" + empty + b"}"))
    monkeypatch.setattr(proposal_file, "safe_open", lambda *_, **__: pytest.fail("the header was read"))
    with pytest.raises(ValueError, match=r"its header has 1\d{6} bytes, more than the 1048576 that one may have"):
        ProposalFile(tmp_path / "p")


def test_any_wrong_byte_is_a_sentence_or_does_no_harm(tmp_path):
    save_file(sound(), tmp_path / "whole", METADATA)
    content, choice = (tmp_path / "whole").read_bytes(), random.Random(0)
    refused = 0
    for _ in range(600):
        wrong = bytearray(content)
        for _ in range(choice.choice([1, 1, 2, 4])):
            wrong[choice.randrange(len(wrong))] = choice.randrange(256)
        (tmp_path / "p").write_bytes(wrong[: choice.choice([len(wrong), choice.randrange(len(wrong))])])
        try:
            proposals = ProposalFile(tmp_path / "p")
            for image_id in list(proposals._place):
                boxes, scores = proposals.read(image_id, 10)
                assert boxes.isfinite().all() and scores.isfinite().all() and boxes.dtype == torch.float32
        except ValueError as error:
            refused += 1
            assert str(error).startswith("proposals: ") and len(str(error)) < 800
        else:
            proposals.check([], "x")
    assert refused > 300
