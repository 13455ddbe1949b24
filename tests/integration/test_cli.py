"""The commands as processes of their own, on loopback."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netsonde.cli.exits import Exit
from netsonde.cli.starter import unmeasurable
from netsonde.model import TaskKind
from support.commands import COMMAND, Running, json_lines, netsonde, running

HELP_MAX_S = 0.3


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of loopback that is taken, so that nobody else gets it, and refuses connections."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture
def open_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def operator_url() -> Iterator[str]:
    """A control plane in memory, without agents."""
    with server("--memory") as (_, url):
        yield url


ANY_LISTEN = ("--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0")


class server:  # noqa: N801 (reads as the command it runs)
    """`netsonde server run` for the duration of a block."""

    def __init__(self, *args: str) -> None:
        self._running = running("server", "run", *ANY_LISTEN, *args)

    def __enter__(self) -> tuple[Running, str]:
        process = self._running.__enter__()
        line = process.line("stderr", "operators reach it at ")
        return process, line.partition("operators reach it at ")[2].split()[0]

    def __exit__(self, *error: object) -> None:
        self._running.__exit__(None, None, None)


# ── the frame ──


def test_help_is_fast() -> None:
    took = []
    for _ in range(5):
        started = time.monotonic()
        assert netsonde("--help").returncode == Exit.OK
        took.append(time.monotonic() - started)
    assert min(took) < HELP_MAX_S


def test_the_module_and_the_version() -> None:
    done = netsonde("version")
    assert done.stdout.startswith("netsonde ")
    assert netsonde("--version").stdout.split()[-1] == done.stdout.split()[1]


# ── one-shots ──


def test_a_closed_port_is_a_result(closed_port: int) -> None:
    done = netsonde("tcp", f"127.0.0.1:{closed_port}", "--json")
    assert (done.returncode, done.stderr) == (Exit.TARGET_FAILED, "")
    (result,) = json_lines(done.stdout)
    assert result["outcome"] == "target_error"
    assert result["error"]["reason"] == "refused"


def test_several_targets_give_a_line_each(closed_port: int, open_port: int) -> None:
    done = netsonde(
        "tcp", f"127.0.0.1:{open_port}", f"127.0.0.1:{closed_port}", "255.255.255.255:80",
        "no-such-name.invalid:80", "--ndjson",
    )  # fmt: skip
    assert done.returncode == Exit.TARGET_FAILED
    seen = {result["spec"]["host"]: result["outcome"] for result in json_lines(done.stdout)}
    assert len(done.stdout.splitlines()) == 4
    assert seen["255.255.255.255"] == "rejected"
    assert seen["no-such-name.invalid"] == "target_error"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("ping", "127.0.0.1", "--count", "0"), "1 to 100000"),
        (("tcp", "127.0.0.1:70000"), "1 to 65535"),
        (("http", "nonsense"), "url"),
        (("ping", "not an address"), "host"),
        (("dns", "example.net", "--type", "NONSENSE"), "NONSENSE"),
    ],
)
def test_bad_input_is_one_sentence(args: tuple[str, ...], words: str) -> None:
    done = netsonde(*args)
    assert done.returncode == Exit.USAGE
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.raw
@pytest.mark.parametrize("kind", ["ping", "trace"])
def test_loopback_answers(kind: str) -> None:
    args = ["--count", "2", "--interval", "10ms"] if kind == "ping" else []
    done = netsonde(kind, "127.0.0.1", "::1", *args, "--json")
    assert done.returncode == Exit.OK, done.stdout + done.stderr
    assert [result["outcome"] for result in json_lines(done.stdout)] == ["ok", "ok"]


@pytest.mark.raw
def test_ctrl_c_prints_what_was_measured() -> None:
    with running(
        "ping", "127.0.0.1", "255.255.255.255", "-c", "1000", "-i", "50ms", "--json"
    ) as ping:  # fmt: skip
        ping.line("stdout", "rejected")  # the broadcast address is refused at once
        time.sleep(0.3)  # so that some of the thousand are answered
        code, out, err = ping.stop(signal.SIGINT)
    assert code == Exit.INTERRUPTED, err
    (result,) = json_lines(out)
    assert result["outcome"] == "cancelled"
    assert "Traceback" not in err
    summary = result["observations"][-1]
    assert summary["name"] == "ping_summary"
    assert 0 < summary["value"]["received"] < 1000


def test_a_reader_that_left_ends_it_quietly(open_port: int) -> None:
    script = (
        f"{' '.join(COMMAND)} tcp {' '.join([f'127.0.0.1:{open_port}'] * 200)} --json | head -1"
    )
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert len(json_lines(done.stdout)) == 1


def on_terminal(*args: str, **env: str) -> str:
    """Run a command whose standard output is a terminal."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", **env}
    environment = {name: value for name, value in environment.items() if value}
    with subprocess.Popen(
        [*COMMAND, *args], stdin=subprocess.DEVNULL, stdout=follower, env=environment
    ) as process:
        os.close(follower)
        seen = b""
        while True:
            try:
                data = os.read(leader, 4096)
            except OSError:  # EIO: the other side has closed
                break
            seen += data
        process.wait(timeout=60)
    os.close(leader)
    return seen.decode()


