"""The fixture that runs a test of a kernel in every order of threads."""

from collections.abc import Callable

import pytest

from .harness import FOLDER, ORDERS, Kernels, load


@pytest.fixture(params=ORDERS)
def emulate(request: pytest.FixtureRequest) -> Callable[[str], Kernels]:
    """`emulate(op)` gives the functions of tests/emulation/<op>_driver.cpp, once for each order of threads."""
    return lambda op: load(FOLDER / f"{op}_driver.cpp", request.param)
