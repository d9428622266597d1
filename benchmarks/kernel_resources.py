"""What ptxas and the machine code say of every kernel of csrc/kernels; needs no GPU.

usage: python benchmarks/kernel_resources.py

Compiles as setup.py does and prints the table of docs/cuda.md: registers of a thread, and the bytes
of the machine code's loads and stores in global memory. The latter need cuobjdump and nvdisasm: on
PATH, beside nvcc, or from the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cuda_build import CudaToolkit, find_toolkit, nvcc_command

DTYPES = {"float": "fp32", "__half": "fp16", "__nv_bfloat16": "bf16"}
_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\d+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_FUNCTION = re.compile(r"Function : (\w+)")
_ACCESS = re.compile(r"\b(LDG|STG|LDL|STL)((?:\.\w+)*)")
_BITS = re.compile(r"\.[US]?(8|16|64|128|256)\b")


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel for one architecture; the name is the source's, dtype is fp32, fp16, bf16 or any."""

    name: str
    dtype: str
    arch: str


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one thread has: registers, and bytes that did not fit into them."""

    registers: int
    spilled_bytes: int


def compile_kernels(toolkit: CudaToolkit, directory: Path) -> dict[Kernel, Resources]:
    """Compile every .cu into `directory`, and read what ptxas says."""
    said = ""
    for source in sorted((ROOT / "csrc" / "kernels").glob("*.cu")):
        command = nvcc_command(toolkit, source.relative_to(ROOT), directory / f"{source.stem}.o")
        said += _run(command)
    return {
        _kernel(entry, arch): Resources(
            registers=int(_last(_REGISTERS, text)[1]),
            spilled_bytes=sum(int(number) for number in _last(_SPILLS, text).groups()),
        )
        for entry, arch, text in _sections(said)
    }


def find_cuobjdump(toolkit: CudaToolkit) -> Path | None:
    """The cuobjdump on PATH, beside nvcc or in this Python's packages, or None."""
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    places = [Path(found) for found in [shutil.which("cuobjdump")] if found]
    places += [] if toolkit.nvcc is None else [toolkit.nvcc.with_name("cuobjdump")]
    places += sorted(packages.glob("*/bin/cuobjdump"))
    with_disassembler = [p for p in places if p.is_file() and p.with_name("nvdisasm").is_file()]
    return with_disassembler[0] if with_disassembler else None


def accesses(cuobjdump: Path, directory: Path) -> dict[Kernel, Counter[tuple[str, int]]]:
    """Of each compiled kernel, how often its machine code loads and stores how many bytes.

    The keys are ("LDG" or "STG" for global memory, "LDL" or "STL" for spills, bytes).
    """
    found = {}
    paths = os.pathsep.join((str(cuobjdump.parent), os.environ.get("PATH", "")))
    for compiled in sorted(directory.glob("*.o")):
        listing = _run([str(cuobjdump), "-sass", str(compiled)], {**os.environ, "PATH": paths})
        for arch, text in _split(r"arch = (sm_\d+)", listing):
            for entry, code in _split(_FUNCTION.pattern, text):
                found[_kernel(entry, arch)] = Counter(_accesses_of(code))
    return found


def _accesses_of(code: str) -> Iterator[tuple[str, int]]:
    for operation, modifiers in _ACCESS.findall(code):
        bits = _BITS.search(modifiers)
        yield operation, int(bits[1]) // 8 if bits else 4


def _sections(said: str) -> Iterator[tuple[str, str, str]]:
    """(entry, architecture, what ptxas says of it)."""
    places = [*_ENTRY.finditer(said)]
    ends = [place.start() for place in places[1:]] + [len(said)]
    for place, end in zip(places, ends, strict=True):
        yield place[1], place[2], said[place.end() : end]


def _split(pattern: str, text: str) -> Iterator[tuple[str, str]]:
    """(what the pattern's group is, the text up to the next one)."""
    _, *parts = re.split(pattern, text)
    return zip(parts[::2], parts[1::2], strict=True)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    found = [*pattern.finditer(text)]
    assert found, f"ptxas does not say {pattern.pattern}"
    return found[-1]


@functools.cache
def _kernel(entry: str, arch: str) -> Kernel:
    """The kernel of a mangled name: `void memo::ItemKernel<Args>(Args)`, without what is alike."""
    name = _run(["c++filt", entry]).strip().replace("memo::", "")
    arguments = re.sub(r"^void \w+<(.*?) ?>\(.*$", r"\1", name)
    arguments = re.sub(r"^Elementwise<(.*)>$", r"\1", arguments)
    found = re.search(rf"(?:, |<)({'|'.join(DTYPES)})>?$", arguments)
    if found is None:
        return Kernel(name=arguments, dtype="any", arch=arch)
    return Kernel(name=arguments[: found.start()], dtype=DTYPES[found[1]], arch=arch)


def _run(command: Sequence[str], env: dict[str, str] | None = None) -> str:
    """Both outputs of a command that must succeed."""
    done = subprocess.run(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout[-3000:]}")
    return done.stdout


def table(
    resources: dict[Kernel, Resources], counts: dict[Kernel, Counter[tuple[str, int]]] | None
) -> list[str]:
    """Lines of Markdown, a kernel a line: registers fp32 / fp16 / bf16, and bytes of accesses."""
    archs = list(dict.fromkeys(kernel.arch for kernel in sorted(resources, key=_arch_number)))
    header = ["kernel", *archs, *([] if counts is None else ["loads", "stores"])]
    lines = [header, ["---"] * len(header)]
    for name in sorted({kernel.name for kernel in resources}):
        cells = [" / ".join(_registers(resources, name, arch)) for arch in archs]
        if counts is not None:
            cells += [_widths(counts, name, operation) for operation in ("LDG", "STG")]
        lines.append([f"`{name}`", *cells])
    return ["| " + " | ".join(line) + " |" for line in lines]


def _arch_number(kernel: Kernel) -> int:
    return int(kernel.arch.removeprefix("sm_"))


def _registers(resources: dict[Kernel, Resources], name: str, arch: str) -> list[str]:
    kernels = [Kernel(name=name, dtype=dtype, arch=arch) for dtype in (*DTYPES.values(), "any")]
    return [str(resources[kernel].registers) for kernel in kernels if kernel in resources]


def _widths(counts: dict[Kernel, Counter[tuple[str, int]]], name: str, operation: str) -> str:
    accesses_of = [counts[kernel] for kernel in counts if kernel.name == name]
    widths = {width for each in accesses_of for used, width in each if used == operation}
    return ", ".join(map(str, sorted(widths, reverse=True)))


def main() -> None:
    """Compile, and print the table."""
    toolkit = find_toolkit()
    with tempfile.TemporaryDirectory() as directory:
        resources = compile_kernels(toolkit, Path(directory))
        cuobjdump = find_cuobjdump(toolkit)
        counts = None if cuobjdump is None else accesses(cuobjdump, Path(directory))
    print(f"CUDA {toolkit.version}, {len(resources)} kernels\n")
    print("\n".join(table(resources, counts)))
    spilled = {kernel: each for kernel, each in resources.items() if each.spilled_bytes}
    print("\nspilled bytes:", spilled or 0)
    if cuobjdump is None:
        print("no accesses: cuobjdump and nvdisasm are not installed")


if __name__ == "__main__":
    main()
