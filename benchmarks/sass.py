"""What the compiler made of every CUDA kernel, counted without a GPU.

    python -m benchmarks.sass                            a table of all kernels on sm_90
    python -m benchmarks.sass match_boxes --loops        of one operation, every innermost loop with its instructions
    python -m benchmarks.sass --json benchmarks/results/sass_sm_90.json

Compiles csrc/*/*_cuda.cu with the flags of setup.py and reads the machine code (SASS): registers, static shared memory,
spills, local memory, 16-byte accesses, and the loops. Occupancy is calculated from registers, static shared memory and
the block size of __launch_bounds__, not measured; dynamic shared memory, which the launch chooses, is not in it.

A kernel's hot loop is taken to be the innermost loop with the most floating-point instructions, or the longest where
none has any; double precision counts against a loop in a kernel of float, where it is for rare boxes. `fast path` is
the shortest way once around it: less what only rare cases run.

Needs nvcc, and cuobjdump: on PATH, beside nvcc, or in the triton package that comes with torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What decides how many blocks a multiprocessor holds: CUDA C++ Programming Guide, "Compute Capabilities".
# Shared memory in bytes, of which each block takes `reserved` more than it asks for. Registers are given to a warp.
REGISTERS, REGISTERS_UNIT = 65536, 256
LIMITS = {  # warps, blocks, shared memory, reserved
    "sm_75": (32, 16, 64 << 10, 0),
    "sm_80": (64, 32, 164 << 10, 1024),
    "sm_86": (48, 16, 100 << 10, 1024),
    "sm_89": (48, 24, 100 << 10, 1024),
    "sm_90": (64, 32, 228 << 10, 1024),
    "sm_100": (64, 32, 228 << 10, 1024),
    "sm_120": (48, 24, 100 << 10, 1024),
}

# Kinds of instruction by the unit that runs them; the first that fits. FMNMX, FSETP and FSEL run at half the rate of
# FADD on sm_90, which runs 128 of those a clock on each multiprocessor.
KINDS = {
    "fp32": r"(FADD|FMUL|FFMA)\b",
    "fp32 compare": r"(FMNMX|FSETP|FSEL|FSET|FCHK)",
    "fp64": r"D(ADD|MUL|FMA|SETP)",
    "special function": r"MUFU",
    "shared load": r"LDS",
    "shared store": r"STS",
    "shared atomic": r"ATOMS",
    "global load": r"LDG?\b",
    "global store": r"STG?\b",
    "global atomic": r"(ATOMG?|RED)\b",
    "local memory": r"(LDL|STL)",
    "warp": r"(SHFL|VOTE|REDUX|CREDUX|MATCH)",
    "branch": r"(BRA|BRX|BSSY|BSYNC|CALL|RET|EXIT|WARPSYNC|YIELD|BREAK)",
    "uniform": r"(U[A-Z]|R2UR|S2UR)",
    "integer": r"",
}


@dataclasses.dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str  # "@P0", "@!UP1", or nothing
    name: str  # with its modifiers: LDG.E.128
    operands: str

    @property
    def kind(self) -> str:
        return next(kind for kind, pattern in KINDS.items() if re.match(pattern, self.name))

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = re.search(r"0x([0-9a-f]+)\s*$", self.operands) if self.name.startswith("BRA") else None
        return int(found[1], 16) if found else None

    @property
    def ends_path(self) -> bool:
        return not self.predicate and self.name.split(".")[0] in ("BRA", "EXIT", "RET", "BRX", "JMP")


def find_tool(name: str) -> str:
    places = [shutil.which(name)]
    if nvcc := shutil.which("nvcc"):
        places.append(Path(nvcc).resolve().parent / name)
    if triton := importlib.util.find_spec("triton"):
        places.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name)
    for place in places:
        if place and Path(place).exists():
            return str(place)
    sys.exit(f"{name}: not on PATH, not beside nvcc, and no triton package that carries it; install the CUDA toolkit")


def run(*command: str | Path) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}\nfailed:\n{result.stderr}")
    return result.stdout + result.stderr


def compile_flags() -> list[str]:
    """Those of setup.py, which is read, not run: it would ask for a build."""
    sys.path.insert(0, str(ROOT))
    specification = importlib.util.spec_from_file_location("libra_setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(setup)
    from torch.utils.cpp_extension import include_paths

    flags = [flag for flag in setup.NVCC_FLAGS if not flag.startswith("--threads")]
    return flags + [f"-I{path}" for path in (ROOT / "csrc", *include_paths())]


def demangled(names: list[str]) -> dict[str, str]:
    """Kernel names without namespace and parameters, with their template arguments."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if not tool or not names:
        return {name: name for name in names}
    full = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True).stdout.splitlines()
    return {name: re.sub(r"^void |libra::|\(anonymous namespace\)::|\([^()]*\)$", "", text).strip()
            for name, text in zip(names, (re.sub(r"\((libra::)?(Kind|bool|int)\)", "", line) for line in full),
                                  strict=True)}  # fmt: skip


