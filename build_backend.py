"""The build backend: setuptools, asking for torch only where the environment has none.

An isolated build hides the packages of the environment it installs into, and would download a second torch (5 GB) to
build against. This backend looks into that environment first; setup.py then puts its packages back within reach.
"""

import importlib.machinery
import importlib.util
import sysconfig

from setuptools.build_meta import *  # noqa: F403


def environment_paths() -> list[str]:
    """Where the environment that is installed into keeps its packages, whether or not the isolated build hides it."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys([paths["purelib"], paths["platlib"]]))


def _torch_is_there() -> bool:
    if importlib.util.find_spec("torch"):
        return True
    return importlib.machinery.PathFinder.find_spec("torch", environment_paths()) is not None


def _requirements() -> list[str]:
    # Not setuptools' own answer: to find it, setuptools runs setup.py, which needs torch.
    return [] if _torch_is_there() else ["torch>=2.10", "numpy"]


def get_requires_for_build_wheel(config_settings=None):
    return _requirements()


def get_requires_for_build_editable(config_settings=None):
    return _requirements()
