#!/usr/bin/env python3
"""Run the project's tasks; `scripts/dev.py TASK --help` tells each one's arguments.

build     compile the native modules in place
check     ruff, mypy --strict, stubtest, cython-lint
test      check, then pytest; as an ordinary user inside a user namespace
cov       unit tests under coverage, Cython lines included
asan      native unit tests under AddressSanitizer and UBSan
fuzz      the packet and matcher cores under libFuzzer, with planted bugs and branch coverage
worlds    simulated leases by their seeds, as many as there is time for
chaos     real agents and a real control plane under faults, judged from outside
openapi   write docs/openapi.json from the code
api       put every call of docs/openapi.json to a running control plane, right and wrong
annotate  Cython's annotated HTML, in build/cython/ext/
bench     benches with their rivals and budgets
wheel     build sdist and wheel, install the wheel on every Python here, measure with it
clean     remove what the tasks made
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
NATIVE_TESTS = (
    "tests/unit/_native",
    "tests/unit/wire/test_report_items.py",
    "tests/integration/test_ping.py",
    "tests/integration/test_trace.py",
)
EVERYTHING = ["tests"]
BESIDE = (  # no clock judges them
    "tests/unit",
    "tests/sim/test_lease_life.py",
    "tests/sim/test_original_peers.py",
    "tests/sim/test_standing_outage.py",
    *(
        f"tests/integration/{each.name}"
        for each in (ROOT / "tests/integration").glob("*netsim*.py")
    ),
)
LEAST_PRIORITY = 19
INSIDE = "NETSONDE_TEST_NAMESPACE"  # set once the tests run inside their user namespace


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> None:
    """Run a command; end with its exit status when it fails."""
    print("+", *command, file=sys.stderr, flush=True)
    bin_directory = str(Path(PYTHON).parent)  # cython-lint looks for pycodestyle on PATH
    path = f"{bin_directory}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, "PATH": path, **environment}, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)


def build(arguments: Sequence[str]) -> None:
    """Compile the native modules in place."""
    run(PYTHON, "setup.py", "-q", "build_ext", "--inplace", *arguments)


def check(_: Sequence[str]) -> None:
    """Run everything that reads the code without running it."""
    run(PYTHON, "-m", "ruff", "check", ".")
    run(PYTHON, "-m", "ruff", "format", "--check", ".")
    run(PYTHON, "-m", "mypy")
    run(PYTHON, "-m", "mypy.stubtest", "netsonde._native", MYPYPATH=str(ROOT / "engine"))
    sources = [
        source
        for directory in ("ext", "tests/native", "tests/fuzz")
        for source in sorted((ROOT / directory).glob("*.p[yx][xd]"))
    ]
    run(Path(PYTHON).parent / "cython-lint", *sources)


def test(arguments: Sequence[str]) -> None:
    """Check, then run pytest with the arguments given; paths or -k skip the check."""
    if not arguments:
        check(())
    if os.geteuid() != 0 and INSIDE not in os.environ:
        enter_namespace(arguments)
    if INSIDE in os.environ:
        raise_loopback()
    if list(arguments) in ([], EVERYTHING):
        test_everything()
    else:
        run(PYTHON, "-m", "pytest", *arguments)


def test_everything() -> None:
    """Run all tests, those that no clock judges beside the others.

    The others wait for networks most of the time. Those beside get the processor time that is left,
    and what they say is told at the end.
    """
    with tempfile.TemporaryFile() as said:
        beside = subprocess.Popen(
            [PYTHON, "-m", "pytest", *BESIDE], cwd=ROOT, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            os.setpriority(os.PRIO_PROCESS, beside.pid, LEAST_PRIORITY)
            command = [PYTHON, "-m", "pytest", *EVERYTHING]
            command += [f"--ignore={path}" for path in BESIDE]
            status = subprocess.run(command, cwd=ROOT, check=False).returncode
            status = beside.wait() or status
        finally:
            beside.terminate()
        said.seek(0)
        shutil.copyfileobj(said, sys.stdout.buffer)
        sys.stdout.flush()
    if status:
        sys.exit(status)


def enter_namespace(arguments: Sequence[str]) -> None:
    """Re-run the tests as root of a user and network namespace of their own.

    There raw sockets need no privilege of the host. Where the kernel forbids it, the tests run
    as they are and those that need the privilege are skipped with the reason.
    """
    unshare = shutil.which("unshare")
    wrap = [unshare or "unshare", "--user", "--map-root-user", "--net", "--mount"]
    if unshare is None or subprocess.run([*wrap, "true"], check=False).returncode:
        print("dev.py: no user namespaces here: tests of raw sockets will be skipped")
        return
    os.environ[INSIDE] = "1"
    # pytest names its directory in /tmp after the user, who is root in there and not root's owner.
    os.environ["LOGNAME"] = f"uid{os.getuid()}"
    # No arguments would mean check again.
    os.execv(unshare, [*wrap, PYTHON, __file__, "test", *(arguments or EVERYTHING)])


def raise_loopback() -> None:
    """Set lo up: a new network namespace begins with it down."""
    from pyroute2 import IPRoute  # noqa: PLC0415 (a task that needs no environment must start)

    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")


def copy_tree(name: str) -> Path:
    """Copy what git knows to build/NAME, so that a special build leaves this one alone."""
    target = ROOT / "build" / name
    shutil.rmtree(target, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for line in listed.splitlines():
        if (ROOT / line).is_file():
            (target / line).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / line, target / line)
    return target


def cov(arguments: Sequence[str]) -> None:
    """Measure coverage of Python branches and Cython lines with a tracing build."""
    tree = copy_tree("cov")
    run(PYTHON, "setup.py", "-q", "build_ext", "--inplace", cwd=tree, NETSONDE_TRACE="1")
    report = ROOT / "build" / "htmlcov"
    run(
        PYTHON, "-m", "pytest", "--cov", "--cov-report=term", f"--cov-report=html:{report}",
        *(arguments or ["tests/unit", "tests/integration"]),
        cwd=tree, PYTHONPATH=os.pathsep.join((str(tree / "engine"), str(tree / "scripts"))),
    )  # fmt: skip


def asan(arguments: Sequence[str]) -> None:
    """Run the native unit tests under AddressSanitizer and UBSan."""
    tree = copy_tree("asan")
    run(PYTHON, "setup.py", "-q", "build_ext", "--inplace", cwd=tree, NETSONDE_SANITIZE="1")
    libraries = [
        subprocess.run(
            [os.environ.get("CC", "cc"), f"-print-file-name={name}"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]  # fmt: skip
    run(
        PYTHON, "-m", "pytest", "-p", "no:cacheprovider",
        *(arguments or NATIVE_TESTS),
        cwd=tree,
        PYTHONPATH=str(tree / "engine"),
        PYTHONMALLOC="malloc",
        NETSONDE_SANITIZE="1",  # of tests/native, which the tests compile themselves
        LD_PRELOAD=" ".join(libraries),
        # CPython itself leaks at exit; the modules' own leaks are looked for by their tests.
        ASAN_OPTIONS="detect_leaks=0:halt_on_error=1",
        UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1",
    )  # fmt: skip


def fuzz(arguments: Sequence[str]) -> None:
    """Fuzz the native cores; tests/fuzz/__main__.py takes the arguments."""
    run(PYTHON, "-m", "fuzz", *arguments, PYTHONPATH=str(ROOT / "tests"))


def worlds(arguments: Sequence[str]) -> None:
    """Play worlds; tests/support/lease_world/command.py takes the arguments."""
    become("support.lease_world", arguments)


def chaos(arguments: Sequence[str]) -> None:
    """Torment real processes; tests/support/chaos/command.py takes the arguments."""
    become("support.chaos", arguments)


def openapi(_: Sequence[str]) -> None:
    """Write the API's document from the code."""
    become("support.api_document", [str(ROOT / "docs" / "openapi.json")])


