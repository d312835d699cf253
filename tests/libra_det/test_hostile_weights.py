"""Weight files that attack: none runs code, forges an object, takes memory or time, or is read as other weights."""

import collections
import io
import pickle
import random
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from weight_files import CPU, published, same, tiny_state

import libra_det
from libra_det.train import Trainer
from libra_det.weights.files import DamagedFile, read_tensor_file
from libra_det.weights.load import read_weights
from libra_det.weights.published_config import read_assignments, settings_of


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(name: str, arguments: bytes) -> bytes:
    """The value of NAME(...), whose arguments are on the stack behind a mark."""
    module, _, function = name.rpartition(".")
    return b"c" + module.encode() + b"\n" + function.encode() + b"\n(" + arguments + b"tR"


LONG = b"\x8a\x08" + struct.pack("<q", 10**12)
DTYPE = call("numpy.dtype", text("f8") + b"\x89\x88")
STATE = b"(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
ARRAY = call("numpy._core.multiarray._reconstruct", b"cnumpy\nndarray\nK\x00\x85" + b"C\x01b")


def doubled(first: bytes, pair: bytes) -> bytes:
    """A tuple of 61 values, each of which but the first holds the one before it twice."""
    steps = (pair.replace(b"?", b"h" + bytes([i])) + b"q" + bytes([i + 1]) for i in range(60))
    return b"(" + first + b"q\x00" + b"".join(steps) + b"t"


LISTS, TUPLES = doubled(b"]", b"](??e"), doubled(b")", b"??\x86")

CALLS = {  # what stands in the notes of a file, and what is said about it
    "a forged object": (call("numpy.ndarray", b"K\x01\x85" + text("O") + b"C\x08AAAAAAAA"), "numpy.ndarray"),
    "a negative size": (
        call("numpy.dtype", text("V8") + b"\x89\x88") + b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffK\x01K\x00tb",
        "NumPy values of another kind",
    ),
    "an array of objects": (call("numpy.dtype", text("O8") + b"\x89\x88"), "NumPy values of another kind"),
    "a structured kind": (
        call("numpy.dtype", text("f8") + b"\x89\x88")
        + b"(K\x03"
        + text("|")
        + b"NX\x01\x00\x00\x00aNK\x08K\x08K\x00tb",
        "a structured NumPy kind",
    ),
    "too large an array": (
        ARRAY + b"(K\x01" + LONG + b"\x85" + DTYPE + STATE + b"\x89C\x08" + b"\0" * 8 + b"tb",
        "1 values, which its shape does not",
    ),
    "a shape without numbers": (ARRAY + b"(K\x01N" + DTYPE + STATE + b"\x89C\x08" + b"\0" * 8 + b"tb", "no shape"),
    "half a number": (
        call("numpy._core.multiarray.scalar", DTYPE + STATE + b"C\x03abc"),
        "3 bytes of NumPy values of kind f8",
    ),
    "terabytes of tensor": (call("torch.Tensor", LONG + LONG), "torch.Tensor"),
    "terabytes of storage": (call("torch.FloatStorage", LONG), "its pickle calls a StorageKind"),
    "terabytes of bytes": (call("builtins.bytearray", LONG), "builtins.bytearray"),
    "terabytes of memo": (b"Nr\xff\xff\xff\xff0N", "the instruction POP"),
    "a codec that takes hours": (call("_codecs.encode", text("ü" * 10**5) + text("punycode")), "not in latin1"),
    "a key that takes hours": (b"}" + TUPLES + b"Ns", "a key in its pickle is a tuple"),
    "keys that collide": (b"}\x8a\x09" + (2**61 - 1 << 9).to_bytes(9, "little") + b"Ns", "a number beyond 64 bits"),
    "a device of endless text": (call("torch.device", LISTS), "a tuple in its pickle where a name"),
    "a layout of endless text": (
        call("torch._utils._rebuild_sparse_tensor", LISTS + b")"),
        "a tuple in its pickle where a name",
    ),
    "an extension": (b"\x82\x01", "the instruction EXT1"),
    "an old way to call": (b"(" + text("touch x") + b"ios\nsystem\n", "os.system"),
    "a class": (b"cbuiltins\nobject\n)\x81", "builtins.object"),
    "a changed function": (b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("__defaults__") + b")sb", "changes a Name"),
    "a name from the stack": (text("posix") + text("system") + b"\x93" + text("id") + b"\x85R", "posix.system"),
    "an empty stack": (b"\x87" * 9, "takes more from the stack"),
    "a mark too few": (b"ttttttttt", "pop from empty list"),
    "a broken storage": (call("torch.Size", text("storage")) + b"Q", "cannot be read"),
    "a large storage": (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + LONG + b"tQ",
        "storage 0 has 4 bytes",
    ),
}


