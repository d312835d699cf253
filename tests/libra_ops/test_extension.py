"""The compiled extension: what it says of itself and where it is missing, and that its CPU and CUDA kernels agree."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import libra_ops
from libra_ops import _extension, balanced_l1_loss
from libra_ops.box_iou import box_iou

PACKAGE = Path(libra_ops.__file__).parent
KINDS = ("iou", "iof", "giou", "diou", "ciou")


def test_build_info():
    facts = libra_ops.build_info()
    assert set(facts) == {"cuda", "architectures", "compiler", "built against"}
    assert facts["cuda"].startswith(("yes: nvcc", "no: "))
    assert (facts["architectures"] == "none") == facts["cuda"].startswith("no")
    assert "torch" in facts["built against"]
    facts["cuda"] = "changed"
    assert libra_ops.build_info()["cuda"] != "changed"  # the caller's copy


class _CudaTensor(torch.Tensor):
    """A tensor that says it is on a GPU, for machines without one."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda:0")


def test_cuda_tensor_in_a_build_without_cuda(monkeypatch):
    monkeypatch.setattr(_extension, "_HAS_CUDA", False)
    monkeypatch.setitem(_extension._FACTS, "cuda", "no: LIBRA_CUDA=0")
    tensor = torch.ones(2, 4).as_subclass(_CudaTensor)
    for function, name in (
        (lambda: box_iou(tensor, tensor), "boxes1"),
        (lambda: balanced_l1_loss(tensor, tensor), "pred"),
    ):
        with pytest.raises(
            RuntimeError, match=rf"{name}: is on cuda:0, .* without CUDA \(no: LIBRA_CUDA=0\)"
        ) as caught:
            function()
        assert "LIBRA_CUDA=1 pip install -e ." in str(caught.value)


def test_unknown_device():
    with pytest.raises(ValueError, match="boxes1: expected a tensor on cpu or cuda, got mps"):
        _extension.check_device("boxes1", type("Tensor", (), {"device": torch.device("mps")})())


def import_from(folder: Path) -> str:
    """The error with which the import of a function from a copy of the package ends."""
    program = "from libra_ops import box_iou"
    result = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert result.returncode != 0
    return result.stderr


@pytest.fixture
def copied_package(tmp_path: Path) -> Path:
    package = tmp_path / "libra_ops"
    package.mkdir()
    for source in PACKAGE.glob("*.py"):
        (package / source.name).write_text(source.read_text())
    return tmp_path


def test_missing_extension(copied_package):
    error = import_from(copied_package)
    assert "ImportError: libra_ops: the compiled extension is not there" in error
    assert str(copied_package) in error and "pip install -e ." in error


def test_extension_that_does_not_load(copied_package):
    (copied_package / "libra_ops" / "_C.abi3.so").write_bytes(b"built for another machine")
    error = import_from(copied_package)
    assert f"does not load with torch {torch.__version__}" in error and "pip install -e ." in error


def run_afresh(program: str) -> None:
    """In an interpreter that has imported nothing yet."""
    result = subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "first",
    [
        "import libra_ops",
        "import libra_ops.match_boxes",
        "from libra_ops.match_boxes import Matches",
        "from libra_ops import match_boxes, reference",
        "from libra_ops import *",
        "import libra_ops.sample_iou_balanced, libra_ops.box_iou, libra_ops.balanced_l1_loss, libra_ops.numpy",
    ],
)
def test_functions_are_found_whatever_is_imported_first(first):
    run_afresh(
        f"""
{first}
import libra_ops, types
for name in libra_ops.__all__:
    assert name in dir(libra_ops)
    assert callable(getattr(libra_ops, name)) and not isinstance(getattr(libra_ops, name), types.ModuleType), name
import libra_ops.match_boxes, importlib
assert isinstance(libra_ops.match_boxes, types.FunctionType)
assert isinstance(importlib.import_module("libra_ops.match_boxes"), types.ModuleType)
assert libra_ops.reference.box_iou is not libra_ops.box_iou and libra_ops.numpy.match_boxes
try:
    libra_ops.nothing
except AttributeError as error:
    assert "'libra_ops' has no attribute 'nothing'" in str(error)
"""
    )


def test_the_package_imports_torch_at_first_use():
    run_afresh(
        """
import sys, libra_ops
assert "torch" not in sys.modules and "box_iou" in dir(libra_ops) and "torch" not in sys.modules
libra_ops.build_info()
assert "torch" in sys.modules
"""
    )


