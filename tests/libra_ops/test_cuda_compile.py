"""Every CUDA source compiles for every architecture we name, and no kernel spills registers to memory."""

import importlib.util
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from torch.utils.cpp_extension import COMMON_NVCC_FLAGS, include_paths

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
SOURCES = sorted(ROOT.glob("csrc/*/*_cuda.cu"))
# One line for the kernel and architecture, and some lines later one for its spills.
KERNEL = re.compile(r"Compiling entry function '(\w+)' for '(sm_\d+)'")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


def build_script() -> ModuleType:
    """setup.py as a module: the flags and the nvcc that the extension is built with."""
    specification = importlib.util.spec_from_file_location("libra_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def compile_source(nvcc: Path, flags: list[str], source: Path, output: Path) -> str:
    """What nvcc and ptxas say about `source`, compiled for all architectures."""
    targets = [f"-gencode=arch=compute_{name[3:]},code={name}" for name in ARCHITECTURES]
    includes = [f"-I{path}" for path in [ROOT / "csrc", *include_paths()]]
    command = [str(nvcc), *flags, *targets, "-Xptxas=-v", *includes, "-c", str(source), "-o", str(output)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{source.name} does not compile:\n{result.stderr}"
    return result.stdout + result.stderr


def spills_of_kernels(report: str) -> dict[tuple[str, str], int]:
    """Bytes spilled by each (kernel, architecture)."""
    kernel, spills = None, {}
    for line in report.splitlines():
        if found := KERNEL.search(line):
            kernel = found.groups()
        elif (found := SPILLS.search(line)) and kernel:
            spills[kernel] = int(found[1]) + int(found[2])
            kernel = None
    return spills


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    setup = build_script()
    home = setup.find_cuda_home()
    if home is None:
        pytest.skip("needs nvcc: none in CUDA_HOME, on PATH or in /usr/local/cuda")
    flags = COMMON_NVCC_FLAGS + [flag for flag in setup.NVCC_FLAGS if not flag.startswith("--threads")]
    folder = tmp_path_factory.mktemp("cubins")
    with ThreadPoolExecutor(2) as pool:  # each runs one nvcc
        jobs = {
            source.name: pool.submit(compile_source, home / "bin" / "nvcc", flags, source, folder / f"{source.name}.o")
            for source in SOURCES
        }
    return {name: job.result() for name, job in jobs.items()}


@pytest.mark.parametrize("source", [source.name for source in SOURCES])
def test_compiles_for_every_architecture_without_spills(reports, source):
    spills = spills_of_kernels(reports[source])
    kernels = {kernel for kernel, _ in spills}
    assert kernels, f"no kernel in {source}"
    assert spills.keys() == {(kernel, name) for kernel in kernels for name in ARCHITECTURES}
    spilling = [f"{kernel} on {name}: {spilled} bytes" for (kernel, name), spilled in spills.items() if spilled]
    assert not spilling, "registers spilled:\n" + "\n".join(spilling)


def test_spills_would_be_noticed():
    report = (
        "ptxas info    : Compiling entry function '_Z3fooPf' for 'sm_90'\n"
        "ptxas info    : Function properties for _Z3fooPf\n"
        "    1024 bytes stack frame, 16 bytes spill stores, 32 bytes spill loads\n"
    )
    assert spills_of_kernels(report) == {("_Z3fooPf", "sm_90"): 48}
