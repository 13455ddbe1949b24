"""`netsonde results`, `agents` and `queues`, without a server."""

from typing import Any

import pytest
from click.testing import CliRunner

from netsonde import wire
from netsonde.cli import operate
from netsonde.cli.exits import Exit
from netsonde.cli.root import main
from netsonde.control_plane.following import Outage, Resumed
from netsonde.control_plane.operator import Page
from netsonde.errors import TransportError
from support.operator import FakeOperator


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> FakeOperator:
    api = FakeOperator()
    monkeypatch.setattr(operate, "OperatorClient", api.client)
    return api


def result(lease_id: int, outcome: str = "ok") -> dict[str, Any]:
    return {
        "lease_id": lease_id,
        "agent_id": 4,
        "kind": "tcp",
        "spec": {"kind": "tcp", "host": "127.0.0.1", "port": 80},
        "outcome": outcome,
        "started_at": "2026-11-24T10:11:12.123456789Z",
        "duration_ms": 1.5,
        "observations": [],
    }


def test_the_newest_are_shown_oldest_first(operator: FakeOperator) -> None:
    operator.pages = [Page((result(3), result(2)), "c")]
    done = CliRunner().invoke(main, ["results", "--json", "-n", "2", "--kind", "tcp"])
    assert done.exit_code == Exit.OK
    lines = [wire.parse(line.encode()) for line in done.stdout.splitlines()]
    assert lines == [result(2), result(3)]
    query = {name: value for name, value in operator.queries[0].items() if value}
    assert query == {"kind": "tcp", "order": "desc", "limit": 2}


def test_people_see_a_line_each(operator: FakeOperator) -> None:
    failed = result(2, "target_error") | {
        "error": {"reason": "refused", "failure_source": "target", "message": "\x1b[31mno"}
    }
    operator.pages = [Page((failed,), "c")]
    done = CliRunner().invoke(main, ["results"])
    assert done.stdout == (
        "2026-11-24 10:11:12  agent 4    target_error  tcp    127.0.0.1:80  refused: \\x1b[31mno\n"
    )


def test_follow_goes_on_where_the_page_began(operator: FakeOperator) -> None:
    operator.pages = [Page((result(3), result(2)), "at-2")]
    outage = Outage(TransportError("results", "connection refused"))
    again = Resumed(1500, is_anew=False)
    operator.followed = [result(3), outage, again, result(4), KeyboardInterrupt()]
    done = CliRunner().invoke(main, ["results", "--follow", "--json", "-n", "2"])
    assert done.exit_code == Exit.INTERRUPTED
    ids = [wire.parse(line.encode())["lease_id"] for line in done.stdout.splitlines()]
    assert ids == [2, 3, 4]
    assert operator.queries[1]["cursor"] == "at-2"
    assert "results: connection refused; trying again" in done.stderr
    assert "results go on after 1.5 s; none was missed" in done.stderr


def test_follow_says_when_it_had_to_begin_anew(operator: FakeOperator) -> None:
    operator.pages = [Page((), "c")]
    operator.followed = [Resumed(300, is_anew=True), result(1), KeyboardInterrupt()]
    done = CliRunner().invoke(main, ["results", "--follow"])
    assert "from the earliest that are kept: some may be missing" in done.stderr
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    "args", [["--kind", "pong"], ["--limit", "0"], ["--limit", "1001"], ["--check", "x"]]
)
def test_filters_that_make_no_sense_are_refused(operator: FakeOperator, args: list[str]) -> None:
    done = CliRunner().invoke(main, ["results", *args])
    assert done.exit_code == Exit.USAGE
    assert args[0] in done.stderr
    assert operator.queries == []


def test_the_server_comes_from_the_environment(operator: FakeOperator) -> None:
    environment = {"NETSONDE_OPERATOR_URL": "http://127.0.0.1:9"}
    CliRunner().invoke(main, ["agents"], env=environment)
    assert operator.url == "http://127.0.0.1:9"
    CliRunner().invoke(main, ["agents", "--server", "http://127.0.0.1:8"], env=environment)
    assert operator.url == "http://127.0.0.1:8"


def test_agents_as_a_table(operator: FakeOperator) -> None:
    operator.agent_list = [
        {
            "agent_id": 4,
            "hostname": "ams1\x1b",
            "labels": {"site": "ams"},
            "disabled": False,
            "legacy": False,
            "version": "0.1.0",
            "last_seen_at": "2026-11-24T10:11:12Z",
            "in_flight": {"ping": 2, "dns": 0},
        },
        {"agent_id": 5, "hostname": "old", "legacy": True, "disabled": True},
    ]
    done = CliRunner().invoke(main, ["agents"])
    _, first, second = done.stdout.splitlines()
    assert first.split() == [
        "4", "ams1\\x1b", "enabled", "2026-11-24", "10:11:12Z", "ping:2", "0.1.0", "site=ams",
    ]  # fmt: skip
    assert second.split() == ["5", "old", "disabled", "never", "-", "original", "-"]


def test_queues_as_tables(operator: FakeOperator) -> None:
    operator.queue_answer = {
        "queues": [
            {
                "queue": "any",
                "kind": "ping",
                "ready": 1,
                "delayed": 2,
                "leased": 3,
                "oldest_ms": 500,
            }
        ],
        "counters": {"expired": 7},
    }
    done = CliRunner().invoke(main, ["queues"])
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[1] == ["any", "ping", "1", "2", "3", "0.5", "s"]
    assert lines[3] == ["expired", "7"]
    as_json = CliRunner().invoke(main, ["queues", "--json"])
    assert wire.parse(as_json.stdout.encode()) == operator.queue_answer


@pytest.mark.parametrize("command", ["results", "result", "queues", "queue"])
def test_the_word_list_changes_nothing(operator: FakeOperator, command: str) -> None:
    operator.pages += [Page((), None)] * 2
    done = [CliRunner().invoke(main, [command, *words]) for words in ([], ["list"])]
    assert [one.exit_code for one in done] == [Exit.OK, Exit.OK], done[1].stderr
    assert done[0].stdout == done[1].stdout
    assert CliRunner().invoke(main, [command, "lst"]).exit_code == Exit.USAGE
