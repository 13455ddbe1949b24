"""The scripts' first minute: what they say on a host that cannot build yet."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("cat", "chmod", "cksum", "cp", "dirname", "env", "id", "mkdir", "rm", "sh")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A clone that was never built, and `bin` with the few tools every host has."""
    tree = tmp_path / "tree"
    (tree / "scripts").mkdir(parents=True)
    for name in ("up", "test", "bootstrap.sh"):
        shutil.copy2(ROOT / "scripts" / name, tree / "scripts" / name)
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy2(ROOT / name, tree / name)
    shutil.copytree(ROOT / "ext", tree / "ext")
    (tree / "bin").mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (tree / "bin" / name).symlink_to(found)
    return tree


def program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def bootstrap(
    tree: Path, *, script: str = "up", wrapper: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*wrapper, tree / "scripts" / script, "--once"],
        env={"PATH": str(tree / "bin"), "HOME": str(tree), **environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


# A Python that runs and is new enough, but has no headers and no ensurepip.
BARE_PYTHON = 'case "$2" in *ensurepip*) exit 1 ;; esac; exit 0'
WHOLE_PYTHON = "exit 0"


@pytest.mark.parametrize(
    ("python", "compiler", "manager", "line"),
    [
        (BARE_PYTHON, True, "apt-get", "apt-get install -y python3-dev python3-venv"),
        (WHOLE_PYTHON, False, "apt-get", "apt-get install -y gcc libc6-dev"),
        (BARE_PYTHON, False, "dnf", "dnf install -y python3-devel gcc"),
        ("exit 1", True, "apk", "apk add python3 python3-dev"),
        (WHOLE_PYTHON, False, None, "install a C compiler and Python 3.11 or newer"),
    ],
)
def test_a_host_that_cannot_build_is_told_one_line(
    tree: Path, python: str, compiler: bool, manager: str | None, line: str
) -> None:
    program(tree / "bin" / "mypython", python)
    if compiler:
        program(tree / "bin" / "cc", "exit 0")
    if manager:
        program(tree / "bin" / manager, "exit 0")

    done = bootstrap(tree, NETSONDE_PYTHON=str(tree / "bin" / "mypython"))

    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert line in done.stderr


def test_an_interpreter_that_may_not_be_executed_is_passed_over(tree: Path) -> None:
    program(tree / "bin" / "cc", "exit 0")
    program(tree / "bin" / "python3", "exit 126")  # as a shim of another user's home answers
    program(tree / "bin" / "python3.12", f'echo used >> "{tree}/used"; exit 0')

    done = bootstrap(tree)

    assert (tree / "used").exists()
    assert "making .venv with" in done.stderr
    assert "python3.12" in done.stderr


# Makes an environment whose python and netsonde write down how they were called.
MAKING_PYTHON = """
if [ "$2" = venv ]; then
    mkdir -p "$3/bin"
    for name in python netsonde; do
        printf '#!/bin/sh\necho "%s $*" >> "%s/calls"\n' "$name" "$PWD" > "$3/bin/$name"
        chmod +x "$3/bin/$name"
    done
fi
exit 0
"""


def test_the_second_run_builds_nothing_and_the_tests_then_add_their_tools(tree: Path) -> None:
    program(tree / "bin" / "cc", "exit 0")
    program(tree / "bin" / "mypython", MAKING_PYTHON)
    calls = tree / "calls"

    def installs(script: str) -> list[str]:
        calls.write_text("")
        done = bootstrap(tree, script=script, NETSONDE_PYTHON=str(tree / "bin" / "mypython"))
        assert done.returncode == 0, done.stderr
        return [line for line in calls.read_text().splitlines() if " install " in line]

    first = installs("up")
    assert any("--editable ." in line for line in first)
    assert not any("--group" in line for line in first)
    assert installs("up") == []
    assert any("--group dev" in line for line in installs("test"))
    assert installs("test") == []
    assert installs("up") == []

    (tree / "ext" / "deadlines.pyx").write_text("changed")

    assert any("--editable ." in line for line in installs("up"))


def test_a_failed_installation_ends_with_a_sentence_and_leaves_no_stamp(tree: Path) -> None:
    program(tree / "bin" / "cc", "exit 0")
    # Makes an environment whose own python cannot install anything.
    program(
        tree / "bin" / "mypython",
        'if [ "$2" = venv ]; then mkdir -p "$3/bin"; '
        'printf "#!/bin/sh\\n[ \\"\\$2\\" != pip ]\\n" > "$3/bin/python"; '
        'chmod +x "$3/bin/python"; fi; exit 0',
    )

    done = bootstrap(tree, NETSONDE_PYTHON=str(tree / "bin" / "mypython"))

    assert done.returncode == 2
    assert "installing failed" in done.stderr.splitlines()[-1]
    assert not list((tree / ".venv").glob(".built-*"))


def test_a_tree_of_somebody_else_is_told_so(tree: Path) -> None:
    program(tree / "bin" / "cc", "exit 0")
    program(tree / "bin" / "mypython", "exit 0")
    tree.chmod(0o555)
    # Root may write everywhere, unless it gives that up.
    wrapper = ["/usr/bin/setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    try:
        done = bootstrap(tree, wrapper=wrapper, NETSONDE_PYTHON=str(tree / "bin" / "mypython"))
    finally:
        tree.chmod(0o755)

    assert done.returncode == 2
    assert "not writable" in done.stderr
