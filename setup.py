"""Builds `libra_ops._C`, torch's operators, and `libra_ops._numpy`, the CPU kernels for NumPy, which knows no torch.

_C has the C++ kernels always, and the CUDA kernels where nvcc and a CUDA build of torch are at hand.
LIBRA_CUDA=0 leaves CUDA out, LIBRA_CUDA=1 insists on it; TORCH_CUDA_ARCH_LIST chooses the GPUs; MAX_JOBS limits the
compilers that run at once. The plan is printed before the build and kept in the binary: `libra doctor` shows it.
LIBRA_SANITIZE=1 builds for the CPU with AddressSanitizer and UndefinedBehaviorSanitizer, for tests/sanitize.sh.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
from build_backend import OLDEST_TORCH, environment_paths  # noqa: E402

sys.path += environment_paths()  # an isolated build hides the torch of the environment it installs into
import torch  # noqa: E402

DEFAULT_ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")  # where no GPU says which it needs
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # one binary for every torch >= 2.10
CXX_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
]
# No contraction on either side: the CPU and every GPU give the same IoU, bit for bit.
NVCC_FLAGS = ["-std=c++17", "-O3", "--fmad=false", "--threads=2", "-DUSE_CUDA", STABLE_ABI]

# A finding ends the process, so that no test can pass over it.
SANITIZE_FLAGS = [
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-g",
    "-O1",
]


def check_torch() -> None:
    found = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if found < OLDEST_TORCH:
        sys.exit(f"libra_ops needs torch >= 2.10, but would be built against {torch.__version__}: upgrade torch first")


def find_cuda_home() -> Path | None:
    """The CUDA toolkit: CUDA_HOME or CUDA_PATH, else the one on PATH, else /usr/local/cuda."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            home = Path(os.environ[variable])
            if not _is_toolkit(home):
                sys.exit(f"{variable}={home}: there is no bin/nvcc with its headers; correct it or unset it")
            return home
    nvcc = shutil.which("nvcc")
    on_path = [Path(nvcc).resolve().parent.parent, Path(nvcc).parent.parent] if nvcc else []
    return next(filter(_is_toolkit, [*on_path, Path("/usr/local/cuda")]), None)


def _is_toolkit(home: Path) -> bool:
    headers = ("include/cuda_runtime.h", "targets/*/include/cuda_runtime.h")
    return (home / "bin" / "nvcc").exists() and any(any(home.glob(header)) for header in headers)


def nvcc_version(home: Path) -> str:
    text = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release (\d+\.\d+)", text).group(1)


def plan_cuda() -> tuple[Path | None, str]:
    """The toolkit to build with, or None, and the reason in words."""
    wish = os.environ.get("LIBRA_CUDA", "auto")
    if wish not in ("0", "1", "auto"):
        sys.exit(f"LIBRA_CUDA: expected 0, 1 or nothing, got {wish!r}")
    if wish == "0":
        return None, "no: LIBRA_CUDA=0"
    missing = None
    home = find_cuda_home()
    if torch.version.cuda is None:
        missing = f"torch {torch.__version__} is a CPU build"
    elif home is None:
        missing = "no nvcc found (looked at CUDA_HOME, PATH, /usr/local/cuda)"
    if missing and wish == "1":
        sys.exit(f"LIBRA_CUDA=1, but {missing}: install it, or build for the CPU with LIBRA_CUDA=0")
    if missing:
        return None, f"no: {missing}"
    version = nvcc_version(home)
    if version.split(".")[0] != torch.version.cuda.split(".")[0]:
        wanted = torch.version.cuda.split(".")[0]
        sys.exit(
            f"nvcc is CUDA {version} ({home}) but torch {torch.__version__} was built for CUDA {torch.version.cuda}: "
            f"their major versions have to agree. Point CUDA_HOME to a CUDA {wanted} toolkit, install a torch for "
            f"CUDA {version.split('.')[0]}, or build for the CPU only with LIBRA_CUDA=0."
        )
    return home, f"yes: nvcc {version} in {home}, torch for CUDA {torch.version.cuda}"


