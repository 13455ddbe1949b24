"""`netsonde trace` as a process of its own, on loopback and over kernels that route."""

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from netsonde.cli.exits import Exit
from netsonde.probe.dns.reverse import ReverseResolver
from support.commands import COMMAND, TIMEOUT_S, Running, json_lines, netsonde, running
from support.dns_server import dns_server, zone
from support.namespaces import Chain, Namespace, chain, connect

FAMILIES = pytest.mark.parametrize("version", [4, 6])
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
ROUTERS = 4
SILENT = 3  # the router that says nothing
MANY = {4: "10.98.0.0/26", 6: "fd98::/122"}
UNUSED = {4: "10.99.0.1", 6: "fd99::1"}
REFUSED = {4: "10.96.0.1", 6: "fd96::1"}
PROHIBITED = {4: "10.95.0.1", 6: "fd95::1"}
SOON = ("--timeout", "300ms", "--probes", "2")


@pytest.fixture(scope="module")
def path() -> Iterator[Chain]:
    """A chain whose third router says nothing, whose target answers for all of MANY."""
    with chain(ROUTERS, silent={SILENT}) as built:
        for prefix in MANY.values():
            built.route_all_to(prefix)
            built.target.answer_for(prefix)
        for found, kind, router in (
            (UNUSED, "blackhole", 2), (REFUSED, "unreachable", 2), (PROHIBITED, "prohibit", 2)
        ):  # fmt: skip
            for address in found.values():
                built.route_all_to(address)
                built.nodes[router].refuse(address, kind)
        yield built


def trace(node: Namespace, *args: str) -> subprocess.CompletedProcess[str]:
    return node.call(netsonde, "trace", *args)


def rows(text: str) -> list[list[str]]:
    """Return the cells of a table's rows, below its heading."""
    return [line.split() for line in text.splitlines() if line.startswith("  ")]


# ── what is found ──


@pytest.mark.raw
def test_loopback_is_one_hop() -> None:
    done = netsonde("trace", "127.0.0.1", "::1")
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    assert done.stdout.count("reached, 1 hop, 0.") == 2
    assert done.stdout.count("\n\n") == 1


@pytest.mark.netns
@FAMILIES
def test_every_hop_has_a_row(path: Chain, version: int) -> None:
    target = path.target_address(version)
    done = trace(path.host, target, *SOON)
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    truth = path.hops(version)
    truth[SILENT - 1] = "*"
    found = rows(done.stdout)
    assert [row[:2] for row in found] == [[str(ttl), at] for ttl, at in enumerate(truth, start=1)]
    assert all(0 < float(row[2]) < 300 for row in found if row[1] != "*")
    assert f"trace  {target}  reached, 5 hops, " in done.stdout.splitlines()[-1]


@pytest.mark.netns
@FAMILIES
def test_loss_of_every_hop(path: Chain, version: int) -> None:
    done = trace(path.host, path.target_address(version), *SOON, "--all-probes", "-i", "1ms")
    heading, *lines = [line for line in done.stdout.splitlines() if line.startswith(("TTL", "  "))]
    at = heading.index("LOSS")
    loss = [line[at : at + 5].strip() for line in lines]
    assert loss == ["0 %", "0 %", "100 %", "0 %", "0 %"]


@pytest.mark.netns
@pytest.mark.parametrize(
    ("host", "mark", "reason"),
    [
        (REFUSED[4], "!H", "unreachable_host"),
        (REFUSED[6], "!N", "unreachable_net"),
        (PROHIBITED[4], "!X", "filtered"),
        (PROHIBITED[6], "!X", "filtered"),
    ],
)
def test_a_refusal_is_marked(path: Chain, host: str, mark: str, reason: str) -> None:
    done = trace(path.host, host)
    assert (done.returncode, done.stderr) == (Exit.TARGET_FAILED, "")
    assert rows(done.stdout)[-1][-1] == mark
    assert f"trace  {host}  refused, 2 hops, " in done.stdout
    assert f"; {reason}: {host}: " in done.stdout


@pytest.mark.netns
@FAMILIES
def test_a_path_that_goes_silent_stops_at_the_gap_limit(path: Chain, version: int) -> None:
    done = trace(path.host, UNUSED[version], *SOON, "--gap-limit", "2")
    assert done.returncode == Exit.TARGET_FAILED
    assert [row[1] for row in rows(done.stdout)] == [path.hops(version)[0], "*", "*"]
    assert "stopped at the gap limit, 3 hops" in done.stdout


