"""Which device computes."""

import torch


def choose_device(name: str) -> torch.device:
    """The device that a user names: auto (the first GPU if there is one), cpu, cuda, cuda:1, ...

    Raises:
        ValueError: the name is unknown, or there is no such device.
    """
    if name == "auto":
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
    return torch.device("cuda", index)
