"""Compile a harness with clang: to be fuzzed, or to be measured."""

import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from fuzz.targets import Plant
from support.native_build import CORES, ROOT, run, translate

HARNESSES = ROOT / "tests" / "fuzz"
BUILD = ROOT / "build" / "fuzz"
PACKAGES = "apt-get install clang libclang-rt-dev llvm"
PROGRAMS = ("clang", "llvm-profdata", "llvm-cov")
VERSIONS = ("", *(f"-{version}" for version in range(21, 13, -1)))

FUZZED = ("-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
MEASURED = ("-fsanitize=fuzzer", "-fprofile-instr-generate", "-fcoverage-mapping")
# The cores touch no objects, so Python is never started: what a module's set-up would call need not
# be there. That takes an executable at a fixed address.
LINKED = ("-no-pie", "-Wl,--unresolved-symbols=ignore-all")


@dataclass(frozen=True)
class Toolchain:
    """The programs of one clang."""

    clang: str
    profdata: str
    cov: str


def find_toolchain() -> Toolchain:
    """Find a clang whose libraries and coverage tools are here; exit status 2 without one."""
    for version in VERSIONS:
        clang, profdata, cov = (shutil.which(f"{name}{version}") for name in PROGRAMS)
        if clang and profdata and cov and _links(clang):
            return Toolchain(clang, profdata, cov)
    print(f"fuzz: needs clang with libFuzzer, and llvm-cov; on Debian:\n    {PACKAGES}")
    sys.exit(2)


def _links(clang: str) -> bool:
    """Whether the sanitizers' libraries are installed beside the compiler."""
    BUILD.mkdir(parents=True, exist_ok=True)
    source, target = BUILD / "empty.c", BUILD / "empty"
    source.write_text("int LLVMFuzzerTestOneInput(const char *d, long n) { return !d && n; }\n")
    try:
        run(clang, FUZZED[0], str(source), "-o", str(target))
    except RuntimeError:
        return False
    return True


def compile_harness(
    tools: Toolchain, name: str, *, measured: bool = False, plant: Plant | None = None
) -> Path:
    """Compile tests/fuzz/<name>.pyx over the cores, or over a copy with a bug in it."""
    home = BUILD / (plant.name.replace(" ", "-") if plant else "measured" if measured else "fuzzed")
    home.mkdir(parents=True, exist_ok=True)
    cores = CORES if plant is None else _plant(plant, home / "ext")
    c_file, program = home / f"{name}.c", home / name
    translate(HARNESSES / f"{name}.pyx", c_file, "--line-directives", cores=cores)
    flags = MEASURED if measured else FUZZED
    include = f"-I{sysconfig.get_path('include')}"
    run(tools.clang, *flags, "-g", "-O1", "-w", include, str(c_file), "-o", str(program), *LINKED)
    return program


def _plant(plant: Plant, cores: Path) -> Path:
    """Copy the cores and put the bug in; the sources themselves stay as they are."""
    shutil.rmtree(cores, ignore_errors=True)
    shutil.copytree(CORES, cores, ignore=shutil.ignore_patterns("*.pyx", "*.c"))
    path = cores / f"{plant.core}.pxd"
    source = path.read_text()
    if source.count(plant.before) != 1:
        sys.exit(f"fuzz: {path.name} has changed: there is no place for “{plant.name}”")
    path.write_text(source.replace(plant.before, plant.after))
    return cores