def test_colour_on_a_terminal_only(open_port: int) -> None:
    target = f"127.0.0.1:{open_port}"
    assert "\x1b[32mok" in on_terminal("tcp", target, NO_COLOR="")
    assert "\x1b[" not in on_terminal("tcp", target, NO_COLOR="1")
    assert "\x1b[" not in netsonde("tcp", target).stdout


# ── the control plane's commands ──


def test_checks_come_and_go(operator_url: str) -> None:
    at = ("--server", operator_url)
    added = netsonde("check", "add", "tcp 127.0.0.1:1", "--every", "60s", "--json", *at)
    (check,) = json_lines(added.stdout)
    assert check["every_ms"] == 60_000
    assert check["check_id"] in [
        each["check_id"] for each in json_lines(netsonde("check", "list", "--json", *at).stdout)
    ]
    assert netsonde("check", "remove", str(check["check_id"]), *at).returncode == Exit.OK
    gone = netsonde("check", "remove", str(check["check_id"]), *at)
    assert gone.returncode == Exit.USAGE
    assert f"no check {check['check_id']}" in gone.stderr


@pytest.mark.parametrize(
    "who", [("--all",), ("--label", "site=ams"), ("--label", "site=ams", "--all"), ("--agent", "7")]
)
def test_every_way_to_say_who_measures_is_understood(
    operator_url: str, who: tuple[str, ...]
) -> None:
    done = netsonde("check", "add", "ping 127.0.0.1", *who, "--server", operator_url)
    assert done.returncode == Exit.OK, done.stderr


def test_listings_of_a_fresh_control_plane(operator_url: str) -> None:
    for command in ("agents", "results"):
        done = netsonde(command, "--json", "--server", operator_url)
        assert (done.returncode, done.stdout, done.stderr) == (Exit.OK, "", "")
    (queues,) = json_lines(netsonde("queues", "--json", "--server", operator_url).stdout)
    assert {"queues", "counters"} <= set(queues)


def test_a_control_plane_that_is_not_there(closed_port: int) -> None:
    done = netsonde("agents", "--server", f"http://127.0.0.1:{closed_port}")
    assert done.returncode == Exit.CANNOT
    assert "refused" in done.stderr
    assert "--server" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_control_plane_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with server("--state-dir", str(tmp_path)) as (process, _):
        code, out, err = process.stop(number)
    assert (code, out) == (Exit.OK, "")
    assert "Traceback" not in err


def test_a_database_in_use_is_one_sentence(tmp_path: Path) -> None:
    with server("--state-dir", str(tmp_path)):
        done = netsonde(
            "server", "run", "--state-dir", str(tmp_path),
            "--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0",
        )  # fmt: skip
    assert done.returncode == Exit.CANNOT
    assert "in use" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_port_in_use_is_one_sentence(closed_port: int) -> None:
    listen = f"127.0.0.1:{closed_port}"
    done = netsonde("server", "run", "--memory", "--listen", listen)
    assert done.returncode == Exit.CANNOT
    assert listen in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", [("server", "run"), ("up",), ("up", "--once")])