def architectures(home: Path) -> str:
    """What TORCH_CUDA_ARCH_LIST says, else the GPUs that are here, else what this nvcc knows of the default list."""
    if os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return os.environ["TORCH_CUDA_ARCH_LIST"]
    if torch.cuda.is_available():
        found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
        return ";".join(f"{major}.{minor}" for major, minor in sorted(found))
    listed = subprocess.run([home / "bin" / "nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout
    known = set(re.findall(r"compute_(\d+)", listed))
    chosen = [a for a in DEFAULT_ARCHITECTURES if a.replace(".", "") in known] or list(DEFAULT_ARCHITECTURES)
    return ";".join(chosen) + "+PTX"  # newer GPUs compile the last one's PTX as they start


def write_facts(facts: dict[str, str]) -> Path:
    """A header with the build's facts, for the op `build_info`."""
    folder = ROOT / "build" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    lines = "\\n".join(f"{name}: {value}" for name, value in facts.items()).replace('"', "'")
    (folder / "build_facts.h").write_text(f'#pragma once\n#define LIBRA_BUILD_FACTS "{lines}"\n')
    return folder


def plan_sanitizers() -> bool:
    wish = os.environ.get("LIBRA_SANITIZE", "0")
    if wish not in ("0", "1"):
        sys.exit(f"LIBRA_SANITIZE: expected 0, 1 or nothing, got {wish!r}")
    if wish == "1":
        os.environ["LIBRA_CUDA"] = "0"
    return wish == "1"


def find_compiler() -> str:
    """The compiler's own words about itself."""
    from torch.utils.cpp_extension import get_cxx_compiler

    compiler = shlex.split(get_cxx_compiler())  # CXX may be "ccache g++"
    if shutil.which(compiler[0]) is None:
        sys.exit(f"no C++ compiler: {compiler[0]!r} is not on PATH. Install g++ or clang++, or name one in CXX.")
    return subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout.splitlines()[0]


def extensions() -> list[Extension]:
    check_torch()
    sanitize = plan_sanitizers()
    home, why = plan_cuda()
    if home:
        os.environ["CUDA_HOME"] = str(home)
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures(home)
    # Only now: this module looks for CUDA_HOME as it is imported.
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    of_cuda = f" for CUDA {torch.version.cuda.split('.')[0]}" if home else ""
    facts = {
        "cuda": why,
        "architectures": os.environ["TORCH_CUDA_ARCH_LIST"] if home else "none",
        "compiler": find_compiler() + (" with AddressSanitizer and UndefinedBehaviorSanitizer" if sanitize else ""),
        "built against": f"torch {torch.__version__} (runs with every torch >= 2.10{of_cuda})",
    }
    for name, value in facts.items():
        print(f"libra_ops build | {name}: {value}", file=sys.stderr)
    flags = CXX_FLAGS + (SANITIZE_FLAGS if sanitize else [])
    common = {
        "depends": [str(path) for path in ROOT.glob("csrc/**/*.*h")],
        "extra_link_args": ["-pthread", *(SANITIZE_FLAGS[:1] if sanitize else [])],
    }
    of_numpy = "csrc/numpy.cpp"
    of_torch = [*find_sources("*.cpp"), *(find_sources("*.cu") if home else [])]
    of_torch.remove(of_numpy)
    kind = CUDAExtension if home else CppExtension
    return [
        kind(
            "libra_ops._C",
            of_torch,
            include_dirs=[str(write_facts(facts)), str(ROOT / "csrc")],
            extra_compile_args={"cxx": [*flags, STABLE_ABI], "nvcc": NVCC_FLAGS},
            py_limited_api=True,
            **common,
        ),
        Extension(  # links no torch
            "libra_ops._numpy",
            [of_numpy, *included_kernels(of_numpy)],
            include_dirs=[find_pybind11(), str(ROOT / "csrc")],
            extra_compile_args={"cxx": flags},
            language="c++",
            **common,
        ),
    ]


def find_sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(f"csrc/**/{pattern}"))


def included_kernels(source: str) -> list[str]:
    """The sources of the CPU kernels whose headers `source` includes."""
    return [f"csrc/{name}.cpp" for name in re.findall(r'#include "(\S+_cpu_kernel)\.h"', (ROOT / source).read_text())]


def find_pybind11() -> str:
    try:
        import pybind11
    except ImportError:  # torch brings a copy of its headers
        return str(Path(torch.__file__).parent / "include")
    return pybind11.get_include()


def build_command() -> type:
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        """Objects in a folder per extension: both compile the CPU kernels, with options of their own."""

        def build_extension(self, extension: Extension) -> None:
            shared = self.build_temp
            self.build_temp = os.path.join(shared, extension.name)
            try:
                super().build_extension(extension)
            finally:
                self.build_temp = shared

    return Build


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": build_command()})
