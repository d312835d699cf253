"""The build backend: setuptools, asking for torch only where the environment has none that will do.

An isolated build hides the packages of the environment it installs into, and would download a second torch (5 GB) to
build against. This backend looks into that environment first; setup.py then puts its packages back within reach.
"""

import os
import re
import site
import sys
import sysconfig
from importlib import metadata

from setuptools.build_meta import *  # noqa: F403

OLDEST_TORCH = (2, 10)  # the first with all of the stable ABI that the kernels use


def environment_paths() -> list[str]:
    """Where the environment that is installed into finds its packages, whether or not the isolated build hides them."""
    own = sysconfig.get_paths()
    paths = [own["purelib"], own["platlib"]]
    settings = os.path.join(sys.prefix, "pyvenv.cfg")
    in_venv = os.path.exists(settings)
    if in_venv and re.search(r"include-system-site-packages\s*=\s*true", open(settings).read()):
        base = sysconfig.get_paths(vars={"base": sys.base_prefix, "platbase": sys.base_exec_prefix})
        paths += [base["purelib"], base["platlib"], site.getusersitepackages()]
    elif not in_venv:
        paths.append(site.getusersitepackages())
    return list(dict.fromkeys(paths))


def _torch_will_do() -> bool:
    """Whether the first torch that the environment finds is new enough; an older one is about to be upgraded."""
    for distribution in metadata.distributions(name="torch", path=[*sys.path, *environment_paths()]):
        return tuple(map(int, re.findall(r"\d+", distribution.version)[:2])) >= OLDEST_TORCH
    return False


def _requirements() -> list[str]:
    # Not setuptools' own answer: to find it, setuptools runs setup.py, which needs torch.
    return [] if _torch_will_do() else ["torch>=2.10", "numpy"]


def get_requires_for_build_wheel(config_settings=None):
    return _requirements()


def get_requires_for_build_editable(config_settings=None):
    return _requirements()
