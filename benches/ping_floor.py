"""The floors of the benches: the C programs of `floor/`, compiled when first needed."""

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benches.harness import MissingRivalError
from benches.ping_network import NEAR, ROOT, TARGETS, PingNetwork

SOURCES = ROOT / "benches" / "floor"
BUILD = ROOT / "build" / "floor"
PROGRAMS = {
    "echo": ("echo.c", "probes.c", "receive.c", "transmit.c"),
    "capture": ("capture.c",),
    "trace": ("trace.c", "paths.c", "exchange.c"),
}
FLAGS = ("-std=c11", "-O3", "-Wall", "-Wextra")


@functools.cache
def floor_program(name: str) -> Path:
    """Return the path of a compiled program, named by a hash of what it is made of.

    Raises:
        MissingRivalError: no compiler, or it fails.
    """
    compiler = _compiler()
    made_of = hashlib.sha256(repr((compiler, FLAGS)).encode())
    sources = [SOURCES / source for source in PROGRAMS[name]]
    for path in [*sources, *sorted(SOURCES.glob("*.h"))]:
        made_of.update(path.read_bytes())
    program = BUILD / f"{name}-{made_of.hexdigest()[:16]}"
    if not program.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as directory:
            unfinished = Path(directory) / name
            done = subprocess.run(
                [compiler, *FLAGS, *sources, "-o", unfinished],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise MissingRivalError(f"{compiler} failed: {done.stderr}")
            unfinished.replace(program)  # whole, whoever else compiles it now
    return program


def _compiler() -> str:
    for name in (os.environ.get("CC", "cc"), "gcc", "clang"):
        if (found := shutil.which(name)) is not None:
            return found
    raise MissingRivalError("no C compiler: install gcc")


def echo_command(
    network: PingNetwork, mode: str, *, count: int, targets: int, **options: object
) -> list[str | Path]:
    """Return the command of `floor/echo.c` on this network; options as its usage names them."""
    given: dict[str, object] = {
        "count": count,
        "targets": targets,
        "first": TARGETS[1],
        "source": NEAR,
        "source-link": network.link.source,
        "gateway-link": network.link.gateway,
        "ifindex": network.link.index,
    } | {name.replace("_", "-"): value for name, value in options.items()}
    command: list[str | Path] = [floor_program("echo"), mode]
    for name, value in given.items():
        command += [f"--{name}", str(value)]
    return command


def sweep(network: PingNetwork, *, targets: int, **options: object) -> Mapping[str, float]:
    """Ping every target once, as fast as replies come in."""
    command = echo_command(network, "sweep", count=targets, targets=targets, **options)
    return _figures(network.run(command).json())


def pace(
    network: PingNetwork, *, count: int, targets: int, rate: int, **options: object
) -> Mapping[str, float]:
    """Ping at a rate; woken for every packet unless `quantum_us` says otherwise."""
    command = echo_command(
        network, "paced", count=count, targets=targets, rate=rate, **{"batch": 1, **options}
    )
    return _figures(network.run(command).json())


def _figures(said: Mapping[str, float]) -> dict[str, float]:
    return {
        "rate": said["matched"] / said["seconds"],
        "cpu": said["cpu_seconds"] / said["matched"] * 1e6,
        "lost": said["sent"] - said["matched"],
    }
