"""The emulation itself: right kernels give right results in every order, and seeded mistakes are found."""

import re
import time

import pytest
import torch

from .harness import FOLDER, ORDERS, EmulationError, Kernels, empty, load, out

DRIVER = FOLDER / "examples_driver.cpp"
# Number of the bug in examples_driver.cpp, and what the error says (None: at least the result is wrong).
REVERSE_BUGS = {
    "no barrier": (1, "before anything is stored there"),
    "barrier in a branch": (2, None),
    "two barriers": (3, "threads of the block wait at different barriers, one at .*examples_driver.cpp:"),
    "shared array one too short": (4, r"0 bytes past the end of shared variable tile \(252 bytes\)"),
    "one element not written": (5, r"reads byte 20 of shared variable tile \(256 bytes\) before anything is stored"),
    "no barrier at the end of a loop": (6, r"race: .* of shared variable tile .*, which thread \(\d+, 0, 0\) "),
    "store after the end": (7, r"0 bytes past the end of argument 2 \[128\]"),
}
SUM_BUGS = {
    "half mask": (1, "shuffle reads lane 16, which is not in the mask"),
    "lane left out": (2, "mask that leaves it out"),
    "two branches": (3, "lanes of one mask are in different warp operations"),
    "lane has returned": (4, "mask names lane 7, which has returned|deadlock"),
    "barrier and shuffle": (5, "deadlock: 16 threads wait in the warp operation at .*, 16 .* in the barrier at"),
}
COUNT_BUGS = {
    "one past the count": (1, r"0 bytes past the end of argument 1 \[3, 40\] \(480 bytes\)"),
    "one before the start": (2, r"4 bytes before the start of argument 1 \[3, 40\]"),
    "int overflow": (3, "undefined behaviour"),
    "store to an input": (4, "store to an input: byte 0 of argument 1"),
    "misaligned vector": (5, "undefined behaviour"),
    "plain += on shared memory": (6, "race: .* of shared variable total"),
    "every block stores to the sum": (7, "race: stores to byte 0 of argument 3 .*, which another block stored"),
    "no barrier before the end": (8, "race: "),
}


@pytest.fixture
def examples(emulate) -> Kernels:
    return emulate("examples")


def reverse(kernels: Kernels, bug: int) -> bool:
    """Whether two rounds of reversing give the right answer."""
    numbers = torch.randn(2, 64, generator=torch.Generator().manual_seed(3))
    reversed_numbers = empty(128)
    kernels.run("run_reverse", bug, numbers.flatten(), out(reversed_numbers), 2)
    return torch.equal(reversed_numbers.view(2, 64), numbers.flip(1))


def count(kernels: Kernels, bug: int, last_full: bool = True) -> bool:
    values = torch.arange(120, dtype=torch.int32).view(3, 40)
    counts = torch.tensor([7, 0, 40 if last_full else 39], dtype=torch.int32)
    sums = empty(3, dtype=torch.int32)
    kernels.run("run_count", bug, values, counts, out(sums), 3, 40)
    return sums.tolist() == [values[image, : counts[image]].sum().item() for image in range(3)]


def found(run, kernels: Kernels, bug: int, message: str | None) -> bool:
    try:
        right = run(kernels, bug)
    except EmulationError as error:
        assert message is None or re.search(message, str(error)), error
        return True
    return not right


def sum_of_warp(kernels: Kernels, bug: int) -> bool:
    numbers, total = torch.arange(32, dtype=torch.int32) ** 2, empty(32, dtype=torch.int32)
    kernels.run("run_sum", bug, numbers, out(total))
    return total.tolist() == [numbers.sum().item()] * 32


def test_right_kernels_are_right(examples):
    assert reverse(examples, 0) and sum_of_warp(examples, 0) and count(examples, 0)


@pytest.mark.parametrize("bug", REVERSE_BUGS)
def test_mistakes_with_shared_memory_are_found_in_every_order(examples, bug):
    assert found(reverse, examples, *REVERSE_BUGS[bug])


@pytest.mark.parametrize("bug", SUM_BUGS)
def test_mistakes_within_a_warp_are_found_in_every_order(examples, bug):
    assert found(sum_of_warp, examples, *SUM_BUGS[bug])


@pytest.mark.parametrize("bug", COUNT_BUGS)
def test_wrong_accesses_are_found_in_every_order(examples, bug):
    assert found(count, examples, *COUNT_BUGS[bug])


def test_only_a_full_last_image_shows_a_read_past_its_end(examples):
    """Why the tests of the ops fill the last image: in a padded one the read hits padding, and may do no harm."""
    padding = torch.zeros(3, 40, dtype=torch.int32)
    for counts, seen in (([7, 0, 39], False), ([7, 0, 40], True)):
        arguments = (padding, torch.tensor(counts, dtype=torch.int32), out(empty(3, dtype=torch.int32)), 3, 40)
        if seen:
            with pytest.raises(EmulationError, match="past the end"):
                examples.run("run_count", 1, *arguments)
        else:
            examples.run("run_count", 1, *arguments)