def api(arguments: Sequence[str]) -> None:
    """Try the API against its document; tests/support/api_trial/command.py takes the arguments."""
    become("support.api_trial", arguments)


def become(module: str, arguments: Sequence[str]) -> None:
    """Go on as a command of the tests."""
    path = os.pathsep.join((str(ROOT / "tests"), str(ROOT / "engine")))
    os.environ["PYTHONPATH"] = path
    os.execv(PYTHON, [PYTHON, "-m", module, *arguments])


def annotate(_: Sequence[str]) -> None:
    """Write Cython's annotated HTML."""
    run(PYTHON, "setup.py", "-q", "build_ext", "--inplace", NETSONDE_ANNOTATE="1")
    for page in sorted((ROOT / "build" / "cython" / "ext").glob("*.html")):
        print(page)


def bench(arguments: Sequence[str]) -> None:
    """Run benches by name; --quick and --strict are CI's."""
    run(PYTHON, "-m", "benches", *arguments)


def wheel(_: Sequence[str]) -> None:
    """Build sdist and wheel, and measure with the wheel on every Python here."""
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    with tempfile.TemporaryDirectory() as directory:
        # From a copy: a stale in-place .so must not find its way into the wheel.
        tree = copy_tree("wheel")
        run(PYTHON, "-m", "build", "--outdir", str(dist), cwd=tree)
        built = next(dist.glob("*.whl"))
        if "cp311-abi3" not in built.name:
            sys.exit(f"dev.py wheel: {built.name} is not tagged cp311-abi3")
        for index, python in enumerate(pythons()):
            try_wheel(built, python, Path(directory) / str(index))


