"""The import graph is the architecture (docs/architecture.md); this reads it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "engine" / "netsonde"

LAYER = {
    "_native": 0,
    "clock": 1,
    "collector": 1,
    "errors": 1,
    "model": 1,
    "backoff": 2,
    "ceiling": 2,
    "leases": 2,
    "metrics": 2,
    "congestion": 2,
    "dsse": 2,
    "pacing": 2,
    "policy": 2,
    "remote_config": 2,
    "stats": 2,
    "ticks": 2,
    "wire": 2,
    "control_plane": 3,
    "exposition": 3,
    "listening": 3,
    "netinfo": 3,
    "probe": 3,
    "settings_file": 3,
    "spool": 3,
    "tls": 3,
    "agent": 4,
    "server": 4,
    "cli": 5,
    "__main__": 6,
}
SIBLINGS = {"agent", "server"}
PURE = {name for name, layer in LAYER.items() if layer <= 2}
IO_MODULES = {
    "aiohttp", "asyncio", "ctypes", "dns", "http", "httptools", "multiprocessing", "os", "pyroute2",
    "select", "selectors", "signal", "socket", "sqlite3", "ssl", "subprocess", "threading",
    "time", "urllib.request", "uvloop",
}  # fmt: skip
# One outside thing, one adapter: who may import what. A folder's name covers its files.
ADAPTERS = {
    "aiohttp": {
        "agent/scrape.py",
        "control_plane/http.py",
        "listening/protocol.py",
        "server/app.py",
        "server/http_protocol.py",
    },
    "dns": {"probe/dns/", "server/beacon.py"},
    "httptools": {"probe/http/"},
    "orjson": {"wire/"},
    "prometheus_client": {"exposition.py"},
    "pyroute2": {"netinfo/"},
    "sqlite3": {"spool/file.py", "server/store/"},
    "time": {"clock.py"},
    "ctypes": {"clock.py"},
    "click": {"cli/"},
    "cryptography": {"dsse.py"},
    "rich": {"cli/"},
    "zstandard": {"server/store/bodies.py"},
    "netsonde._native.deadlines": {"leases.py"},
    "netsonde._native.icmp": {"probe/"},
    "netsonde._native.ledger": {"probe/"},
    "netsonde._native.reports": {"wire/"},
}


def modules() -> list[Path]:
    """Every module of the package but its root, which holds the version only."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imports(path: Path) -> Iterator[str]:
    """The dotted names a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from netsonde import agent` imports netsonde.agent; so may any other name.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def begins(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    mine = unit_of(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "netsonde" or parts[1] == "__version__":
            continue
        theirs = parts[1]
        assert LAYER[theirs] <= LAYER[mine], f"{mine} imports {theirs}"
        assert {mine, theirs} != SIBLINGS, f"{mine} imports its sibling {theirs}"


@pytest.mark.parametrize(
    "path",
    [path for path in modules() if unit_of(path) in PURE],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_pure_layers_do_no_io(path: Path) -> None:
    allowed = {"asyncio", "ctypes", "time"} if path.name == "clock.py" else set()
    for name in imports(path):
        reached = {module for module in IO_MODULES if begins(name, module)}
        assert reached <= allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_outside_thing_has_one_adapter(path: Path) -> None:
    place = path.relative_to(PACKAGE).as_posix()
    for name in imports(path):
        for outside, adapters in ADAPTERS.items():
            if begins(name, outside):
                assert any(place.startswith(adapter) for adapter in adapters), (
                    f"{place} imports {name}"
                )


@pytest.mark.parametrize(
    "path",
    [path for path in modules() if unit_of(path) != "model"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_the_contracts_types_are_taken_from_their_face(path: Path) -> None:
    for name in imports(path):
        assert name.count(".") <= 2 or not begins(name, "netsonde.model"), f"{name} is inside"


def test_every_module_has_a_layer() -> None:
    assert {unit_of(path) for path in modules()} == set(LAYER)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "ext").glob("*.p[yx][xd]")), ids=lambda path: path.name
)
def test_native_code_is_a_leaf(path: Path) -> None:
    text = path.read_text()

    assert re.search(r"^\s*(from|c?import)\s+netsonde", text, re.MULTILINE) is None
    if path.suffix == ".pxd":
        # A class, cpdef or plain cdef function in a header would become a run-time import.
        assert re.search(r"^\s*(cdef class|cpdef)\b", text, re.MULTILINE) is None
        for line in re.findall(r"^cdef (?!extern|enum|struct|packed|inline|union).*", text, re.M):
            assert "(" not in line, f"{path.name}: not inline: {line}"


def test_native_modules_their_stubs_and_their_builds_are_the_same_set() -> None:
    sources = {path.stem for path in (ROOT / "ext").glob("*.pyx")}
    stubs = {path.stem for path in (PACKAGE / "_native").glob("*.pyi")}
    built = {path.name.partition(".")[0] for path in (PACKAGE / "_native").glob("*.so")}

    assert sources == stubs == built


def test_importing_the_top_level_is_cheap() -> None:
    heavy = ("aiohttp", "asyncio", "dns", "pyroute2", "httptools", "rich", "click")
    code = f"import sys, netsonde; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout.strip() == "[]"
