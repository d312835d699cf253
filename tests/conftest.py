"""Fixtures for all tests: where the real photos and the goldens of the reference implementation are."""

import hashlib
import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"needs {folder.name}: {folder} is not there (set {variable})")
    return folder


@pytest.fixture(scope="session")
def libra_data() -> Path:
    """Folder of real annotated photos: $LIBRA_DATA, or ../shared/data beside the repository."""
    return _folder("LIBRA_DATA", ROOT.parent / "shared" / "data")


@pytest.fixture(scope="session")
def libra_goldens() -> Path:
    """Folder of inputs and outputs of the reference implementation: $LIBRA_GOLDENS, or ../shared/goldens."""
    return _folder("LIBRA_GOLDENS", ROOT.parent / "shared" / "goldens")


@pytest.fixture(scope="session", autouse=True)
def _own_compile_cache() -> None:
    """torch.compile's cache on disk knows an op by its name: keeps programs made with other schemas or rules apart."""
    package = Path(find_spec("libra_ops").origin).parent
    files = [*sorted(package.glob("*.py")), *sorted(package.glob("_C*.so"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    torch.compiler.config.cache_key_tag = f"libra_ops {digest}"


@pytest.fixture(scope="session", autouse=True)
def _signals_of_a_terminal() -> None:
    """Tests send SIGINT and SIGHUP, which jobs in the background and `nohup` ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `cuda` run wherever a GPU is, and say so where they do not."""
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
