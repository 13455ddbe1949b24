"""`netsonde results --follow` and `netsonde task add` as processes, over a server's end."""

import http.client
import json
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from netsonde.cli.exits import Exit
from support.commands import COMMAND, Running, json_lines, netsonde, running

TASK = {"kind": "tcp", "spec": {"host": "192.0.2.1", "port": 80}}


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on by now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Place:
    """Where a server runs, again and again, and an agent that measures at once."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._agents, self._operators = free_ports(2)
        self._headers = {"Netsonde-Protocol": "1", "Content-Type": "application/json"}
        self._agent_id = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._operators}"

    def server(self) -> Any:
        return running(
            "server", "run", "--state-dir", str(self._state_dir),
            "--listen", f"127.0.0.1:{self._agents}",
            "--operator-listen", f"127.0.0.1:{self._operators}",
        )  # fmt: skip

    def measure(self, count: int) -> list[int]:
        """Measure tasks that wait; return the leases whose results were accepted."""
        if not self._agent_id:
            answer = self._post("register", {"hostname": "h", "agent_key": "k" * 32})
            self._agent_id = answer["agent_id"]
            self._headers["X-Agent-Id"] = str(self._agent_id)
            self._headers["X-Agent-Token"] = answer["auth_token"]
        me = {"agent_id": self._agent_id}
        leases = self._post("claim", me | {"capacities": {"tcp": count}})["leases"]
        items = [
            {"lease_id": lease["lease_id"], "outcome": "ok", "observations": []} for lease in leases
        ]
        answer = self._post("report", me | {"completed": items, "cancelled": []})
        return [one["lease_id"] for one in answer["results"] if one["status"] == "accepted"]

    def _post(self, call: str, body: Any) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._agents, timeout=10)
        connection.request("POST", f"/v1/agents/{call}", json.dumps(body), self._headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        assert response.status == 200, answer
        return answer


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def started(server: Running) -> None:
    server.line("stderr", "operators reach it at ")


def followed(follower: Running, count: int) -> list[int]:
    return [json.loads(follower.line("stdout", "{"))["lease_id"] for _ in range(count)]


def test_follow_goes_on_after_the_server_was_killed(place: Place, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.ndjson"
    tasks.write_text(f"{json.dumps(TASK)}\n" * 9)
    with place.server() as server:
        started(server)
        assert netsonde("task", "add", str(tasks), "--server", place.url).returncode == Exit.OK
        accepted = place.measure(3)
        with running("results", "--follow", "--json", "--server", place.url) as follower:
            seen = followed(follower, 3)
            accepted += place.measure(3)
            seen += followed(follower, 3)
            server.stop(signal.SIGKILL)
            follower.line("stderr", "trying again")
            with place.server() as again:
                started(again)
                accepted += place.measure(3)
                follower.line("stderr", "none was missed")
                seen += followed(follower, 3)
                code, rest, _ = follower.stop(signal.SIGINT)
    assert seen == accepted
    assert (code, rest) == (Exit.INTERRUPTED, "")


def test_follow_ends_with_its_reader(place: Place) -> None:
    with place.server() as server:
        started(server)
        netsonde("task", "add", "--kind", "tcp", "--target", "192.0.2.1:80", "--server", place.url)
        place.measure(1)
        follow = subprocess.Popen(
            [*COMMAND, "results", "--follow", "--json", "--server", place.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with follow:
            assert follow.stdout is not None
            assert follow.stdout.readline().startswith(b"{")
            follow.stdout.close()
            netsonde(
                "task", "add", "--kind", "tcp", "--target", "192.0.2.1:80", "--server", place.url
            )
            place.measure(1)
            assert follow.wait(20) == Exit.BROKEN_PIPE


def test_tasks_come_through_a_pipe(place: Place) -> None:
    lines = [json.dumps(TASK), "", '{"kind":"quic","spec":{}}', json.dumps(TASK)]
    with place.server() as server:
        started(server)
        done = subprocess.run(
            [*COMMAND, "task", "add", "-", "--json", "--key", "k", "--server", place.url],
            input="\n".join(lines),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == Exit.USAGE
        told = json_lines(done.stdout)
        assert [one["line"] for one in told] == [1, 3, 4]
        assert ["task_id" in one for one in told] == [True, False, True]
        assert len(place.measure(10)) == 2


def test_lines_are_added_as_they_come_and_an_interruption_says_how_to_go_on(
    place: Place,
) -> None:
    with place.server() as server:
        started(server)
        adding = subprocess.Popen(
            [*COMMAND, "task", "add", "-", "--json", "--key", "k9", "--server", place.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with adding:
            assert adding.stdin is not None
            assert adding.stdout is not None
            assert adding.stderr is not None
            for number in (1, 2):
                adding.stdin.write(json.dumps(TASK).encode() + b"\n")
                adding.stdin.flush()
                assert json.loads(adding.stdout.readline())["line"] == number
            adding.send_signal(signal.SIGINT)
            assert adding.wait(20) == Exit.INTERRUPTED
            said = adding.stderr.read().decode()
    assert "2 tasks added so far; run it again with --key k9" in said


def test_without_a_server_it_says_how_to_go_on(place: Place, tmp_path: Path) -> None:
    (tmp_path / "tasks").write_text(json.dumps(TASK))
    done = netsonde("task", "add", str(tmp_path / "tasks"), "--key", "k7", "--server", place.url)
    assert done.returncode == Exit.CANNOT
    assert "connection refused" in done.stderr
    assert "run it again with --key k7" in done.stderr