@pytest.mark.parametrize("imports", ["import torch, libra_ops", "import libra_ops, torch"])
def test_the_operators_are_there_with_torch(imports):
    run_afresh(f"""
{imports}
boxes = torch.rand(1, 5, 4)
assert torch.ops.libra_ops.box_iou(boxes, boxes, 0).shape == (1, 5, 5)
torch.library.opcheck(torch.ops.libra_ops.box_iou.default, (boxes, boxes, 0), test_utils="test_faketensor")
""")


def test_a_first_use_can_be_compiled():
    run_afresh(
        """
import torch, libra_ops
boxes = torch.rand(1, 5, 4)
overlaps = torch.compile(lambda x: libra_ops.box_iou(x, x) + 1, fullgraph=True, backend="eager")(boxes)
assert torch.equal(overlaps, libra_ops.box_iou(boxes, boxes) + 1)
"""
    )


def random_boxes(*shape: int, seed: int) -> torch.Tensor:
    corners = torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(seed)) * 100
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 500, 301), (1, 65, 1024)], ids=str)
def test_box_iou_on_cuda(kind, shape):
    batch, n, m = shape
    boxes1, boxes2 = random_boxes(batch, n, seed=1), random_boxes(batch, m, seed=2)
    if n > 1:
        boxes1[0, 3] = torch.tensor([0.0, 0, 1e20, 1e20])
        boxes1[0, 5, 2], boxes2[0, 7, 0] = float("nan"), float("inf")
    on_cpu, on_cuda = box_iou(boxes1, boxes2, kind), box_iou(boxes1.cuda(), boxes2.cuda(), kind).cpu()
    if kind in ("iou", "iof"):
        torch.testing.assert_close(on_cuda, on_cpu, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(on_cuda, on_cpu, equal_nan=True)
    incoming = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    incoming[:, ~boxes1.isfinite().all(-1)[0]] = 0
    incoming[..., ~boxes2.isfinite().all(-1)[0]] = 0
    results = []
    for device in ("cpu", "cuda", "cuda"):
        inputs = [boxes.to(device, copy=True).requires_grad_() for boxes in (boxes1, boxes2)]
        results.append(torch.autograd.grad(box_iou(*inputs, kind), inputs, incoming.to(device)))
    for cpu, cuda, again in zip(*results, strict=True):
        torch.testing.assert_close(cuda.cpu(), cpu, rtol=1e-4, atol=1e-4 * float(cpu.abs().max()))
        assert torch.equal(cuda, again)


@pytest.mark.cuda
def test_box_iou_on_cuda_beyond_32_bits():
    """[50,000, 50,000] is more than 2^31 elements: 10 GB."""
    if torch.cuda.mem_get_info()[0] < 14e9:
        pytest.skip("needs 14 GB of free GPU memory")
    boxes = random_boxes(50_000, seed=1)
    overlaps = box_iou(boxes.cuda(), boxes.cuda())
    torch.testing.assert_close(overlaps[-100:, -100:].cpu(), box_iou(boxes[-100:], boxes[-100:]), rtol=0, atol=0)


@pytest.mark.cuda
def test_box_iou_on_cuda_not_aligned():
    boxes = random_boxes(33, seed=1)
    shifted = torch.cat([torch.zeros(1), boxes.flatten()]).cuda()[1:].view(33, 4)
    assert torch.equal(box_iou(shifted, boxes.cuda()).cpu(), box_iou(boxes, boxes))


@pytest.mark.cuda
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("formula", ["paper", "published"])
def test_balanced_l1_loss_on_cuda(reduction, formula):
    generator = torch.Generator().manual_seed(0)
    pred, target, weight = (torch.randn(50_000, 4, generator=generator) for _ in range(3))
    weight = weight.clamp(min=0)
    pred[weight[:, 0] == 0, 0] = float("nan")
    results = []
    for device in ("cpu", "cuda", "cuda"):
        inputs = [x.to(device, copy=True).requires_grad_() for x in (pred, target)]
        loss = balanced_l1_loss(*inputs, weight.to(device), beta=0.5, formula=formula, reduction=reduction)
        results.append((loss.detach(), *torch.autograd.grad(loss.sum(), inputs)))
    for cpu, cuda, again in zip(*results, strict=True):
        torch.testing.assert_close(cuda.cpu(), cpu)
        assert torch.equal(cuda, again)


@pytest.mark.cuda
def test_the_current_stream_is_used():
    boxes = random_boxes(64, seed=1).cuda()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # the copy below is late; a kernel on another stream would not wait for it
        late = torch.empty_like(boxes).copy_(boxes)
        overlaps = box_iou(late, late)
    stream.synchronize()
    assert torch.equal(overlaps.cpu(), box_iou(boxes.cpu(), boxes.cpu()))
