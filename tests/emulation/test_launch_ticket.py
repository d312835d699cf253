"""Launches that may run at the same time never get one counter, and where counters run out the launch is told so."""

import ctypes
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from .harness import CSRC, FOLDER, _compiler

NONE_LEFT = -1


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    target = tmp_path_factory.mktemp("tickets") / "tickets.so"
    # Without optimisation gcc leaves calls to parts of the emulation that nothing here uses.
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-fPIC", "-shared", "-pthread", f"-I{CSRC}", f"-I{FOLDER}"]
    source = FOLDER / "launch_ticket_driver.cpp"
    subprocess.run([*_compiler(), *flags, str(source), "-o", str(target)], check=True)
    found = ctypes.CDLL(str(target))
    found.tickets_new.restype = ctypes.c_void_p
    return found


@pytest.fixture
def take(library):
    """take(device, stream, capturing, error) of ten tickets."""
    tickets = ctypes.c_void_p(library.tickets_new(10))
    yield lambda device=0, stream=1, capturing=0, error=0: library.tickets_take(
        tickets, device, stream, capturing, error
    )
    library.tickets_delete(tickets)


def test_a_stream_keeps_its_ticket_and_shares_it_with_none(take):
    places = [(device, stream) for device in (0, 1) for stream in (1, 2, 7)]
    first = [take(*place) for place in places]
    assert len(set(first)) == len(places) and all(0 <= ticket < 10 for ticket in first)
    assert [take(*place) for place in places] == first


def test_every_captured_launch_gets_its_own_for_good(take):
    eager = take()
    captured = [take(capturing=1) for _ in range(3)]
    assert len({eager, *captured}) == 4
    assert take() == eager


def test_where_none_is_left_old_streams_go_on(take):
    eager = take()
    captured = [take(capturing=1) for _ in range(12)]
    assert captured[9:] == [NONE_LEFT] * 3 and NONE_LEFT not in captured[:9]
    assert take() == eager
    assert [take(stream=2), take(stream=2)] == [NONE_LEFT, NONE_LEFT]


def test_a_stream_that_does_not_answer_gets_none_and_costs_none(take):
    assert take(error=1) == NONE_LEFT
    assert len({take(stream=stream) for stream in range(10)}) == 10


def test_threads_that_ask_at_the_same_time(library):
    tickets = ctypes.c_void_p(library.tickets_new(1000))
    with ThreadPoolExecutor(8) as pool:
        captured = list(pool.map(lambda _: library.tickets_take(tickets, 0, 1, 1, 0), range(800)))
        streams = list(pool.map(lambda i: library.tickets_take(tickets, 0, i % 50, 0, 0), range(800)))
    library.tickets_delete(tickets)
    assert len(set(captured)) == 800
    assert len(set(streams)) == 50 and not set(streams) & set(captured)
    assert all(len(set(streams[stream::50])) == 1 for stream in range(50))