def test_a_state_directory_that_is_none_is_one_sentence(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "file").touch()
    done = netsonde(*command, "--state-dir", str(tmp_path / "file" / "state"))
    assert done.returncode == Exit.CANNOT
    assert "--state-dir" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# ── up, and a fleet of one ──


@pytest.fixture
def operator_listen() -> str:
    """An address that is free now; `up` tells operators where it listens, but a test asks first."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        return f"127.0.0.1:{holder.getsockname()[1]}"


PERMITTED = set(TaskKind) - unmeasurable()


def test_up_once_measures_every_kind_this_host_permits() -> None:
    done = netsonde("up", "--once", "--json")
    assert done.returncode == Exit.OK, done.stderr
    results = json_lines(done.stdout)
    assert {result["kind"] for result in results} == PERMITTED
    assert {result["outcome"] for result in results} == {"ok"}
    assert len(results) == len(PERMITTED)


def test_up_once_fails_when_a_check_does(closed_port: int) -> None:
    target = f"127.0.0.1:{closed_port}"
    done = netsonde("up", "--once", "--no-starter-checks", "--check", f"tcp {target}")
    assert done.returncode == Exit.TARGET_FAILED
    assert "refused" in done.stdout
    assert target in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_up_names_what_it_has_no_privilege_for() -> None:
    if os.geteuid() != 0:
        pytest.skip("takes CAP_NET_RAW away from root")
    bare = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")
    done = subprocess.run(
        [*bare, *COMMAND, "up", "--once", "--json"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == Exit.OK, done.stderr
    assert {result["kind"] for result in json_lines(done.stdout)} >= {"dns", "http", "tcp"}
    assert "trace left out" in done.stderr or "ping and trace left out" in done.stderr
    assert "AmbientCapabilities=CAP_NET_RAW" in done.stderr


def test_up_repeats_until_told_to_stop_and_keeps_its_state(
    tmp_path: Path, operator_listen: str
) -> None:
    args = (
        "up", "--state-dir", str(tmp_path), "--listen", "127.0.0.1:0",
        "--operator-listen", operator_listen, "--every", "200ms", "--json",
    )  # fmt: skip
    at = ("--server", f"http://{operator_listen}")
    with running(*args) as first:
        for _ in range(3):
            first.line("stdout", '"kind":"tcp"')
        second = netsonde(*args)
        assert second.returncode == Exit.CANNOT
        assert "in use by another" in second.stderr
        assert len(second.stderr.splitlines()) == 1
        (agent,) = json_lines(netsonde("agents", "--json", *at).stdout)
        checks = json_lines(netsonde("check", "list", "--json", *at).stdout)
        assert len(checks) == len(PERMITTED)
        code, out, err = first.stop(signal.SIGTERM)
    assert code == Exit.OK, err
    assert "Traceback" not in err
    json_lines(out)
    with running(*args, "--no-starter-checks", "--check", "tcp 127.0.0.1:1") as again:
        result = json.loads(again.line("stdout", '"port":1}'))
        assert result["agent_id"] == agent["agent_id"]
        assert len(json_lines(netsonde("check", "list", "--json", *at).stdout)) == 1
        assert again.stop(signal.SIGINT)[0] == Exit.OK


def test_up_is_not_held_up_by_a_reader_that_does_not_read(
    tmp_path: Path, operator_listen: str
) -> None:
    at = ("--server", f"http://{operator_listen}")
    with running(
        "up", "--state-dir", str(tmp_path), "--listen", "127.0.0.1:0",
        "--operator-listen", operator_listen, "--every", "100ms", "--json",
    ) as up:  # fmt: skip
        up.line("stdout", "tcp")
        size = fcntl.fcntl(up.process.stdout or 0, fcntl.F_GETPIPE_SZ)
        seen, deadline = 0, time.monotonic() + 60
        while seen <= 2 * size and time.monotonic() < deadline:
            done = netsonde("results", "--json", "-n", "1000", *at)
            assert done.returncode == Exit.OK, done.stderr
            seen = len(done.stdout)
        assert seen > 2 * size
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(timeout=60) == Exit.OK


def test_up_ends_quietly_when_its_reader_leaves(tmp_path: Path, operator_listen: str) -> None:
    script = (
        f"{' '.join(COMMAND)} up --state-dir {tmp_path} --listen 127.0.0.1:0"
        f" --operator-listen {operator_listen} --every 100ms --json | head -1"
    )
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == Exit.BROKEN_PIPE, done.stderr
    assert len(json_lines(done.stdout)) == 1
    assert "Traceback" not in done.stderr


def test_up_with_a_port_in_use_is_one_sentence(tmp_path: Path, closed_port: int) -> None:
    listen = f"127.0.0.1:{closed_port}"
    done = netsonde("up", "--state-dir", str(tmp_path), "--operator-listen", listen)
    assert done.returncode == Exit.CANNOT
    assert listen in done.stderr
    assert "operator_listen" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_up_shows_a_live_table_on_a_terminal(tmp_path: Path, operator_listen: str) -> None:
    leader, follower = pty.openpty()
    args = ("--state-dir", str(tmp_path), "--listen", "127.0.0.1:0")
    with subprocess.Popen(
        [*COMMAND, "up", *args, "--operator-listen", operator_listen, "--every", "200ms"],
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "160"},
    ) as process:
        os.close(follower)
        seen, deadline = b"", time.monotonic() + 60
        while b"connected to" not in seen and time.monotonic() < deadline:
            seen += os.read(leader, 4096)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # EIO: the other side has closed
            while data := os.read(leader, 4096):
                seen += data
        assert process.wait(timeout=60) == Exit.OK
    os.close(leader)
    for heading in (b"KIND", b"TARGET", b"COUNT", b"FAILED"):
        assert heading in seen


def test_an_agent_works_for_a_control_plane_and_follow_shows_it(
    tmp_path: Path, closed_port: int
) -> None:
    with running("server", "run", "--memory", *ANY_LISTEN) as plane:
        agent_url = plane.line("stderr", "agents reach").split()[-1]
        url = plane.line("stderr", "operators reach it at ").split("at ")[1].split()[0]
        at = ("--server", url)
        target = f"tcp 127.0.0.1:{closed_port}"
        netsonde("check", "add", target, "--label", "site=here", "--every", "200ms", *at)
        with (
            running(
                "agent", "run", "--control-plane", agent_url, "--state-dir", str(tmp_path),
                "--label", "site=here", "--targets", "127.0.0.0/8", "--capacity", "tcp=3",
                "--log-json",
            ) as agent,
            running("results", "--follow", "--json", *at) as follow,
        ):  # fmt: skip
            registered = json.loads(agent.line("stderr", "registered"))
            assert registered["action"] == "registered"
            for _ in range(3):
                result = json.loads(follow.line("stdout", "tcp"))
                assert result["error"]["reason"] == "refused"
            listed = netsonde(
                "results", "--kind", "tcp", "--outcome", "target_error", "-n", "2", *at
            )
            assert len(listed.stdout.splitlines()) == 2
            plane.stop(signal.SIGKILL)
            assert "trying again" in follow.line("stderr", "trying again")
            code, _, err = follow.stop(signal.SIGINT)
            assert (code, "Traceback" in err) == (Exit.INTERRUPTED, False)
            code, out, err = agent.stop(signal.SIGTERM)
    assert (code, out) == (Exit.OK, "")
    assert "Traceback" not in err


def test_an_agent_without_a_control_plane_is_told_which_setting(tmp_path: Path) -> None:
    done = netsonde("agent", "run", "--state-dir", str(tmp_path))
    assert done.returncode == Exit.USAGE
    assert "control_plane is not set" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_agents_file_with_a_mistake_is_told_where(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('control_plane = "http://127.0.0.1:1"\ntargetz = ["public"]\n')
    done = netsonde("agent", "run", "--config", str(file), "--state-dir", str(tmp_path))
    assert done.returncode == Exit.USAGE
    assert "line 2" in done.stderr
    assert len(done.stderr.splitlines()) == 1
