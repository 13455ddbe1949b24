"""Compile the modules of tests/native when their sources have changed."""

import atexit
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORES = ROOT / "ext"
DOORS = ROOT / "tests" / "native"
CYTHON = ("-3", "-X", "auto_pickle=False", "-X", "autotestdict=False", "-I", str(ROOT / "tests"))
COMPILE = ("-shared", "-fPIC", "-O1", "-g", "-Wall", "-Wextra", "-Wno-unused-parameter",
           "-Wno-unused-function", "-Wno-missing-field-initializers")  # fmt: skip
SANITIZE = ("-fsanitize=address,undefined", "-fno-omit-frame-pointer")


def translate(source: Path, target: Path, *options: str, cores: Path = CORES) -> None:
    """Turn a .pyx into C, with the options that the project's own modules have."""
    command = (sys.executable, "-m", "cython", *CYTHON, "-I", str(cores), *options)
    run(*command, "-o", str(target), str(source))


def run(*command: str) -> None:
    """Run a tool of the build, away from what the tests preload (`scripts/dev.py asan`)."""
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


@functools.cache
def compiled() -> Path:
    """Return the directory that holds the compiled modules, after compiling them if need be.

    Its name tells the sources apart, and it appears whole: any number of runs may ask at once.
    """
    home = _home()
    target = home / _key()
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            built = Path(scratch) / "built"
            built.mkdir()
            for source in sorted(DOORS.glob("*.pyx")):
                _compile(source, Path(scratch), built)
            try:
                built.rename(target)
            except OSError:
                if not target.is_dir():  # nobody else was faster
                    raise
    return target


def _home() -> Path:
    """Return build/native, or where another user made that, a directory of this process."""
    home = ROOT / "build" / "native"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except PermissionError:
        return _own_home()
    return home if os.access(home, os.W_OK) or (home / _key()).is_dir() else _own_home()


@functools.cache
def _own_home() -> Path:
    home = Path(tempfile.mkdtemp(prefix="netsonde-native-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home


def _sanitizers() -> tuple[str, ...]:
    return SANITIZE if os.environ.get("NETSONDE_SANITIZE") == "1" else ()


def _key() -> str:
    """Return a name for what would be compiled now."""
    digest = hashlib.sha256(repr((sys.version, CYTHON, COMPILE, _sanitizers())).encode())
    for source in sorted((*CORES.glob("*.pxd"), *DOORS.glob("*.p[yx][xd]"))):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def _compile(source: Path, scratch: Path, built: Path) -> None:
    c_file = scratch / f"{source.stem}.c"
    translate(source, c_file)
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    include = f"-I{sysconfig.get_path('include')}"
    module = built / f"{source.stem}.so"
    run(*compiler, *COMPILE, *_sanitizers(), include, str(c_file), "-o", str(module))
