"""Benchmarks of libra_ops: `python -m benchmarks`. One harness, one file per subject, RESULTS.md written from JSON."""
