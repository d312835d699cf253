"""The examples in the docstrings give what they say."""

import doctest

import pytest
import torch

import libra_ops
import libra_ops.numpy

PLACES = [(libra_ops, name) for name in libra_ops.__all__] + [
    (libra_ops.numpy, name) for name in vars(libra_ops.numpy) if not name.startswith("_")
]


def examples() -> dict[str, list[doctest.Example]]:
    found = {}
    for module, name in PLACES:
        function = getattr(module, name)
        text = getattr(function, "__doc__", None) or ""
        if callable(function) and ">>>" in text and function.__module__.startswith("libra_ops"):
            found[f"{function.__module__}.{name}"] = doctest.DocTestParser().get_examples(text)
    return found


EXAMPLES = examples()


def test_there_are_examples():
    assert len(EXAMPLES) >= 14


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name):
    import numpy as np

    module, _, _ = name.rpartition(".")
    names = {"torch": torch, "np": np, "libra_ops": libra_ops}
    names |= (
        vars(libra_ops.numpy) if module == "libra_ops.numpy" else {n: getattr(libra_ops, n) for n in libra_ops.__all__}
    )
    test = doctest.DocTest(EXAMPLES[name], names, name, None, None, None)
    failed = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).run(test)
    assert failed.attempted and not failed.failed
