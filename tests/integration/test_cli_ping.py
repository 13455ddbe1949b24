"""`netsonde ping` as a process of its own, on loopback and in namespaces."""

import csv
import io
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Self

import pytest

from netsonde.cli.exits import Exit
from support.commands import COMMAND, TIMEOUT_S, Running, json_lines, netsonde, running
from support.namespaces import Namespace, connect

pytestmark = pytest.mark.raw

# What the memory test streams. A million takes a minute or two:
# NETSONDE_PING_TARGETS=1000000 scripts/test tests/integration/test_cli_ping.py -k memory
STREAMED = int(os.environ.get("NETSONDE_PING_TARGETS", "100000"))
SOL_RAW, ICMP_FILTER = 255, 1  # linux/socket.h, linux/icmp.h
GROWTH_MAX_KIB = 20 * 1024

FIRST = int(ip_address("127.1.0.0"))


@contextmanager
def fed(*args: str, namespace: Namespace | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run `netsonde ping` with a pipe on standard input."""

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*COMMAND, "ping", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    with namespace.call(start) if namespace else start() as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def feed(process: subprocess.Popen[bytes], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text.encode())
    process.stdin.flush()


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """Return exit code, the rest of standard output, standard error."""
    out, err = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out.decode(), err.decode()


class Replies:
    """The IPv4 echo replies that arrive at a host, seen beside `netsonde ping`."""

    def __init__(self) -> None:
        self._seen = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._seen.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("=I", ~1 & 0xFFFFFFFF))
        self._seen.settimeout(TIMEOUT_S)

    def await_from(self, addresses: set[str], times: int) -> None:
        """Wait until each address has answered so often.

        More than once, since what was just seen here may not have been read there yet.
        """
        missing = dict.fromkeys((ip_address(each).packed for each in addresses), times)
        deadline = time.monotonic() + TIMEOUT_S
        while missing:
            source = self._seen.recv(100)[12:16]
            if source in missing:
                missing[source] -= 1
                if not missing[source]:
                    del missing[source]
            assert time.monotonic() < deadline, f"{len(missing)} did not answer {times} times"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._seen.close()


def loopback(count: int) -> Iterator[str]:
    return (str(ip_address(FIRST + number)) for number in range(count))


# ── many ──


def test_thousands_of_targets() -> None:
    done = netsonde("ping", "127.0.0.0/20", "-c", "2", "-i", "5ms", "-q")
    assert done.returncode == Exit.OK, done.stdout + done.stderr
    assert done.stdout.startswith("targets    4094: 4094 alive, 0 unreachable\n")
    assert "packets    8188 sent, 8188 received, loss 0 %, 0 duplicates" in done.stdout
    assert done.stderr == ""


def test_a_row_and_an_object_for_every_one_of_them() -> None:
    args = ("ping", "127.0.0.0/21", "::1", "-c", "1")
    expected = {f"127.0.{n >> 8}.{n & 255}" for n in range(1, 2047)} | {"::1"}
    table = list(csv.DictReader(io.StringIO(netsonde(*args, "--csv").stdout)))
    assert {row["target"] for row in table} == expected
    assert len(table) == len(expected)
    assert all(row["target"] == row["address"] and row["received"] == "1" for row in table)
    results = json_lines(netsonde(*args, "--json").stdout)
    assert {result["spec"]["host"] for result in results} == expected
    assert {result["outcome"] for result in results} == {"ok"}
    assert set(netsonde(*args, "--alive").stdout.split()) == expected


def test_a_rate_is_kept() -> None:
    done = netsonde("ping", "127.0.0.0/24", "-c", "1", "--rate", "200", "-q")
    assert done.returncode == Exit.OK
    rate = re.search(r"(\d+) packets/s", done.stdout)
    assert rate is not None
    assert 150 <= int(rate[1]) <= 210  # slower where the host is busy


def test_good_and_bad_targets_together(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(
        b"127.0.0.2\nno-such-name.invalid\n\x00\xff\n" + b"x" * 200_000 + b"\n0.0.0.0/0\n"
    )
    done = netsonde("ping", "127.0.0.1", "224.0.0.1", "-f", str(tmp_path / "list"), "-c", "1",
                    "--json")  # fmt: skip
    assert done.returncode == Exit.TARGET_FAILED
    assert done.stderr == ""
    reasons = [result.get("error", {}).get("reason", "ok") for result in json_lines(done.stdout)]
    assert sorted(reasons) == ["denied", "ok", "ok", *["resolve_failed"] * 4]


# ── streams ──


def test_a_slow_pipe_is_followed_as_it_comes() -> None:
    with fed("-c", "1", "--json", "127.0.0.1", "-f", "-") as process:
        run = Running(process)
        assert '"host":"127.0.0.1"' in run.line("stdout", "host")
        feed(process, "127.0.0.2\n127.0.")
        assert '"host":"127.0.0.2"' in run.line("stdout", "host")
        feed(process, "0.3 # the third\n\n127.0.0.8/31\n")
        assert '"host":"127.0.0.3"' in run.line("stdout", "host")
        for host in ("127.0.0.8", "127.0.0.9"):
            assert f'"host":"{host}"' in run.line("stdout", "host")
        feed(process, "127.0.0.4")
        code, out, err = ended(process)
    assert (code, err) == (Exit.OK, "")
    assert [result["spec"]["host"] for result in json_lines(out)] == ["127.0.0.4"]


def test_ctrl_c_ends_the_wait_for_a_pipe() -> None:
    with fed("-c", "1", "-f", "-") as process:
        feed(process, "127.0.0.1\n127.0.0.2\n")
        run = Running(process)
        run.line("stdout", "127.0.0.2")
        code, out, err = run.stop(signal.SIGINT)
    assert code == Exit.INTERRUPTED
    assert "targets    2: 2 alive" in out
    assert err.strip() == ""


def test_ctrl_c_tells_what_was_seen_of_many() -> None:
    targets = {f"127.0.{n >> 8}.{n & 255}" for n in range(1, 2047)}
    with (
        Replies() as replies,
        running("ping", "127.0.0.0/21", "-c", "1000", "-i", "100ms") as ping,
    ):
        replies.await_from(targets, times=3)
        code, out, err = ping.stop(signal.SIGINT)
    assert code == Exit.INTERRUPTED
    assert err.strip() == ""
    lines = [line for line in out.splitlines() if line.startswith("cancelled ")]
    assert len(lines) == 2046
    assert all("cancelled: interrupted before it had ended" in line for line in lines)
    assert "targets    2046: 2046 alive" in out


def test_ctrl_c_leaves_out_those_whose_turn_never_came() -> None:
    with running("ping", "127.0.0.0/8", "-c", "1", "--rate", "50") as ping:
        ping.line("stdout", "127.0.0.5")
        code, out, _ = ping.stop(signal.SIGINT)
    assert code == Exit.INTERRUPTED
    assert out.count("\n") < 500


def test_a_reader_that_left_ends_it_quietly() -> None:
    for form in ("", "--csv", "--json", "--alive"):
        script = f"{' '.join(COMMAND)} ping 127.0.0.0/12 -c 1 {form} | head -1"
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {script}"],
            check=False, capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (Exit.BROKEN_PIPE, ""), form
        assert done.stdout.count("\n") == 1


def test_memory_does_not_grow_with_the_number_of_targets() -> None:
    empty, full = peak_kib(0), peak_kib(STREAMED)
    assert full - empty < GROWTH_MAX_KIB, f"{empty} KiB without targets, {full} KiB with {STREAMED}"


def peak_kib(count: int) -> int:
    """Return the largest resident set of a run that pings so many targets of a pipe."""
    with fed("-c", "1", "--csv", "-f", "-") as process:

        def write() -> None:
            assert process.stdin is not None
            for target in loopback(count):
                process.stdin.write(f"{target}\n".encode())
            process.stdin.flush()

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"target,")
        for _ in range(count):
            assert b",ok," in process.stdout.readline()
        writer.join()
        status = Path(f"/proc/{process.pid}/status").read_text()  # while it waits for more
        assert ended(process) == (Exit.OK, "", "")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1])


# ── on a terminal ──


def test_progress_and_summary_stay_on_the_terminal() -> None:
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "ping", "127.0.0.0/28", "-c", "10", "--csv"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=follower,
        env={**os.environ, "TERM": "xterm"},
    ) as process:  # fmt: skip
        os.close(follower)
        out, _ = process.communicate(timeout=TIMEOUT_S)
    shown = b""
    try:
        while data := os.read(leader, 65_536):
            shown += data
    except OSError:  # EIO: the other side has closed
        pass
    os.close(leader)
    assert len(out.splitlines()) == 15
    redraws = re.findall(
        rb"\r\x1b\[K0 of 14 done, [1-9]\d* packets/s, 0 alive, loss -, [01] s", shown
    )
    assert 1 <= len(redraws) <= 20
    assert b"targets    14: 14 alive, 0 unreachable" in shown


# ── what cannot be had ──


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("127.0.0.1", "--rate", "0"), "0.000001 to"),
        (("127.0.0.1", "--count", "0"), "1 to 100000"),
        (("::1", "--df", "--size", "65507"), "65488"),
        (("127.0.0.1", "-I", "nosuch0"), "nosuch0"),
        (("127.0.0.1", "-S", "198.51.100.77"), "198.51.100.77"),
        (("127.0.0.0/7",), "/8 or longer"),
        (("127.0.0.1", "-f", "/nonexistent"), "/nonexistent"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(args: tuple[str, ...], words: str) -> None:
    done = netsonde("ping", *args)
    assert done.returncode == Exit.USAGE, done.stderr
    assert done.stdout == ""
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def pair() -> Iterator[tuple[Namespace, Namespace]]:
    """Two hosts on a link: 10.9.0.1 and 10.9.0.2, which also answers for 10.10.0.0/16."""
    here, there = Namespace("here"), Namespace("there")
    connect(here, there, "out", "in")
    here.address("out", "10.9.0.1", 24)
    there.address("in", "10.9.0.2", 24)
    here.route_to("10.10.0.0/16", "10.9.0.2")
    there.answer_for("10.10.0.0/16")
    yield here, there
    here.close()
    there.close()


@pytest.mark.netns
def test_by_source_interface_and_size(pair: tuple[Namespace, Namespace]) -> None:
    here, _ = pair
    chosen = ("-S", "10.9.0.1", "-I", "out", "-c", "1")
    done = here.call(netsonde, "ping", "10.10.0.0/22", *chosen, "-q")
    assert done.returncode == Exit.OK, done.stdout + done.stderr
    assert "1022 alive" in done.stdout
    done = here.call(netsonde, "ping", "10.9.0.2", "--df", "-s", "1473", *chosen)
    assert (done.returncode, done.stdout) == (Exit.USAGE, "")
    assert "1472" in done.stderr
    # Of a later target it is a result.
    done = here.call(
        netsonde, "ping", "127.0.0.1", "10.9.0.2", "--df", "-s", "1473", "-c", "1", "--csv"
    )
    rows = {row["target"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    assert (rows["127.0.0.1"]["outcome"], rows["10.9.0.2"]["outcome"]) == ("ok", "rejected")


@pytest.mark.netns
def test_an_interface_that_goes_away_ends_nothing_early(pair: tuple[Namespace, Namespace]) -> None:
    here, _ = pair
    with (
        here.call(Replies) as replies,
        fed("-f", "-", "-I", "out", "-c", "30", "-i", "50ms", "-W", "500ms",
            namespace=here) as process,
    ):  # fmt: skip
        feed(process, "10.9.0.2\n")
        assert Running(process).line("stdout", "10.9.0.2").startswith("ok ")
        feed(process, "10.10.0.1\n")
        replies.await_from({"10.10.0.1"}, times=3)
        here.route.link("del", index=here.index("out"))
        feed(process, "10.10.0.2\n")
        code, out, err = ended(process)
    assert "Traceback" not in err
    assert code == Exit.CANNOT, out + err
    assert "targets    3: 2 alive, 0 unreachable, 1 not measured" in out
    assert "tx_error: this host has no interface 'out'" in out
    tx_errors = re.search(r"(\d+) not sent \(tx errors\)", out)
    assert tx_errors is not None
    assert int(tx_errors[1]) > 0


@pytest.mark.netns
@pytest.mark.skipif(os.geteuid() != 0, reason="takes CAP_NET_RAW away from root")
def test_a_later_back_end_is_named_and_none_is_made_up(pair: tuple[Namespace, Namespace]) -> None:
    here, _ = pair
    bare = (
        "setpriv",
        "--bounding-set=-net_raw",
        "--inh-caps=-net_raw",
        *COMMAND,
        "ping",
        "-c",
        "1",
    )

    def ping(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*bare, "127.0.0.1", *args],
            check=False, capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip

    assert here.call(ping, "--json").returncode == Exit.CANNOT  # a new namespace lets no group
    groups = Path("/proc/sys/net/ipv4/ping_group_range")
    here.call(groups.write_text, "0 0")
    done = here.call(ping)
    assert done.returncode == Exit.OK, done.stderr
    assert done.stderr == "netsonde: header, raw: not permitted here; using datagram instead\n"
    for refused in (("--backend", "raw"), ("--backend", "packet,header")):
        done = here.call(ping, *refused)
        assert (done.returncode, done.stdout) == (Exit.CANNOT, "")
        assert "CAP_NET_RAW" in done.stderr