def with_notes(folder: Path, notes: bytes, name: str = "W.pth") -> Path:
    """A published file whose meta["note"] is what these instructions build."""
    torch.save({"meta": {"note": None}, "state_dict": {"a.weight": torch.zeros(1)}}, folder / "plain.pth")
    with zipfile.ZipFile(folder / "plain.pth") as plain, zipfile.ZipFile(folder / name, "w") as changed:
        for info in plain.infolist():
            content = plain.read(info)
            if info.filename.endswith("data.pkl"):
                assert content.count(b"N") >= 1
                place = content.index(text("note")) + len(text("note")) + 2  # behind the name, which is remembered
                assert content[place : place + 1] == b"N"
                content = content[:place] + notes + content[place + 1 :]
            changed.writestr(info.filename, content)
    return folder / name


@pytest.mark.parametrize("what", CALLS)
def test_what_attacks_is_refused_with_a_reason(tmp_path, what):
    notes, message = CALLS[what]
    with pytest.raises(ValueError, match=r"W\.pth: cannot be read") as error:
        read_weights(with_notes(tmp_path, notes))
    assert message in str(error.value)
    assert len(str(error.value)) < 600


def test_the_instructions_of_these_tests_are_read_where_nothing_is_wrong_with_them(tmp_path):
    """So that the tests above fail for the reason that they name."""
    array = ARRAY + b"(K\x01K\x02\x85" + DTYPE + STATE + b"\x89C\x10" + np.arange(2.0).tobytes() + b"tb"
    for notes, value in (
        (array, np.arange(2.0)),
        (call("numpy._core.multiarray.scalar", DTYPE + STATE + b"C\x08" + np.float64(3.5).tobytes()), 3.5),
        (call("_codecs.encode", text("é") + text("latin1")), b"\xe9"),
        (call("torch.Size", b"K\x02K\x03\x86"), (2, 3)),
    ):
        assert np.array_equal(read_weights(with_notes(tmp_path, notes)).meta["note"], value)
    assert len(read_weights(with_notes(tmp_path, LISTS)).meta["note"]) == 61  # is harmless until it is written out


def test_all_that_torch_saves_is_read(tmp_path):
    shared = torch.arange(6.0)
    values = {
        "tensors": [shared.view(2, 3), shared[2:4], shared.view(2, 3).t(), torch.nn.Parameter(torch.ones(2))],
        "kinds": [torch.ones(3).to(kind) for kind in (torch.bool, torch.uint8, torch.int64, torch.half, torch.double)],
        "new kinds": [torch.ones(3).bfloat16(), torch.ones(3).to(torch.float8_e4m3fn), torch.ones(2).to(torch.uint16)],
        "scalar": torch.tensor(3),
        "none": [torch.empty(0), torch.empty(2, 0)],
        "plain": (1, 2.5, "x" * 300, b"y", None, True, -(2**70), {1, 2}, collections.OrderedDict(a=1)),
        "counter": collections.Counter("aab"),
        "shape": torch.Size([1, 2]),
        "device": torch.device("cuda", 1),
        "dtype": torch.float16,
    }
    for legacy in (False, True):
        torch.save(values, tmp_path / "all.pt", _use_new_zipfile_serialization=not legacy)
        read = read_tensor_file(tmp_path / "all.pt").values
        for name in ("tensors", "kinds", "new kinds", "none"):
            for one, other in zip(values[name], read[name], strict=True):
                assert one.dtype == other.dtype and one.shape == other.shape and one.stride() == other.stride()
                assert torch.equal(one.detach().float(), other.float()), name
        assert read["scalar"] == 3 and read["plain"] == values["plain"] and read["counter"] == {"a": 2, "b": 1}
        assert (read["shape"], read["device"], read["dtype"]) == ((1, 2), "cuda:1", torch.float16)
        assert read["tensors"][0].data_ptr() == read["tensors"][2].data_ptr()  # one storage, as before