@pytest.mark.netns
@FAMILIES
def test_by_udp_and_tcp(path: Chain, version: int) -> None:
    target = path.target_address(version)
    listener = path.target.call(socket.create_server, (target, 8080), family=FAMILY[version])
    with listener:
        for args, note in (
            (("udp",), None), (("tcp", "--port", "8080"), "open"), (("tcp", "-p", "81"), "closed")
        ):  # fmt: skip
            done = trace(path.host, target, *SOON, "--method", *args)
            assert (done.returncode, done.stderr) == (Exit.OK, ""), done.stdout
            found = rows(done.stdout)
            assert [row[1] for row in found][-2:] == path.hops(version)[-2:]
            assert found[-1][3:] == ([note] if note else [])


# ── every path ──

WIDTH = 3
EVERY_PATH = ("--multipath", "--confidence", "99.9", "--method", "udp")


@pytest.fixture(scope="module")
def diamond() -> Iterator[Namespace]:
    """A host whose first router balances flows over three others, which join before the target.

    Hops: 10.60.0.2; 10.60.1.2, 10.60.2.2, 10.60.3.2; 10.60.11.2; 10.60.20.2.
    """
    with contextlib.ExitStack() as stack:
        nodes = [Namespace(f"node {number}") for number in range(4 + WIDTH)]
        for node in nodes:
            stack.callback(node.close)
            node.make_router()
        host, first, last, target, *middle = nodes
        first.sysctl("net.ipv4.fib_multipath_hash_policy", 1)  # ports, too
        links = [(host, first, 0), (last, target, 20)]
        links += [(first, each, number) for number, each in enumerate(middle, start=1)]
        links += [(each, last, number) for number, each in enumerate(middle, start=11)]
        for left, right, number in links:
            connect(left, right, f"right{number}", f"left{number}")
            left.address(f"right{number}", f"10.60.{number}.1", 30)
            right.address(f"left{number}", f"10.60.{number}.2", 30)
        host.route_to("10.60.0.0/16", "10.60.0.2")
        gateways = [{"gateway": f"10.60.{number}.2"} for number in range(1, WIDTH + 1)]
        first.route.route("add", dst="10.60.20.0/24", multipath=gateways)
        for number, each in enumerate(middle, start=1):
            each.route_to("10.60.20.0/24", f"10.60.{10 + number}.2")
            each.route_to("10.60.0.0/24", f"10.60.{number}.1")
        last.route_to("10.60.0.0/24", "10.60.11.1")
        target.route_to("10.60.0.0/16", "10.60.20.1")
        yield host


@pytest.mark.netns
def test_the_graph_of_every_path(diamond: Namespace) -> None:
    done = trace(diamond, "10.60.20.2", *EVERY_PATH, *SOON)
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    graph = done.stdout[done.stdout.index("paths: ") :].splitlines()
    assert graph[:-1] == [
        "paths: 6 nodes, 7 links, up to 3 side by side, 99.9 % sure",
        "  1  o            10.60.0.2",
        "     ├───┬───┐",
        "  2  o   │   │    10.60.1.2",
        "     │   o   │    10.60.2.2",
        "     │   │   o    10.60.3.2",
        "     ├───┴───┘",
        "  3  o            10.60.11.2",
        "  4  o            10.60.20.2",
    ]


@pytest.mark.netns
def test_the_graph_is_ascii_where_output_is(diamond: Namespace) -> None:
    def start() -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*COMMAND, "trace", "10.60.20.2", *EVERY_PATH, *SOON],
            check=False, capture_output=True, timeout=TIMEOUT_S,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )  # fmt: skip

    done = diamond.call(start)
    assert done.returncode == Exit.OK, done.stderr
    assert done.stdout.isascii()
    assert b"     +---.---.\n" in done.stdout


# ── how large, and why lost ──


@pytest.fixture(scope="module")
def narrow() -> Iterator[Chain]:
    """A chain whose third link carries 1400 bytes."""
    with chain(ROUTERS) as built:
        for node, end in ((built.nodes[2], "right"), (built.nodes[3], "left")):
            node.route.link("set", index=node.index(end), mtu=1400)
        yield built


@pytest.mark.netns
@FAMILIES
def test_the_path_mtu_and_who_narrows_it(narrow: Chain, version: int) -> None:
    done = trace(narrow.host, narrow.target_address(version), "--pmtud")
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    router = narrow.hops(version)[1]
    line = done.stdout.splitlines()[-2]
    assert re.fullmatch(rf"path MTU 1400 bytes, narrowed (at TTL 2 )?by {router}", line)
    assert rows(done.stdout)[1][3:] == ["MTU", "1400", "from", "here"]


@pytest.mark.netns
def test_why_a_hop_is_silent(path: Chain) -> None:
    done = trace(path.host, path.target_address(4), "-q", "6", "--all-probes", "-i", "1ms", *SOON)
    silent = next(line for line in done.stdout.splitlines() if line.startswith("  3"))
    assert re.search(r"sends no errors \(\d+ %\)$", silent), done.stdout


