"""The fixture that runs a test of a kernel in every order of threads."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .harness import FOLDER, ORDERS, Kernels, load


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The emulation guards memory and switches threads with what Linux offers."""
    if not sys.platform.startswith("linux"):
        for item in items:
            if FOLDER in Path(item.path).parents:
                item.add_marker(pytest.mark.skip(reason=f"the emulation of CUDA needs Linux, not {sys.platform}"))


@pytest.fixture(params=ORDERS)
def emulate(request: pytest.FixtureRequest) -> Callable[[str], Kernels]:
    """`emulate(op)` gives the functions of tests/emulation/<op>_driver.cpp, once for each order of threads."""
    return lambda op: load(FOLDER / f"{op}_driver.cpp", request.param)
