"""What others find on a path of sixteen hops is what we find: scamper, and Linux's traceroute."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsonde.model import TraceSpec
from support.namespaces import Chain
from support.privileges import user_change_refusal
from support.rivals import INSTALL, find, read_warts, responders
from support.router_chain import HOPS, router_chain
from support.tracing import hops, trace

pytestmark = [pytest.mark.raw, pytest.mark.netns]

FAMILIES = pytest.mark.parametrize("version", [4, 6])
METHODS = pytest.mark.parametrize("method", ["icmp", "udp", "tcp"])
PATIENCE_S = 10  # for an answer; there is one to every probe
END_S = 60
TRACEROUTE = {"icmp": ("-I",), "udp": (), "tcp": ("-T",)}
# Over IPv6 udp-paris knows its probes by their checksums, which a veth pair leaves unfinished.
SCAMPER = {
    (4, "icmp"): "icmp-paris", (4, "udp"): "udp-paris", (4, "tcp"): "tcp",
    (6, "icmp"): "icmp-paris", (6, "udp"): "udp", (6, "tcp"): "tcp",
}  # fmt: skip


@pytest.fixture(scope="module")
def path() -> Iterator[Chain]:
    with router_chain() as built:
        yield built


def program(name: str) -> Path:
    """Return a rival's program, or skip the test."""
    found = find(name)
    if found is None:
        pytest.skip(f"no {name}: {INSTALL}")
    return found


def run(path: Chain, *command: str | Path) -> str:
    """Run a rival on the host of a path; return what it prints."""

    def start() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=END_S,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    done = path.host.call(start)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def our_hops(path: Chain, version: int, method: Any) -> list[str | None]:
    """Trace the path ourselves; the chain says whether that is right."""
    spec = TraceSpec(host=path.target_address(version), method=method)
    (measurement,) = await trace(path.host, spec)
    found = hops(measurement)
    assert found == path.hops(version)
    assert len(found) == HOPS
    return found


@METHODS
@FAMILIES
async def test_traceroute_finds_the_same_hops(path: Chain, version: int, method: str) -> None:
    said = run(
        path, program("traceroute"), *TRACEROUTE[method], f"-{version}", "-n", "-q", "1",
        "-w", f"{PATIENCE_S},0,0",  # not less for hops near to one that has answered
        path.target_address(version),
    )  # fmt: skip
    _, *lines = said.splitlines()
    assert [line.split()[1] for line in lines] == await our_hops(path, version, method), said


@METHODS
@FAMILIES
async def test_scamper_finds_the_same_hops(
    path: Chain, version: int, method: str, tmp_path: Path
) -> None:
    if (refusal := user_change_refusal()) is not None:
        pytest.skip(f"scamper {refusal}")
    traced = tmp_path / "warts"
    command = f"trace -P {SCAMPER[version, method]} -w {PATIENCE_S}"
    run(
        path, program("scamper"), "-O", "warts", "-o", traced, "-c", command,
        "-i", path.target_address(version),
    )  # fmt: skip
    (found,) = read_warts(program("sc_warts2json"), traced)
    assert found["stop_reason"] == "COMPLETED"
    assert responders(found) == dict(enumerate(await our_hops(path, version, method), 1))
