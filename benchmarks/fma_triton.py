"""The most float32 fused multiply-adds that a GPU does: a loop over registers. Imported only where a GPU is."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024  # numbers of a block, four for each of its 256 threads
CHAINS = 8  # independent multiply-adds per number: 32 in flight per thread
UNROLLED = 4  # turns of the loop written out: three other instructions beside 128 multiply-adds
ROUNDS = 1024


@triton.jit
def fma_kernel(sink, rounds, BLOCK: tl.constexpr, UNROLLED: tl.constexpr):
    x = tl.arange(0, BLOCK).to(tl.float32) + tl.load(sink)
    a, b, c, d = x, x + 1.0, x + 2.0, x + 3.0
    e, f, g, h = x + 4.0, x + 5.0, x + 6.0, x + 7.0
    for _ in range(rounds):
        for _ in tl.static_range(UNROLLED):
            a = a * 0.999 + x
            b = b * 0.999 + x
            c = c * 0.999 + x
            d = d * 0.999 + x
            e = e * 0.999 + x
            f = f * 0.999 + x
            g = g * 0.999 + x
            h = h * 0.999 + x
    total = tl.sum(a + b + c + d + e + f + g + h)
    tl.atomic_max(sink + 1, total)


def launch(device: torch.device, rounds: int = ROUNDS) -> int:
    """Starts the loop on the whole GPU; returns the multiply-adds that it does."""
    blocks = torch.cuda.get_device_properties(device).multi_processor_count * 16
    sink = torch.zeros(2, device=device)
    fma_kernel[(blocks,)](sink, rounds, BLOCK=BLOCK, UNROLLED=UNROLLED, num_warps=8)
    return blocks * BLOCK * CHAINS * UNROLLED * rounds