def test_a_failure_names_block_thread_and_line_and_leaves_the_next_launch_alone(examples):
    for run, bug in ((reverse, 3), (count, 1), (count, 3), (count, 6)):  # divergence, access, undefined, race
        with pytest.raises(EmulationError, match=r"in \w+ order: .* \[block .*, thread .*examples_driver.cpp:\d+\]"):
            run(examples, bug)
    assert reverse(examples, 0)


def test_orders():
    def order_of(order: str, seed: int = 1) -> list[int]:
        sequence, reached = empty(480, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        load(DRIVER, order, seed).run("run_order", out(sequence), out(reached), 10)
        return sequence.tolist()

    assert order_of("forward") == list(range(480))  # grid (2, 3, 2), block (10, 2, 2)
    assert order_of("reverse") == list(range(479, -1, -1))
    shuffled = order_of("random", 1)
    assert sorted(shuffled) == list(range(480))
    assert shuffled == order_of("random", 1) and shuffled != order_of("random", 2)
    assert len({thread // 40 for thread in shuffled[:80]}) == 2  # still one block after another


def test_warp_operations(examples):
    values = torch.randint(-50, 50, (32,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    results = empty(12, 32, dtype=torch.int64)
    examples.run("run_warp", values, out(results))
    v, lanes = values.long(), torch.arange(32)
    positive = int((v > 0).sum())
    expected = [
        v[5].expand(32),
        v[lanes // 8 * 8 + 3],
        torch.where(lanes >= 2, v[lanes - 2], v),
        torch.where(lanes % 16 < 14, v[(lanes + 2) % 32], v),
        v[lanes ^ 1] << 32,
        sum(1 << int(lane) for lane in lanes[v > 0]),
        1,
        v.min(),
        (v % 2**32).max(),
        v.sum(),
        torch.stack([((v & 3 == v[lane] & 3).long() << lanes).sum() for lane in lanes]),
        positive + 100,
    ]
    for row, answer in enumerate(expected):
        assert torch.equal(results[row], torch.as_tensor(answer).expand(32)), row


@pytest.mark.parametrize("order", ORDERS)
def test_sync_warp_orders_lanes(order):
    """A warp may pass values through shared memory with __syncwarp alone; without it, it may not."""
    numbers, result = torch.arange(64, dtype=torch.int32), empty(64, dtype=torch.int32)
    load(DRIVER, order).run("run_neighbour", numbers, out(result), True)
    assert result.tolist() == [thread ^ 1 for thread in range(64)]
    with pytest.raises(EmulationError, match=r"race|before anything is stored"):
        load(DRIVER, order).run("run_neighbour", numbers, out(result), False)


def test_half_precision_rounds_as_torch_does(examples):
    every_half = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16).float()
    numbers = torch.randn(20_000, generator=torch.Generator().manual_seed(2)) * torch.logspace(-9, 6, 20_000)
    numbers = torch.cat([every_half, numbers, torch.tensor([65519.0, 65520.0, 2**-25, 3e38, 3.4e38])])
    half, bfloat, back = (empty(len(numbers), dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32))
    examples.run("run_half", numbers, out(half), out(bfloat), out(back), len(numbers))
    torch.testing.assert_close(half, numbers.half(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(bfloat, numbers.bfloat16(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(back, numbers.half().float(), rtol=0, atol=0, equal_nan=True)


def test_large_launches_are_fast(examples):
    values, factors = torch.rand(4, 2000), torch.rand(4, 50)
    best = empty(4, 50, dtype=torch.int64)
    start = time.process_time()
    examples.run("run_maxima", values, factors, out(best), 4, 2000, 50, 8 * 8)
    seconds = time.process_time() - start
    products = values[:, :, None] * factors[:, None, :]
    assert torch.equal(best & 0xFFFFFFFF, products.argmax(1))
    assert seconds < 2, f"4 images x 2000 values x 50 factors took {seconds:.2f} s"  # measured: 0.1 s


def test_dynamic_shared_memory_has_its_exact_size(examples):
    best = empty(1, 2, dtype=torch.int64)
    for bytes_given in (6 * 8, 7 * 8):  # of 8 numbers; the second ends off the 16 bytes that it is aligned to
        with pytest.raises(EmulationError, match="past the end of dynamic shared memory"):
            examples.run("run_maxima", torch.rand(1, 256), torch.rand(1, 2), out(best), 1, 256, 2, bytes_given)
    with pytest.raises(EmulationError, match="launched with 0 bytes"):
        examples.run("run_maxima", torch.rand(1, 256), torch.rand(1, 2), out(best), 1, 256, 2, 0)
    with pytest.raises(EmulationError, match=r"invalid launch: grid .* 70000 bytes"):
        examples.run("run_maxima", torch.rand(1, 256), torch.rand(1, 2), out(best), 1, 256, 2, 70000)


def test_arguments_that_do_not_fit_are_named(examples):
    with pytest.raises(ValueError, match="argument 1: expected a contiguous CPU tensor"):
        examples.run("run_sum", 0, torch.zeros(32, 2, dtype=torch.int32)[:, 0], out(empty(32)))
    with pytest.raises(TypeError, match="argument 1: expected tensor"):
        examples.run("run_sum", 0, [1.0], out(empty(32)))