# Zip files


def small_file(folder: Path) -> Path:
    torch.save({"meta": {}, "state_dict": {"a.weight": torch.arange(40.0)}}, folder / "small.pth")
    return folder / "small.pth"


def test_every_flip_of_a_bit_is_noticed_or_changes_nothing(tmp_path):
    file = small_file(tmp_path)
    content, state = file.read_bytes(), read_weights(file).state
    draws = random.Random(0)
    noticed = 0
    for position in draws.sample(range(len(content) * 8), 800):
        changed = bytearray(content)
        changed[position // 8] ^= 1 << position % 8
        file.write_bytes(changed)
        try:
            found = read_weights(file)
        except ValueError:
            noticed += 1
            continue
        assert same(found.state, state), position
    assert noticed > 200


def test_the_checksum_of_every_entry_is_compared(tmp_path):
    """Also of one that no tensor is in."""
    file = small_file(tmp_path)
    content = file.read_bytes()
    for data in (torch.arange(40.0).numpy().tobytes(), b"little", b"3\n"):
        place = content.index(data)
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DamagedFile, match="Bad CRC-32"):
            read_weights(file)
    for length in (len(content) - 1, len(content) // 2, 10):
        file.write_bytes(content[:length])
        with pytest.raises(DamagedFile, match="cannot be read"):
            read_weights(file)


def test_zeroed_pages_are_noticed(tmp_path):
    torch.save({"model": torch.arange(2.0**18)}, tmp_path / "W.pth")
    content = (tmp_path / "W.pth").read_bytes()
    for start in range(0, len(content), 4096 * 13):
        changed = content[:start] + bytes(4096) + content[start + 4096 :]
        (tmp_path / "W.pth").write_bytes(changed[: len(content)])
        with pytest.raises(DamagedFile, match="cannot be read"):
            read_weights(tmp_path / "W.pth")


def test_what_a_file_inflates_to_is_looked_at_first(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "W.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W/data.pkl", pickle.dumps({}, 2))
        with archive.open("W/data/0", "w") as entry:
            for _ in range(64):
                entry.write(bytes(2**20))
    monkeypatch.setattr(zlib, "decompressobj", None)
    with pytest.raises(ValueError, match=r"its \d+ bytes would inflate to 67\d{6}"):
        read_weights(tmp_path / "W.pth")


def test_a_compressed_file_of_weights_is_read(tmp_path):
    file = small_file(tmp_path)
    with zipfile.ZipFile(file) as plain, zipfile.ZipFile(tmp_path / "W.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for info in plain.infolist():
            packed.writestr(info.filename, plain.read(info))
    assert same(read_weights(tmp_path / "W.pth").state, read_weights(file).state)


@pytest.mark.parametrize("twice", [True, False])
def test_other_zip_files_are_named(tmp_path, twice):
    with zipfile.ZipFile(tmp_path / "W.pth", "w") as archive:
        archive.writestr("W/data.pkl" if twice else "photos/1.jpg", b"x")
        if twice:
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr("W/data.pkl", b"y")
    with pytest.raises(ValueError, match="several entries" if twice else r"not one of torch\.save"):
        read_weights(tmp_path / "W.pth")


# Files before torch 1.6


def legacy(folder: Path) -> bytes:
    torch.save({"state_dict": {"a": torch.arange(4.0)}}, folder / "W.pth", _use_new_zipfile_serialization=False)
    return (folder / "W.pth").read_bytes()


def test_old_files_claim_no_more_than_they_hold(tmp_path):
    content = legacy(tmp_path)
    assert read_weights(tmp_path / "W.pth").state["a"].tolist() == [0, 1, 2, 3]
    count = b"K\x04N"  # 4 numbers, and no view
    assert content.count(count) == 1
    for claimed in (b"M\xff\xff", b"J\xff\xff\xff\x7f", LONG, b"J\xff\xff\xff\xff"):
        (tmp_path / "W.pth").write_bytes(content.replace(count, claimed + b"N"))
        with pytest.raises(DamagedFile, match=r"more than the file holds|is not described as one"):
            read_weights(tmp_path / "W.pth")
    (tmp_path / "W.pth").write_bytes(content[:-4])
    with pytest.raises(DamagedFile, match="is cut off"):
        read_weights(tmp_path / "W.pth")
    stream = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": False}):
        pickle.dump(value, stream, 2)
    (tmp_path / "W.pth").write_bytes(stream.getvalue())
    with pytest.raises(DamagedFile, match="big-endian"):
        read_weights(tmp_path / "W.pth")


# Names and shapes


def test_a_file_without_tensors_is_named(tmp_path):
    save_file({}, tmp_path / "W.safetensors")
    with pytest.raises(ValueError, match="without tensors"):
        read_weights(tmp_path / "W.safetensors")
    with pytest.raises(ValueError, match="and no state_dict"):
        read_weights(published(tmp_path, {}, name="empty.pth", meta=None))


def test_names_take_no_time(tmp_path):
    zero = torch.zeros(1)
    many = {f"ema_{number}": zero for number in range(30_000)}
    torch.save({"state_dict": {**many, "a": zero}}, tmp_path / "W.pth")
    assert list(read_weights(tmp_path / "W.pth").state) == ["a"]
    torch.save({"state_dict": {"module." * 60 + "a": torch.zeros(1)}}, tmp_path / "W.pth")
    assert len(read_weights(tmp_path / "W.pth").notes) == 8
    torch.save({"state_dict": {"module." * 10**5: torch.zeros(1)}}, tmp_path / "W.pth")
    with pytest.raises(ValueError, match="a tensor has a name of 700000 letters"):
        read_weights(tmp_path / "W.pth")


def test_rows_without_columns_are_no_classes(tiny_recipes, tmp_path):
    """They take no room in a file, whatever their number."""
    state = tiny_state(tiny_recipes["tiny_faster"])
    state["roi_head.bbox_head.fc_cls.weight"] = torch.empty(10**12, 0)
    with pytest.raises(ValueError, match=r"has class layers for 999999999999 classes; expected at most 100000"):
        libra_det.load(published(tmp_path, state), device="cpu")


def test_a_model_is_compared_with_the_file_before_it_takes_memory(tiny_config, tmp_path, monkeypatch):
    import json

    file = Trainer(tiny_config(), tmp_path, CPU)._save()
    values = torch.load(file, weights_only=True)
    config = json.loads(values["config"])
    config["model"] |= {"fpn_channels": 2048, "fc_channels": 4096, "roi_size": 7}  # 2 GB
    torch.save({**values, "config": json.dumps(config)}, file)
    with pytest.raises(ValueError, match="does not fit its own configuration"):
        libra_det.load(file, device="cpu")


def test_lists_that_name_themselves_take_no_memory():
    doubling = "a0 = ['x' * 1, 'y']\na0 = [1, 2]\n" + "".join(f"a{i + 1} = [a{i}, a{i}]\n" for i in range(40))
    settings = settings_of({"config": doubling + "model = dict(type='RetinaNet', bbox_head=dict(ratios=a40))"})
    assert settings.model == {}
    assert "a10" in read_assignments(doubling) and "a40" not in read_assignments(doubling)
    with pytest.raises(ValueError, match="has 2000000 letters"):
        read_assignments("a=1\n" * 500_000)