def parse_ptxas(report: str) -> dict[str, dict]:
    """Of every kernel: registers, static shared memory, stack and spills, all in bytes but the first."""
    kernels, name = {}, None
    for line in report.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            name = found[1]
            kernels[name] = {"shared_bytes": 0}
        elif name is None:
            continue
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernels[name]["stack_bytes"] = int(found[1])
            kernels[name]["spill_bytes"] = int(found[2]) + int(found[3])
        elif found := re.search(r"Used (\d+) registers", line):
            kernels[name]["registers"] = int(found[1])
            if shared := re.search(r"(\d+) bytes smem", line):
                kernels[name]["shared_bytes"] = int(shared[1])
    return kernels


def parse_block_sizes(elf: str) -> dict[str, int]:
    """Threads of a block, from __launch_bounds__; a kernel without it is left out."""
    sizes, name = {}, None
    for section in re.split(r"\n(?=\.nv\.info)", elf):
        if found := re.match(r"\.nv\.info\.(\w+)", section):
            name = found[1]
            if value := re.search(r"EIATTR_MAX_THREADS\s+Format:\s+\w+\s+Value:\s+(.*)", section):
                x, y, z = (int(number, 16) for number in value[1].split()[:3])
                sizes[name] = x * y * z
    return sizes


def parse_sass(text: str) -> dict[str, list[Instruction]]:
    """The instructions of every function, addresses in bytes."""
    functions = {}
    for part in re.split(r"\n\s*Function : ", text)[1:]:
        name, body = part.split("\n", 1)
        found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", body)
        functions[name.strip()] = [Instruction(int(a, 16), p.strip(), n, o.strip()) for a, p, n, o in found]
    return functions


