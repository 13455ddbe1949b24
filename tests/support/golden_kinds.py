"""The golden corpus of the five kinds: specs, claims' answers and results, one file per version.

Files only grow. Each line has a digest over itself and the line before, so that one that changed or
went is found. What is missing is measured against servers and twins of this process.
"""

import hashlib
import json
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from netsonde import __version__, wire
from netsonde.cli.tracing import with_names
from netsonde.clock import SystemClock
from netsonde.model import SPEC_TYPES, Measurement, Observation, Outcome, TaskKind, TaskSpec
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Prober, Recorder, measure
from netsonde.probe.dns import DnsProber
from netsonde.probe.http import HttpProber
from netsonde.probe.targets import TargetResolver
from netsonde.probe.tcp import TcpProber
from support.contract_types import FOLDER, full
from support.dns_server import dns_server, silent_port, zone
from support.echo import Event, Request
from support.http_server import http_server, response
from support.ping_bench import PingBench
from support.trace_bench import TARGET, TraceBench

CHAIN_DIGITS = 16
# Every observation that an agent or a command of this version writes.
OBSERVATIONS: dict[TaskKind, frozenset[str]] = {
    TaskKind.DNS: frozenset(
        {"dns_response", "dns_a_record", "dns_aaaa_record", "dns_mx_record", "dns_ns_record",
         "dns_txt_record", "dns_error", "dns_summary"}
    ),
    TaskKind.HTTP: frozenset({"http_response", "http_summary"}),
    TaskKind.TCP: frozenset({"tcp_attempt", "tcp_resolution", "tcp_summary"}),
    TaskKind.PING: frozenset({"ping_attempt", "ping_attempts", "ping_resolution", "ping_summary"}),
    TaskKind.TRACE: frozenset({"trace", "trace_names", "trace_resolution"}),
}  # fmt: skip
ANY_KIND = frozenset({"agent_rejected"})  # of a lease that was handed back
ZONE = zone(
    "example.net 300 A 192.0.2.1",
    "example.net 60 AAAA 2001:db8::1",
    "example.net 60 MX 10 mail.example.net.",
    "example.net 60 NS ns1.example.net.",
    'example.net 60 TXT "v=spf1 -all" "second"',
)


class Golden(NamedTuple):
    """One thing that was written by a version: a `spec`, a `lease` or a `result`."""

    kind: TaskKind
    what: str
    name: str
    body: dict[str, Any]


# ── files ──


def files() -> list[Path]:
    """Return the file of every version."""
    return sorted(FOLDER.glob("kinds-*.jsonl"))


def own_file() -> Path:
    """Return the file of this version."""
    return FOLDER / f"kinds-{__version__}.jsonl"


def read(path: Path) -> list[Golden]:
    """Return what a file holds.

    Raises:
        AssertionError: a line was changed, or one before it.
    """
    before, found = "", []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        digest, _, text = line.partition(" ")
        assert digest == _digest(before, text), f"{path.name}:{number} is not as it was written"
        before = digest
        kind, what, name, body = json.loads(text)
        found.append(Golden(TaskKind(kind), what, name, body))
    return found