def try_wheel(built: Path, python: str, directory: Path) -> None:
    """Install the wheel in an empty environment and ping with it, away from the tree."""
    run(python, "-m", "venv", directory, cwd=Path("/"))
    run(directory / "bin" / "python", "-m", "pip", "install", "-q", built, cwd=directory)
    command = [str(directory / "bin" / "netsonde"), "ping", "127.0.0.1", "--count", "2", "--json"]
    done = subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True)
    outcome = json.loads(done.stdout)["outcome"]
    print(f"{built.name} on {python}: ping 127.0.0.1 {outcome}", flush=True)
    if outcome != "ok":
        sys.exit(1)


def pythons() -> list[str]:
    """Find every Python from 3.11 on this machine that can make an environment."""
    names = [f"python3.{minor}" for minor in range(11, 20)]
    directories = [Path(part) for part in os.environ["PATH"].split(os.pathsep)]
    directories += [Path("/usr/bin"), Path("/usr/local/bin")]
    directories += sorted(Path.home().glob(".pyenv/versions/*/bin"))
    found: dict[str, str] = {}
    for candidate in (directory / name for directory in directories for name in names):
        probe = (
            "import ensurepip, platform, sys, venv; print(platform.python_version(), sys.prefix)"
        )
        if candidate.exists():
            done = subprocess.run(
                [candidate, "-c", probe], check=False, capture_output=True, text=True
            )
            if done.returncode == 0 and ROOT.as_posix() not in done.stdout:
                found.setdefault(done.stdout.strip(), str(candidate))
    return list(found.values())


def clean(_: Sequence[str]) -> None:
    """Remove builds, caches and reports; .venv stays, to be built into again."""
    for name in ("build", "dist", "engine/netsonde.egg-info", ".mypy_cache", ".ruff_cache",
                 ".pytest_cache", ".hypothesis", ".benchmarks"):  # fmt: skip
        shutil.rmtree(ROOT / name, ignore_errors=True)
    built = (ROOT / "engine" / "netsonde" / "_native").glob("*.so")
    for path in (*built, *(ROOT / ".venv").glob(".built-*")):
        path.unlink()


TASKS = {
    task.__name__: task
    for task in (
        build,
        check,
        test,
        cov,
        asan,
        fuzz,
        worlds,
        chaos,
        openapi,
        api,
        annotate,
        bench,
        wheel,
        clean,
    )
}


def main() -> None:
    """Run the task named on the command line with the arguments behind it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=TASKS, metavar="TASK")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…")
    chosen = parser.parse_args()
    TASKS[chosen.task](chosen.arguments)


if __name__ == "__main__":
    main()