class Loops:
    """The innermost natural loops of a function: where a branch goes back to a block that all ways to it pass."""

    def __init__(self, instructions: list[Instruction]):
        self.instructions = instructions
        at = {instruction.address: i for i, instruction in enumerate(instructions)}
        targets = {at[i.target] for i in instructions if i.target in at}
        after_branch = {i + 1 for i, instruction in enumerate(instructions) if instruction.target is not None}
        starts = sorted(({0} | targets | after_branch) & set(range(len(instructions))))
        self.blocks = [range(begin, end) for begin, end in zip(starts, [*starts[1:], len(instructions)], strict=True)]
        number = {block.start: n for n, block in enumerate(self.blocks)}
        self.next = []
        for n, block in enumerate(self.blocks):
            last = instructions[block.stop - 1]
            after = [number[at[last.target]]] if last.target in at else []
            if not last.ends_path and n + 1 < len(self.blocks):
                after.append(n + 1)
            self.next.append(after)

    def innermost(self) -> list[dict]:
        bodies = self._bodies()
        heads = set(bodies)
        inner = {head: body for head, body in bodies.items() if not (heads - {head}) & body}
        return [self._describe(head, body) for head, body in sorted(inner.items())]

    def _bodies(self) -> dict[int, set[int]]:
        """Head of a loop -> its blocks."""
        before = [[] for _ in self.blocks]
        for block, after in enumerate(self.next):
            for other in after:
                before[other].append(block)
        everything = set(range(len(self.blocks)))
        dominators = [{0}] + [set(everything) for _ in self.blocks[1:]]
        changed = True
        while changed:
            changed = False
            for block in range(1, len(self.blocks)):
                common = set.intersection(*(dominators[b] for b in before[block])) if before[block] else set()
                if common | {block} != dominators[block]:
                    dominators[block] = common | {block}
                    changed = True
        bodies = {}
        for block, after in enumerate(self.next):
            for head in set(after) & dominators[block]:
                if head == block and len(self.blocks[block]) == 1:
                    continue  # "BRA itself", which fills the end of a function
                body, waiting = {head}, [block]
                while waiting:
                    if (other := waiting.pop()) not in body:
                        body.add(other)
                        waiting += before[other]
                bodies[head] = bodies.get(head, set()) | body
        return bodies

    def _describe(self, head: int, body: set[int]) -> dict:
        inside = [self.instructions[i] for block in sorted(body) for i in self.blocks[block]]
        return {
            "begins_at": f"0x{self.instructions[self.blocks[head].start].address:04x}",
            "instructions": len(inside),
            "fast_path": self._shortest(head, body),
            "kinds": dict(Counter(i.kind for i in inside).most_common()),
        }

    def _shortest(self, head: int, body: set[int]) -> int:
        """Instructions on the shortest way from the head around to it."""
        best = {head: len(self.blocks[head])}
        waiting, around = [head], None
        while waiting:
            block = waiting.pop(0)
            for other in self.next[block]:
                if other == head:
                    around = best[block] if around is None else min(around, best[block])
                elif other in body and best[block] + len(self.blocks[other]) < best.get(other, 1 << 30):
                    best[other] = best[block] + len(self.blocks[other])
                    waiting.append(other)
        return around


def occupancy(registers: int, shared_bytes: int, threads: int, architecture: str) -> dict:
    """Blocks of `threads` that a multiprocessor holds at a time, and the share of its warps that they are."""
    most_warps, most_blocks, shared, reserved = LIMITS[architecture]
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // REGISTERS_UNIT) * REGISTERS_UNIT
    fits = {
        "warps": most_warps // warps,
        "blocks": most_blocks,
        "registers": REGISTERS // per_warp // warps,
        "shared memory": shared // (shared_bytes + reserved) if shared_bytes + reserved else most_blocks,
    }
    limit = min(fits, key=fits.get)
    return {
        "blocks_per_multiprocessor": fits[limit],
        "share_of_warps": round(fits[limit] * warps / most_warps, 3),
        "limited_by": limit,
    }


def hot_loop(kernel: str, loops: list[dict]) -> dict | None:
    sign = 1 if "double" in kernel else -1

    def weight(loop: dict) -> tuple[int, int]:
        kinds = loop["kinds"]
        return kinds.get("fp32", 0) + kinds.get("fp32 compare", 0) + 2 * sign * kinds.get("fp64", 0), loop[
            "instructions"
        ]

    return max(loops, key=weight, default=None)


