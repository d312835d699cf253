"""Which device computes."""

import platform
import sys

import torch

import libra_ops


def choose_device(name: str) -> torch.device:
    """The device that a user names: auto (the first GPU that the kernels were built for), cpu, cuda, cuda:1, ...

    Raises:
        ValueError: the name is unknown, there is no such device, or the kernels were built without CUDA.
    """
    built = libra_ops.build_info()["cuda"]
    rebuild = "with nvcc at hand, `LIBRA_CUDA=1 pip install -e .` builds for the GPU"
    if name == "auto":
        if torch.cuda.is_available() and not built.startswith("yes"):
            print(f"libra: using the CPU: libra_ops was built without CUDA ({built}); {rebuild}", file=sys.stderr)
            return torch.device("cpu")
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cpu":
        return torch.device("cpu")
    index = device.index or 0
    if index >= torch.cuda.device_count():
        reason = (
            "torch is built without CUDA"
            if torch.version.cuda is None
            else f"{torch.cuda.device_count()} GPUs are visible"
        )
        raise ValueError(
            f"--device {name}: there is no such device ({reason}); `libra doctor` tells more, --device cpu always works"
        )
    if not built.startswith("yes"):
        raise ValueError(f"--device {name}: libra_ops was built without CUDA ({built}); {rebuild}")
    return torch.device("cuda", index)


def amp_warning(device: torch.device) -> str | None:
    """That bfloat16 is slow on this device: an x86 processor that has no instructions for it."""
    if device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return None
    has = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    if None in has or any(supported() for supported in has):  # a torch that does not say is not asked
        return None
    return (
        "this processor has neither AVX512-BF16 nor AMX, so a step in bfloat16 takes many times as long as in "
        "float32: give --no-amp"
    )