def append(path: Path, new: Sequence[Golden]) -> None:
    """Add to a file."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    for one in new:
        text = json.dumps([one.kind, one.what, one.name, one.body])
        before = lines[-1].partition(" ")[0] if lines else ""
        lines.append(f"{_digest(before, text)} {text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")


def _digest(before: str, text: str) -> str:
    return hashlib.sha256(f"{before} {text}".encode()).hexdigest()[:CHAIN_DIGITS]


# ── what this version writes ──


async def written() -> list[Golden]:
    """Return what this version writes, of every kind."""
    made: list[Golden] = [*_specs()]
    made += [*_leases(made)]
    for measured in (_dns, _http, _tcp, _ping, _trace):
        made += [
            Golden(kind, "result", name, json.loads(wire.encode_result(kind, spec, measurement)))
            for kind, name, spec, measurement in await measured()
        ]
    return made


def _specs() -> Iterator[Golden]:
    targets = {TaskKind.HTTP: "http://192.0.2.1/", TaskKind.TCP: "192.0.2.1:443"}
    for kind, spec_type in SPEC_TYPES.items():
        target = targets.get(kind, "example.net")
        yield Golden(kind, "spec", "plain", _plain(wire.build_spec(kind, target, {})))
        yield Golden(kind, "spec", "every field", _valid(kind, full(spec_type)))


def _plain(spec: TaskSpec) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(wire.encode(spec))
    return body


def _valid(kind: TaskKind, body: dict[str, Any]) -> dict[str, Any]:
    """Put right what fields say of each other in a body that has them all."""
    right: dict[TaskKind, dict[str, Any]] = {
        TaskKind.DNS: {"query": "example.net", "server": "192.0.2.53:53", "qtype": "MX"},
        TaskKind.HTTP: {"url": "http://192.0.2.1/", "method": "HEAD", "headers": {"X-Test": "1"}},
        TaskKind.TCP: {"host": "192.0.2.1"},
        TaskKind.PING: {"host": "192.0.2.1", "family": 4, "source": "192.0.2.7", "method": "udp"},
        TaskKind.TRACE: {"host": "192.0.2.1", "family": 4, "source": "192.0.2.7", "method": "udp",
                         "max_hops": 20},
    }  # fmt: skip
    return _plain(wire.convert_spec(body | right[kind]))


def _leases(specs: Sequence[Golden]) -> Iterator[Golden]:
    whole = {
        "lease_id": 2**53 - 1, "task_id": 7, "lease_until_ms": 45_000, "attempt": 2,
        "max_attempts": 3, "granted_after_ms": 12, "max_lease_ms": 600_000, "check_id": 5,
        "priority": -3,
    }  # fmt: skip
    standing = {
        "scheduled_at": "2026-11-28T00:00:00.000000000Z", "next_tick": 4, "offline_ms": 86_400_000,
        "repeat": {"every_ms": 60_000, "jitter_ms": 5_000, "ticks": 10, "stale_after_ms": 30_000},
    }  # fmt: skip
    for one in specs:
        lease = whole | {"kind": one.kind, "spec": one.body}
        yield Golden(one.kind, "lease", f"once, {one.name}", lease)
        yield Golden(one.kind, "lease", f"standing, {one.name}", lease | standing)


Measured = list[tuple[TaskKind, str, TaskSpec, Measurement]]


async def _run(prober: Prober[Any], spec: Any, *, columnar: bool = True) -> Measurement:
    record = Recorder(SystemClock(), columnar=columnar)
    await measure(prober, spec, record)
    return record.measurement()


async def _nothing(name: str, family: int) -> list[Any]:
    raise socket.gaierror(socket.EAI_NONAME, "no such name")


def _resolver(**options: Any) -> TargetResolver:
    return TargetResolver(TargetPolicy.person(), **options)


async def _dns() -> Measured:
    prober = DnsProber(SystemClock(), TargetPolicy.person(), resolv_conf=Path("/nonexistent"))
    made: Measured = []
    async with dns_server(ZONE) as server:
        with silent_port() as silent:
            nobody = f"127.0.0.1:{silent.getsockname()[1]}"
            for name, query, options in (
                ("addresses", "example.net", {"server": server.spec}),
                ("mail", "example.net", {"server": server.spec, "qtype": "MX"}),
                ("name servers", "example.net", {"server": server.spec, "qtype": "NS"}),
                ("texts", "example.net", {"server": server.spec, "qtype": "TXT"}),
                ("no such name", "none.example", {"server": server.spec}),
                ("silence", "example.net", {"server": nobody, "timeout_ms": 50, "retries": 0}),
                ("denied", "example.net", {"server": "224.0.0.1"}),
            ):
                spec = wire.build_spec(TaskKind.DNS, query, options)
                made.append((TaskKind.DNS, name, spec, await _run(prober, spec)))
    return made


async def _http() -> Measured:
    prober = HttpProber(SystemClock(), _resolver(look_up=_nothing))
    routes = {
        "/": response("200 OK", b"hello", server="golden"),
        "/moved": response("302 Found", location="/"),
    }
    made: Measured = []
    async with http_server(routes) as server:
        for name, url in (
            ("found", f"{server.url}/"),
            ("moved", f"{server.url}/moved"),
            ("missing", f"{server.url}/missing"),
            ("no such name", "http://none.example/"),
            ("denied", "http://224.0.0.1/"),
        ):
            spec = wire.build_spec(TaskKind.HTTP, url, {})
            made.append((TaskKind.HTTP, name, spec, await _run(prober, spec)))
    return made


async def _tcp() -> Measured:
    prober = TcpProber(SystemClock(), _resolver(look_up=_nothing))
    made: Measured = []
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        for name, target in (
            ("open", f"127.0.0.1:{listener.getsockname()[1]}"),
            ("closed", f"127.0.0.1:{holder.getsockname()[1]}"),
            ("no such name", "none.example:80"),
            ("denied", "224.0.0.1:80"),
        ):
            spec = wire.build_spec(TaskKind.TCP, target, {})
            made.append((TaskKind.TCP, name, spec, await _run(prober, spec)))
    spec = wire.build_spec(TaskKind.TCP, "192.0.2.1:80", {})
    handed_back = Measurement(
        outcome=Outcome.REJECTED, started_at_ns=1, duration_ns=0,
        observations=(Observation("agent_rejected", {"message": "not known here"}),),
        error=made[-1][3].error, env={"version": __version__},
    )  # fmt: skip
    return [*made, (TaskKind.TCP, "handed back", spec, handed_back)]


async def _ping() -> Measured:
    bench = PingBench()
    bench.names = {"none.example": []}

    def script(request: Request) -> list[Event]:
        return [] if request.address == "192.0.2.9" or request.attempt == 2 else [Event()]

    bench.script = script
    made: Measured = []
    for name, host, options in (
        ("replies", "192.0.2.1", {"count": 3}),
        ("silence", "192.0.2.9", {"count": 2}),
        ("no such name", "none.example", {}),
        ("denied", "224.0.0.1", {}),
    ):
        spec = wire.build_spec(TaskKind.PING, host, options)
        for columnar in (True, False):
            (seen,) = await bench.ping_all([spec], columnar=columnar)  # type: ignore[list-item]
            told = "columns" if columnar else "packet by packet"
            made.append((TaskKind.PING, f"{name}, {told}", spec, seen))
    await bench.prober.close()
    return made


async def _trace() -> Measured:
    bench = TraceBench()
    bench.names = {"none.example": []}
    made: Measured = []
    for name, host in (("a path", TARGET), ("no such name", "none.example"), ("denied", "::")):
        spec = wire.build_spec(TaskKind.TRACE, host, {})
        seen, _ = await bench.trace(host)
        made.append((TaskKind.TRACE, name, spec, seen))
    kind, _, spec, seen = made[0]
    named = with_names(seen, {"192.0.2.1": "gw.example"})
    await bench.tracer.close()
    return [*made, (kind, "a path, with names", spec, named)]


def item_of(result: dict[str, Any], lease_id: int) -> dict[str, Any]:
    """Return a result as its agent reports it."""
    fields = ("outcome", "started_at", "duration_ms", "observations", "error", "env")
    return {"lease_id": lease_id} | {name: result[name] for name in fields if name in result}


def plain(value: Any) -> Any:
    """Return a decoded value as JSON has it."""
    return json.loads(wire.encode(msgspec.to_builtins(value)))