def describe_source(source: Path, architecture: str, flags: list[str], folder: Path) -> list[dict]:
    cubin = folder / f"{source.stem}.cubin"
    report = run("nvcc", *flags, "-cubin", f"-arch={architecture}", "-Xptxas=-v", source, "-o", cubin)
    cuobjdump = find_tool("cuobjdump")
    resources, threads = parse_ptxas(report), parse_block_sizes(run(cuobjdump, "-elf", cubin))
    functions, names = parse_sass(run(cuobjdump, "-sass", cubin)), demangled(list(resources))
    kernels = []
    for mangled, used in resources.items():
        instructions = functions[mangled]
        wide = Counter(i.name.split(".")[0] for i in instructions if ".128" in i.name)
        loops = Loops(instructions).innermost()
        block = threads.get(mangled)
        kernels.append(
            {
                "op": source.parent.name,
                "kernel": names[mangled],
                "threads": block,
                **used,
                "local_accesses": sum(i.kind == "local memory" for i in instructions),
                "instructions": len(instructions),
                "global_loads_128": wide["LDG"] + wide["LD"],
                "global_loads": sum(i.kind == "global load" for i in instructions),
                "global_stores_128": wide["STG"] + wide["ST"],
                "global_stores": sum(i.kind == "global store" for i in instructions),
                "shared_loads_128": wide["LDS"],
                "occupancy": occupancy(used["registers"], used["shared_bytes"], block, architecture) if block else None,
                "hot_loop": hot_loop(names[mangled], loops),
                "loops": loops,
            }
        )
    return sorted(kernels, key=lambda kernel: kernel["kernel"])


def print_table(kernels: list[dict], with_loops: bool) -> None:
    columns = "regs  shared  spill  local  ld128/ld  st128/st  blocks/SM  warps  hot loop (fast path)"
    width = min(60, max((len(kernel["kernel"]) for kernel in kernels), default=0))
    print(f"{'kernel':{width}}  {columns}")
    for k in kernels:
        held, hot = k["occupancy"], k["hot_loop"]
        loop = f"{hot['instructions']} ({hot['fast_path']})" if hot else "-"
        blocks = (
            f"{held['blocks_per_multiprocessor']:9}  {held['share_of_warps']:5.0%}" if held else f"{'?':>9}  {'?':>5}"
        )
        print(
            f"{k['kernel'][:width]:{width}}  {k['registers']:4}  {k['shared_bytes']:6}  {k['spill_bytes']:5}  "
            f"{k['local_accesses']:5}  {k['global_loads_128']:5}/{k['global_loads']:<2}  "
            f"{k['global_stores_128']:5}/{k['global_stores']:<2}  {blocks}  {loop}"
        )
        for loop in k["loops"] if with_loops else []:
            mix = ", ".join(f"{count} {kind}" for kind, count in loop["kinds"].items())
            print(f"    loop at {loop['begins_at']}: {loop['instructions']} ({loop['fast_path']}): {mix}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", help="folders of csrc; all by default")
    parser.add_argument("--arch", default="sm_90", choices=LIMITS)
    parser.add_argument("--loops", action="store_true", help="list every innermost loop")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    sources = sorted(ROOT.glob("csrc/*/*_cuda.cu"))
    unknown = set(options.ops) - {source.parent.name for source in sources}
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: expected of {', '.join(s.parent.name for s in sources)}")
    if shutil.which("nvcc") is None:
        sys.exit("nvcc: not on PATH; install the CUDA toolkit")
    flags = compile_flags()
    with tempfile.TemporaryDirectory() as folder:
        kernels = [
            kernel
            for source in sources
            if not options.ops or source.parent.name in options.ops
            for kernel in describe_source(source, options.arch, flags, Path(folder))
        ]
    print_table(kernels, options.loops)
    if options.json:
        facts = {
            "what": "counted in the compiler's output; nothing was measured",
            "architecture": options.arch,
            "nvcc": re.search(r"V([\d.]+)", run("nvcc", "--version"))[1],
            "flags": [flag for flag in flags if not flag.startswith("-I")],
            "commit": run("git", "-C", ROOT, "rev-parse", "--short", "HEAD").strip(),
            "command": f"python -m benchmarks.sass {' '.join(sys.argv[1:])}",
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**facts, "kernels": kernels}, indent=1) + "\n")


if __name__ == "__main__":
    main()
