"""Attacks on the two packages, for their maintainers: hostile calls of libra_ops and hostile files for libra_det.

    python -m tests.attack operations --calls 500000 --seed 0
    python -m tests.attack files --files 5000 --seed 0

Each attack runs in a child process with limits on memory and time, and ends in one of three ways:

    refused   with the error that the contract promises (TypeError, ValueError, OSError; of a command exit code 1 or 2
              and one sentence), which names what is wrong
    handled   it worked, and what came back is what the contract says
    failed    everything else: a crash, another exception, a traceback, too much time or memory, raw control characters
              on the terminal, a wrong result

A table counts them. The inputs of each failure are written to a folder, and the exit code is 1 if anything failed. An
attack is a function of the seed and its number: `--only NUMBER` runs one again. `test_attack.py` runs a few of them.
"""
