"""The simulator's program: compiled when first needed, kept by what it was made of."""

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[2] / "build" / "netsim"
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra")


class CompileError(Exception):
    """The program could not be made; the message has the compiler's words."""


@functools.cache
def netsim_program() -> Path:
    """Return the path of the compiled simulator."""
    return compile_program("netsim", HERE.glob("*.c"))


def compile_program(name: str, sources: Iterable[Path], *flags: str) -> Path:
    """Compile C sources to a program, or what the flags say, under build/, unless it is there.

    It is named by a hash of everything it is made of and moved there whole, so tests that start
    at once do no harm to each other.
    """
    sources = sorted(sources)
    compiler = _compiler()
    made_of = hashlib.sha256(repr((compiler, FLAGS, flags)).encode())
    for path in [*sources, *sorted(HERE.glob("*.h"))]:
        made_of.update(path.name.encode() + path.read_bytes())
    program = BUILD / f"{name}-{made_of.hexdigest()[:16]}"
    if not program.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as directory:
            unfinished = Path(directory) / name
            _run(compiler, *FLAGS, *flags, "-o", str(unfinished), *map(str, sources), "-lm")
            unfinished.replace(program)
    return program


def _compiler() -> str:
    for name in (os.environ.get("CC", "cc"), "gcc", "clang"):
        if (found := shutil.which(name)) is not None:
            return found
    raise CompileError("no C compiler: install gcc or clang")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"{' '.join(command)}:\n{done.stderr}")