# ── many ──


@pytest.mark.netns
def test_many_targets_from_a_pipe(path: Chain) -> None:
    hosts = [f"10.98.0.{number}" for number in range(1, 63)]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*COMMAND, "trace", "--targets", "-", MANY[6], *SOON, "--parallel", "8", "--json"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    with path.host.call(start) as process:
        out, err = process.communicate("\n".join(hosts).encode(), timeout=TIMEOUT_S)
    assert (process.returncode, err) == (Exit.OK, b"")
    results = json_lines(out.decode())
    assert {result["outcome"] for result in results} == {"ok"}
    traced = [result["spec"]["host"] for result in results]
    assert len(traced) == len(set(traced)) == 62 + 64
    assert set(hosts) < set(traced)
    for result in results:
        hops = result["observations"][-1]["value"]["hops"]
        assert hops[-1]["address"] == result["spec"]["host"]
        assert len(hops) == ROUTERS + 1


@pytest.mark.raw
def test_a_rate_is_kept() -> None:
    done = netsonde("trace", "127.0.0.0/26", "--rate", "200", "--json")
    results = json_lines(done.stdout)
    sent = sum(result["observations"][-1]["value"]["sent"] for result in results)
    longest_ms = max(result["duration_ms"] for result in results)
    assert done.returncode == Exit.OK
    assert longest_ms > 1000 * (sent - 64) / 200 * 0.8


@pytest.mark.raw
def test_good_and_bad_targets_together(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"127.0.0.2\nno-such-name.invalid\n\x00\xff\n0.0.0.0/0\n")
    done = netsonde("trace", "127.0.0.1", "224.0.0.1", "--targets", str(tmp_path / "list"))
    assert (done.returncode, done.stderr) == (Exit.TARGET_FAILED, "")
    ends = [line for line in done.stdout.splitlines() if "  trace  " in line]
    outcomes = sorted(line.split()[0] for line in ends)
    assert outcomes == ["ok", "ok", "rejected", "target_error", "target_error", "target_error"]


# ── on a terminal ──


def on_terminal(*args: str, node: Namespace, **env: str) -> str:
    """Run `netsonde trace` on a terminal; return all that it wrote there."""
    leader, follower = pty.openpty()

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*COMMAND, "trace", *args],
            stdin=subprocess.DEVNULL, stdout=follower, stderr=follower,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30", **env},
        )  # fmt: skip

    shown = b""
    with node.call(start) as process:
        os.close(follower)
        with contextlib.suppress(OSError):  # EIO: the other side has closed
            while data := os.read(leader, 65_536):
                shown += data
        process.wait(timeout=TIMEOUT_S)
    os.close(leader)
    return shown.decode()


@pytest.mark.netns
def test_a_table_fills_on_a_terminal(path: Chain) -> None:
    target = path.target_address(4)
    shown = on_terminal(target, *SOON, node=path.host)
    *drawn, last = shown.split("0 of 1 done, 1 under way, 0 s")
    assert len(drawn) >= 3  # it waits for the silent router twice, 300 ms each
    assert all(path.hops(4)[1] in each for each in drawn)
    assert "\x1b[32mok\x1b[0m" in last
    assert "reached, 5 hops" in last
    assert "\x1b[?25h" in last  # the cursor is back


@pytest.mark.netns
def test_without_colour_and_without_a_live_terminal(path: Chain) -> None:
    target = path.target_address(4)
    shown = on_terminal(target, *SOON, node=path.host, NO_COLOR="1")
    assert re.search(r"\x1b\[[0-9;]*m", shown) is None
    assert "1 under way" in shown
    shown = on_terminal(target, *SOON, node=path.host, TERM="dumb")
    assert "\x1b" not in shown
    assert "under way" not in shown
    assert "reached, 5 hops" in shown


# ── what ends it ──


@pytest.mark.netns
def test_ctrl_c_prints_what_was_seen(path: Chain) -> None:
    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*COMMAND, "trace", path.target_address(4), UNUSED[4], "--timeout", "10s"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "NETSONDE_DEBUG": "0"},
        )  # fmt: skip

    with path.host.call(start) as process:
        waiting = Running(process)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=3)  # while both wait for who says nothing
        code, out, err = waiting.stop(signal.SIGINT)
    assert (code, err.strip()) == (Exit.INTERRUPTED, "")
    assert out.count("cancelled: interrupted before it had ended") == 2
    for address in path.hops(4)[:2]:
        assert address in out


