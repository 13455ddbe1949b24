"""Branch coverage of the cores over the kept inputs, from clang's own counters."""

import json
import os
import re
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz import corpus
from fuzz.targets import CORES as ANSWERED_FOR
from fuzz.toolchain import BUILD, Toolchain, compile_harness
from support.native_build import CORES, run

LEAST_PERCENT = 90
FUNCTION = re.compile(r"^cdef inline .*?(\w+)\(", re.MULTILINE)
MANGLED = re.compile(r"__pyx_f_(\d+)(\w+)$")
LINE = re.compile(r'#line (\d+) "(.*)"')


@dataclass
class Function:
    """What the targets together have reached of one function."""

    calls: int = 0
    branches: dict[tuple[int, bool], int] = field(default_factory=lambda: defaultdict(int))
    lines: dict[int, int] = field(default_factory=dict)  # of its branches, in the .pxd


@dataclass
class Coverage:
    """Of one core."""

    core: str
    covered: int = 0
    total: int = 0
    missed: list[str] = field(default_factory=list)

    @property
    def percent(self) -> float:
        return 100 * self.covered / self.total if self.total else 100.0


def measure(tools: Toolchain, names: list[str]) -> list[Coverage]:
    """Replay the kept inputs of these targets; return what they cover, core by core."""
    functions: dict[tuple[str, str], Function] = defaultdict(Function)
    for name in names:
        _replay(tools, name, functions)
    return [_coverage(core, exempt, functions) for core, exempt in ANSWERED_FOR.items()]


def _replay(tools: Toolchain, name: str, functions: dict[tuple[str, str], Function]) -> None:
    program = compile_harness(tools, name, measured=True)
    raw, merged = program.with_suffix(".profraw"), program.with_suffix(".profdata")
    inputs = corpus.unpack(name, BUILD / "kept" / name)
    subprocess.run(
        [program, "-runs=0", inputs], check=True, capture_output=True,
        env={**os.environ, "LLVM_PROFILE_FILE": str(raw)},
    )  # fmt: skip
    run(tools.profdata, "merge", "-sparse", str(raw), "-o", str(merged))
    exported = subprocess.run(
        [tools.cov, "export", "-format=text", f"-instr-profile={merged}", program],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    sources = _sources(program.with_suffix(".c"))
    for entry in json.loads(exported)["data"][0]["functions"]:
        _add(entry, functions, sources)


def _sources(c_file: Path) -> list[int]:
    """Return for each line of the C file the line of Cython it was made from."""
    sources, line = [0], 0
    for text in c_file.read_text().splitlines():
        if found := LINE.match(text.strip()):
            line = int(found[1])
        sources.append(line)
    return sources


def _add(
    entry: dict[str, Any], functions: dict[tuple[str, str], Function], sources: list[int]
) -> None:
    """Add one target's counts of a function to those of the others."""
    found = MANGLED.search(entry["name"])
    if found is None:
        return
    width = int(found[1])
    core, name = found[2][:width], found[2][width + 1 :]
    function = functions[core, name]
    function.calls += entry["count"]
    own = [branch for branch in entry["branches"] if branch[6] == 0]  # not a macro's
    for at, branch in enumerate(own):
        function.lines[at] = sources[branch[0]]
        function.branches[at, True] += branch[4]
        function.branches[at, False] += branch[5]


def _coverage(
    core: str, exempt: tuple[str, ...], functions: dict[tuple[str, str], Function]
) -> Coverage:
    """Sum up a core. A function without branches counts as one, so that none goes unnoticed."""
    result = Coverage(core)
    for name in FUNCTION.findall((CORES / f"{core}.pxd").read_text()):
        if name in exempt:
            continue
        function = functions.get((core, name), Function())
        reached = function.branches or {(0, True): function.calls}
        result.total += len(reached)
        result.covered += sum(count > 0 for count in reached.values())
        for (at, outcome), count in reached.items():
            if count == 0:
                line = function.lines.get(at)
                what = f":{line} never {outcome}" if line else " never called"
                result.missed.append(f"{core}.pxd {name}{what}")
    return result
