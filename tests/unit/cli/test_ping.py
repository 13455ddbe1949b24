"""`netsonde ping` over the echo engine's twin: options, targets, what is printed, exit codes."""

import asyncio
import csv
import io
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from netsonde import netinfo, wire
from netsonde._native import icmp
from netsonde.cli import ping as command
from netsonde.cli import pinging, way_out
from netsonde.cli.exits import Exit
from netsonde.cli.ping import SECTIONS, read_plan
from netsonde.cli.ping_report import HEADINGS, summary_lines
from netsonde.cli.root import main
from netsonde.clock import NS_PER_MS, ManualClock
from netsonde.errors import PrivilegeError
from netsonde.model import PingExpect, PingSpec, TaskKind
from netsonde.policy import TargetPolicy
from netsonde.probe.lookup import Entry
from netsonde.probe.ping import PingProber
from netsonde.probe.ping.engines import DEFAULT_BACKENDS, EngineOptions, able
from netsonde.probe.ping.totals import Totals
from netsonde.probe.privilege import GRANT_HINT
from netsonde.probe.targets import TargetResolver
from support.driving import finish
from support.echo import Event, MemoryEchoEngine, Script, answers, silence


class Stage:
    """The command with an engine that answers as `script` says, on a clock that never waits."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.script: Script = answers
        self.refused: tuple[str, ...] = ()  # back ends that are not permitted
        self.engines: list[MemoryEchoEngine] = []
        self.options: list[EngineOptions] = []
        self.names = {"one.example": ["192.0.2.1"], "two.example": ["192.0.2.2", "2001:db8::2"]}

    def open_engine(self, family: int, options: EngineOptions) -> MemoryEchoEngine:
        permitted = [each for each in able(family, options.backends) if each not in self.refused]
        if not permitted:
            raise PrivilegeError(f"this process may not send ICMPv{family}.\n{GRANT_HINT}")
        engine = MemoryEchoEngine(self.clock, family, self.script, backend=permitted[0])
        self.engines.append(engine)
        self.options.append(options)
        return engine

    async def look_up(self, name: str, family: int) -> Sequence[Entry]:
        if name not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(family, 0, 0, "", (address, 0)) for address in self.names[name]]

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(finish(self.clock, work))

    @property
    def sent(self) -> list[str]:
        """Where packets went, in order."""
        return [request.address for engine in self.engines for request in engine.requests]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    monkeypatch.setattr(command, "run", stage.run)
    monkeypatch.setattr(command, "SystemClock", lambda: stage.clock)
    monkeypatch.setattr(way_out, "open_engine", stage.open_engine)
    monkeypatch.setattr(pinging, "TargetResolver", partial(TargetResolver, look_up=stage.look_up))
    return stage


def ping(*args: str) -> Result:
    return CliRunner().invoke(main, ["ping", *args])


def objects(done: Result) -> list[dict[str, Any]]:
    return [wire.parse(line.encode()) for line in done.stdout.splitlines()]


def rows(done: Result) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(done.stdout)))


def only_to(*alive: str) -> Script:
    return lambda request: (Event(),) if request.address in alive else ()


# ── what was typed ──


def options_of(*args: str) -> dict[str, Any]:
    context = command.ping.make_context("ping", [*args], help_option_names=["-h", "--help"])
    del context.params["targets"]
    return context.params


def planned(*args: str) -> tuple[PingSpec, EngineOptions]:
    plan, _ = read_plan(["192.0.2.1"], options_of("192.0.2.1", *args))
    spec = wire.host_specs(TaskKind.PING, plan.spec)("192.0.2.1")
    assert isinstance(spec, PingSpec)
    return spec, plan.engine


@pytest.mark.parametrize(
    ("args", "spec"),
    [
        ([], {}),
        (["-c", "7", "-i", "0.2", "--timeout", "2s", "-s", "99", "--ttl", "9", "-4"],
         {"count": 7, "interval_ms": 200, "timeout_ms": 2000, "size": 99, "ttl": 9, "family": 4}),
        (["-W", "500ms", "--dscp", "46", "--df", "-6"],
         {"timeout_ms": 500, "dscp": 46, "df": True, "family": 6}),
        (["-S", "192.0.2.9", "-I", "eth0", "--mark", "7", "--all-addresses"],
         {"source": "192.0.2.9", "interface": "eth0", "mark": 7, "addresses": "all"}),
        (["--method", "udp", "--port", "33434"], {"method": "udp", "port": 33434}),
        (["--expect", "loss_pct_max=5", "--expect", "avg_ms_max=1.5"],
         {"expect": PingExpect(loss_pct_max=5.0, avg_ms_max=1.5)}),
        (["--expect", "p95_ms_max=9", "--expect", "jitter_ms_max=3"],
         {"expect": PingExpect(p95_ms_max=9.0, jitter_ms_max=3.0)}),
    ],
)  # fmt: skip
def test_options_become_the_spec(args: list[str], spec: dict[str, Any]) -> None:
    assert planned(*args)[0] == PingSpec(host="192.0.2.1", **spec)


def test_without_options_the_engine_is_as_always() -> None:
    assert planned()[1] == EngineOptions()


def test_rates_and_back_ends_become_the_engine() -> None:
    engine = planned(
        "--rate", "250.5", "--rate-per-prefix", "20", "--rate-per-target", "2", "--exact",
        "--backend", "packet, raw,packet",
    )[1]  # fmt: skip
    assert [budget.rate_pps for budget in engine.budgets] == [250.5]
    assert (engine.prefix_pps, engine.target_pps, engine.exact) == (20, 2, True)
    assert engine.backends == ("packet", "raw")
    assert planned("--backend", "auto")[1].backends == DEFAULT_BACKENDS


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["--targets"]),
        (["h", "--count", "0"], ["count", "1 to 100000"]),
        (["h", "--count", "abc"], ["count", "1 to 100000", "abc"]),
        (["h", "--size", "8"], ["size", "16 to 65507"]),
        (["h", "--timeout", "2h"], ["timeout_ms", "1 to 60000"]),
        (["h", "--timeout", "soon"], ["--timeout", "500ms"]),
        (["h", "--rate", "0"], ["--rate", "0.000001 to 1000000000"]),
        (["h", "--rate", "4e-7", "--method", "tcp"], ["--rate", "0.000001"]),
        (["h", "--rate", "nan"], ["--rate", "0.000001"]),
        (["h", "--rate-per-prefix", "-1"], ["--rate-per-prefix", "0.000001"]),
        (["h", "--rate-per-target", "2e9"], ["--rate-per-target", "1000000000"]),
        (["h", "--backend", "raw,pigeon"], ["--backend", "pigeon", "datagram"]),
        (["h", "--method", "gre"], ["method", "icmp, tcp, udp"]),
        (["h", "--expect", "loss"], ["--expect", "NAME=VALUE"]),
        (["h", "--expect", "colour=3"], ["--expect", "colour", "p95_ms_max"]),
        (["h", "--expect", "loss_pct_max=101"], ["loss_pct_max", "0 to 100"]),
        (["h", "--expect", "avg_ms_max=fast"], ["avg_ms_max", "above 0", "fast"]),
        (["h", "-I", "nosuch0"], ["nosuch0", "lo"]),
        (["h", "-S", "198.51.100.77"], ["198.51.100.77", "not an address of this host"]),
        (["h", "-S", "here"], ["source", "here"]),
        (["h", "-S", "127.0.0.1", "-6"], ["source", "127.0.0.1", "IPv6"]),
        (["h", "-q", "--csv"], ["--quiet", "--csv"]),
        (["h", "--csv", "--json"], ["--csv", "--json"]),
        (["h", "-a", "-u"], ["--alive", "--unreachable"]),
        (["a b"], ["host", "a b"]),
        ([""], ["host"]),
        (["192.0.2.1", "10.0.0.0/7"], ["10.0.0.0/7", "/8 or longer"]),
        (["192.0.2.1/x"], ["prefix", "192.0.2.1/x"]),
        (["192.0.2.1", "--targets", "/nonexistent/list"], ["/nonexistent/list", "No such file"]),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_sent(
    stage: Stage, args: list[str], words: list[str]
) -> None:
    done = ping(*args)
    assert done.exit_code == Exit.USAGE, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("netsonde: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
    assert stage.sent == []


def test_every_option_stands_under_a_heading_of_the_help() -> None:
    done = ping("--help")
    assert done.exit_code == Exit.OK
    for heading in SECTIONS:
        assert f"\n{heading}:\n" in done.stdout
    other = done.stdout.partition("\nOther:\n")[2].partition("\n\n")[0]
    assert other.split() == ["-h,", "--help", "Show", "this", "message", "and", "exit."]
    assert "\n  -6 " in done.stdout
    assert "netsonde ping -c 1 192.0.2.0/24 --alive\n" in done.stdout
    assert "  3  could not measure" in done.stdout


# ── targets ──


@pytest.fixture
def listed(tmp_path: Path) -> Callable[[bytes], str]:
    """Write a list; return the name of its file."""

    def write(content: bytes) -> str:
        path = tmp_path / f"list{len(list(tmp_path.iterdir()))}"
        path.write_bytes(content)
        return str(path)

    return write


def test_prefixes_and_lists_follow_the_arguments(
    stage: Stage, listed: Callable[[bytes], str]
) -> None:
    addresses = listed(b"192.0.2.4/31\n# nothing\n 2001:db8::/127 # two\n")
    names = listed(b"one.example\n\n192.0.2.99")
    done = ping("192.0.2.1", "192.0.2.8/30", "-f", addresses, "--targets", names, "-c", "1")
    assert done.exit_code == Exit.OK, done.stdout + done.stderr
    assert sorted(stage.sent) == sorted(
        ["192.0.2.1", "192.0.2.9", "192.0.2.10", "192.0.2.4", "192.0.2.5", "2001:db8::",
         "2001:db8::1", "192.0.2.1", "192.0.2.99"]
    )  # fmt: skip


def test_lines_that_are_no_targets_are_results(
    stage: Stage, listed: Callable[[bytes], str]
) -> None:
    lines = [b"192.0.2.1", b"\xff\xfe\0", b"a" * 5000, b"10.0.0.0/2", b"x y", b"../..", b"1.2.3"]
    done = ping("-c", "1", "--json", "-f", listed(b"\n".join(lines)))
    assert done.exit_code == Exit.TARGET_FAILED
    found = objects(done)
    assert [each["outcome"] for each in found].count("ok") == 1
    failed = [each for each in found if each["outcome"] != "ok"]
    assert len(failed) == len(lines) - 1
    assert {each["error"]["reason"] for each in failed} == {"resolve_failed"}
    assert done.stderr == ""


def test_every_address_of_a_name(stage: Stage) -> None:
    done = ping("two.example", "-c", "2", "--all-addresses", "--csv")
    assert sorted(set(stage.sent)) == ["192.0.2.2", "2001:db8::2"]
    (row,) = rows(done)
    assert row["address"] == "192.0.2.2 2001:db8::2"
    assert (row["sent"], row["received"]) == ("4", "4")


# ── what is printed ──


def test_one_target_is_one_line(stage: Stage) -> None:
    done = ping("192.0.2.1")
    assert done.exit_code == Exit.OK
    assert done.stdout == (
        "ok            ping   192.0.2.1  4/4 replies, loss 0 %,"
        " rtt min/avg/max 1.000/1.000/1.000 ms\n"
    )
    assert done.stderr == ""


def test_several_targets_end_with_a_summary(stage: Stage) -> None:
    stage.script = only_to("192.0.2.1", "192.0.2.2")
    done = ping("192.0.2.1", "192.0.2.2", "192.0.2.3", "no.example", "224.0.0.1", "-c", "2",
                "--expect", "loss_pct_max=0")  # fmt: skip
    assert done.exit_code == Exit.TARGET_FAILED
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:5]].count("ok") == 2
    assert lines[5:] == [
        "targets    5: 2 alive, 1 unreachable, 1 not resolved, 1 denied",
        "packets    6 sent, 4 received, loss 33.3333 %, 0 duplicates, 0 late",
        "this host  0 not sent (tx errors), 0 replies dropped (rx drops)",
        "rtt        min/avg/max/p95 1.000/1.000/1.000/1.000 ms",
        "time       1.100 s, 50 packets/s",
    ]


def test_quiet_prints_the_summary_only(stage: Stage) -> None:
    done = ping("192.0.2.1", "-q")
    assert done.stdout.startswith("targets    1: 1 alive, 0 unreachable\n")
    assert done.stdout.count("\n") == 5


def test_no_targets_are_none(stage: Stage, listed: Callable[[bytes], str]) -> None:
    empty = listed(b"# none today\n")
    done = ping("-f", empty)
    assert done.exit_code == Exit.OK
    assert done.stdout.splitlines()[0] == "targets    0: 0 alive, 0 unreachable"
    assert ping("-f", empty, "--csv").stdout == ",".join(HEADINGS) + "\n"
    assert ping("-f", empty, "--json").stdout == ""


def test_names_of_those_that_answer_or_do_not(stage: Stage) -> None:
    stage.script = only_to("192.0.2.1")
    args = ("192.0.2.0/30", "no.example", "-c", "1")
    assert ping(*args, "-a").stdout == "192.0.2.1\n"
    unreachable = ping(*args, "-u")
    assert sorted(unreachable.stdout.split()) == ["192.0.2.2", "no.example"]
    assert unreachable.stderr == ""
    assert [each["spec"]["host"] for each in objects(ping(*args, "--json", "-a"))] == ["192.0.2.1"]
    assert {row["target"] for row in rows(ping(*args, "--csv", "-u"))} == {
        "192.0.2.2",
        "no.example",
    }


def test_csv_says_the_same_as_json(stage: Stage) -> None:
    def script(request: Any) -> Sequence[Event]:
        if request.address == "192.0.2.2":
            return ()
        late = Event(kind=icmp.DUPLICATE, after_ns=9 * NS_PER_MS)
        return (Event(after_ns=(2 + request.attempt) * NS_PER_MS), late)

    stage.script = script
    args = ("192.0.2.1", "192.0.2.2", "no.example", "224.0.0.1", "-c", "3")
    table = {row["target"]: row for row in rows(ping(*args, "--csv"))}
    assert list(table["192.0.2.1"]) == list(HEADINGS)
    for result in objects(ping(*args, "--json")):
        row, host = table[result["spec"]["host"]], result["spec"]["host"]
        summary = result["observations"][-1]["value"]
        assert row["outcome"] == result["outcome"], host
        assert row["reason"] == result.get("error", {}).get("reason", ""), host
        assert row["address"] == (summary["address"] or ""), host
        names = {
            "sent": "sent", "received": "received", "loss_pct": "loss_pct",
            "duplicates": "duplicates", "late": "late", "tx_errors": "tx_errors",
            "rx_drops": "rx_drops", "min_ms": "min_rtt_ms", "avg_ms": "avg_rtt_ms",
            "max_ms": "max_rtt_ms", "p50_ms": "p50_ms", "p95_ms": "p95_ms", "p99_ms": "p99_ms",
            "jitter_ms": "jitter_ms",
        }  # fmt: skip
        for column, field in names.items():
            expected = summary[field]
            assert (float(row[column]) if row[column] else None) == expected, (host, column)


def test_json_is_what_an_agent_would_report(stage: Stage) -> None:
    (result,) = objects(ping("192.0.2.1", "-c", "2", "--json"))
    assert result["spec"] == {"kind": "ping", "host": "192.0.2.1", "count": 2}
    assert [each["name"] for each in result["observations"]] == ["ping_attempts", "ping_summary"]
    assert {"version", "clock", "policy_version", "icmp_socket"} <= set(result["env"])
    assert result["duration_ms"] == pytest.approx(101)


def test_text_from_elsewhere_cannot_steer_the_terminal(
    stage: Stage, listed: Callable[[bytes], str]
) -> None:
    red = listed(b"\x1b[31mred\n")
    for form in ((), ("--csv",), ("-u",), ("--json",)):
        assert "\x1b" not in ping("-f", red, *form).stdout


# ── exit codes ──


@pytest.mark.parametrize(
    ("args", "script", "code"),
    [
        (["192.0.2.0/30"], answers, Exit.OK),
        (["192.0.2.0/30"], only_to("192.0.2.1"), Exit.TARGET_FAILED),
        (["192.0.2.1"], silence, Exit.TARGET_FAILED),
        (["192.0.2.1", "no.example"], answers, Exit.TARGET_FAILED),
        (["192.0.2.1", "224.0.0.1"], answers, Exit.TARGET_FAILED),
        (["192.0.2.1", "--expect", "avg_ms_max=1"], answers, Exit.OK),
        (["192.0.2.1", "--expect", "avg_ms_max=0.5"], answers, Exit.TARGET_FAILED),
    ],
)
def test_the_worst_target_is_the_exit_code(
    stage: Stage, args: list[str], script: Script, code: Exit
) -> None:
    stage.script = script
    assert ping(*args, "-c", "1", "-q").exit_code == code


def test_what_this_host_could_not_send_is_explained_once(stage: Stage) -> None:
    stage.script = lambda _: (Event(kind=icmp.TX_ERROR, code=105, errno=105),)
    done = ping("192.0.2.0/29", "-c", "1", "-q")
    assert done.exit_code == Exit.CANNOT
    assert done.stderr.startswith("netsonde: ping 192.0.2.")
    assert "No buffer space" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "0 alive, 0 unreachable, 6 not measured" in done.stdout
    assert "6 not sent (tx errors)" in done.stdout


def test_without_privilege_it_ends_with_the_lines_that_grant_it(stage: Stage) -> None:
    stage.refused = DEFAULT_BACKENDS
    for form in ((), ("--json",), ("-q",)):
        done = ping("192.0.2.0/24", *form)
        assert done.exit_code == Exit.CANNOT
        assert done.stdout == ""
        assert done.stderr == f"netsonde: this process may not send ICMPv4.\n{GRANT_HINT}\n"


def test_a_summary_that_cannot_be_written_is_one_sentence(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    plan, report = read_plan(["192.0.2.1"], options_of("192.0.2.1", "-q"))
    stage.run(pinging.ping_for_person(stage.clock, plan, report))
    monkeypatch.setattr("sys.stdout", Full())
    with pytest.raises(OSError, match="No space left"):
        report.end()


def test_a_list_that_breaks_midway_ends_it(
    stage: Stage, listed: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = listed(b"192.0.2.1\n")
    stage.script = silence
    pieces: list[bytes | None] = [b"192.0.2.1\n", None]

    def read(descriptor: int, size: int) -> bytes:
        piece = pieces.pop(0)
        if piece is None:
            raise OSError(5, "Input/output error")
        return piece

    monkeypatch.setattr(os, "read", read)
    done = ping("-f", path, "--csv")
    assert done.exit_code == Exit.CANNOT
    assert done.stderr == f"netsonde: target list {path} cannot be read: Input/output error\n"
    assert "person" not in done.stdout


def test_a_denied_address_is_not_asked_for_its_way(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(netinfo, "route_to", unwanted)
    done = ping("224.0.0.1", "--df", "--backend", "packet")
    assert done.exit_code == Exit.TARGET_FAILED, done.stderr
    assert stage.engines == []


def test_no_way_is_looked_for_before_all_is_checked(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = netinfo.Route("192.0.2.5", 1, "lo", 100)

    def unwanted(*_: object) -> bytes:
        raise AssertionError

    monkeypatch.setattr(netinfo, "route_to", lambda *_, **__: route)
    monkeypatch.setattr(netinfo, "link_address", unwanted)
    done = ping("192.0.2.1", "--df", "-s", "73")
    assert (done.exit_code, stage.sent) == (Exit.USAGE, [])
    assert "size may be 72 at the most" in done.stderr
    prober = PingProber(stage.clock, TargetResolver(TargetPolicy.person()))
    prober.lanes._open_engine = lambda family: stage.open_engine(
        family, EngineOptions(backends=("packet",))
    )
    plan, _ = read_plan(["192.0.2.1"], options_of("192.0.2.1", "--df"))

    async def check() -> None:
        await pinging._check_size(prober, plan, lambda host: PingSpec(host=host, df=True, size=72))
        await prober.close()

    stage.run(check())


def test_a_back_end_that_was_not_the_first_choice_is_named(stage: Stage) -> None:
    stage.refused = ("header", "raw")
    done = ping("192.0.2.1", "192.0.2.2", "--json")
    assert done.exit_code == Exit.OK
    assert done.stderr == "netsonde: header, raw: not permitted here; using datagram instead\n"
    stage.refused = ("packet",)
    done = ping("192.0.2.1", "--backend", "packet,raw")
    assert done.stderr == "netsonde: packet: not permitted here; using raw instead\n"
    assert ping("192.0.2.1", "--backend", "packet").exit_code == Exit.CANNOT


def test_ipv6_has_no_back_end_header_and_falls_back_to_nothing(stage: Stage) -> None:
    assert ping("2001:db8::1").stderr == ""
    assert stage.engines[0].backend == "raw"


# ── the summary ──


def test_a_summary_of_nothing_has_no_rates() -> None:
    assert summary_lines(Totals(), 0) == [
        "targets    0: 0 alive, 0 unreachable",
        "packets    0 sent, 0 received, loss -, 0 duplicates, 0 late",
        "this host  0 not sent (tx errors), 0 replies dropped (rx drops)",
        "time       0.000 s",
    ]