@pytest.mark.raw
def test_ctrl_c_ends_the_wait_for_a_pipe() -> None:
    reader, writer = os.pipe()
    with open(writer, "wb", buffering=0) as pipe:  # noqa: PTH123
        process = subprocess.Popen(
            [*COMMAND, "trace", "--targets", "-", "--json"],
            stdin=reader, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        os.close(reader)
        with process:
            run = Running(process)
            pipe.write(b"127.0.0.1\n127.0")
            run.line("stdout", "127.0.0.1")
            code, out, err = run.stop(signal.SIGINT)
    assert (code, out, err.strip()) == (Exit.INTERRUPTED, "", "")


@pytest.mark.raw
def test_a_reader_that_left_ends_it_quietly() -> None:
    for form in ("", "--json"):
        script = f"{' '.join(COMMAND)} trace 127.0.0.0/16 {form} | head -1"
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {script}"],
            check=False, capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (Exit.BROKEN_PIPE, ""), form
        assert done.stdout.count("\n") == 1


# ── what cannot be had ──


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("127.0.0.1", "-m", "0"), "1 to 255"),
        (("127.0.0.1", "-m", "300"), "1 to 255"),
        (("127.0.0.1", "-f", "5", "-m", "4"), "1 to max_hops"),
        (("127.0.0.1", "--method", "tcp", "--port", "70000"), "1 to 65535"),
        (("127.0.0.1", "--confidence", "99"), "--multipath"),
        (("127.0.0.1", "-I", "nosuch0"), "nosuch0"),
        ((), "--targets"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(args: tuple[str, ...], words: str) -> None:
    done = netsonde("trace", *args)
    assert (done.returncode, done.stdout) == (Exit.USAGE, ""), done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def trace_bare(node: Namespace, *args: str) -> subprocess.CompletedProcess[str]:
    """Trace without CAP_NET_RAW."""
    bare = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", *COMMAND, "trace")

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*bare, *args], check=False, capture_output=True, text=True, timeout=TIMEOUT_S
        )

    return node.call(start)


@pytest.mark.netns
@pytest.mark.skipif(os.geteuid() != 0, reason="takes CAP_NET_RAW away from root")
@pytest.mark.parametrize(
    ("method", "has_datagrams"), [("icmp", False), ("udp", True), ("tcp", False)]
)
def test_without_privilege_it_says_how_to_grant_it(method: str, has_datagrams: bool) -> None:
    node = Namespace("a host without rights")
    if has_datagrams:
        node.allow_icmp_datagrams()
    done = trace_bare(node, "127.0.0.1", "--method", method)
    node.close()
    assert (done.returncode, done.stdout) == (Exit.CANNOT, "")
    sentence, *hint = done.stderr.splitlines()
    assert sentence.startswith("netsonde: ")
    assert "    AmbientCapabilities=CAP_NET_RAW" in hint


@pytest.mark.netns
@pytest.mark.skipif(os.geteuid() != 0, reason="takes CAP_NET_RAW away from root")
@FAMILIES
def test_a_back_end_that_was_not_the_first_choice_is_named(path: Chain, version: int) -> None:
    path.host.allow_icmp_datagrams()
    done = trace_bare(path.host, path.target_address(version), *SOON)
    assert done.returncode == Exit.OK, done.stderr
    assert [row[1] for row in rows(done.stdout)][-2:] == path.hops(version)[-2:]
    assert done.stderr.endswith("raw: not permitted here; using datagram instead\n")
    assert done.stderr.count("\n") == 1


# ── names ──


async def test_names_of_addresses_come_from_the_servers() -> None:
    records = {"192.0.2.1": "PTR gw.example.", "2001:db8::1": "PTR six.example.",
               "192.0.2.2": "A 192.0.2.2"}  # fmt: skip
    lines = [f"{ip_address(at).reverse_pointer} 60 {data}" for at, data in records.items()]
    async with dns_server(zone(*lines)) as server:
        resolver = ReverseResolver([server.address], server.port)
        assert await resolver.name_of("192.0.2.1") == "gw.example"
        assert await resolver.name_of("2001:db8::1%3") == "six.example"
        assert await resolver.name_of("192.0.2.2") is None  # it has no PTR record
        assert await resolver.name_of("192.0.2.3") is None  # there is no such name


async def test_a_server_that_is_silent_is_not_waited_for_long() -> None:
    async with dns_server(lambda query: []) as server:
        started = os.times().elapsed
        assert await ReverseResolver([server.address], server.port).name_of("192.0.2.1") is None
        assert os.times().elapsed - started < 3


@pytest.mark.raw
def test_resolving_says_nothing_of_what_has_no_name() -> None:
    with running("trace", "127.0.0.1", "--resolve", "--json") as process:
        line = process.line("stdout", "127.0.0.1")
    assert '"outcome":"ok"' in line
