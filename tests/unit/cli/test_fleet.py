"""`netsonde agents`, `queues` and `dead-letters`, without a server."""

from typing import Any

import pytest
from click.testing import CliRunner, Result

from netsonde import wire
from netsonde.cli import operate, options
from netsonde.cli.exits import Exit
from netsonde.cli.root import main
from netsonde.control_plane.operator import Page
from support.operator import FakeOperator

AGENT = {
    "agent_id": 4,
    "hostname": "ams1",
    "labels": {"site": "ams"},
    "disabled": False,
    "revoked": False,
    "drained": False,
    "state": "active",
    "active_leases": 2,
    "health": {"fds": 7, "spool": {"rows": 1}},
    "commands": [],
    "in_flight": {"ping": 2},
}
LETTER = {
    "task_id": 9,
    "check_id": None,
    "kind": "tcp",
    "spec": {"kind": "tcp", "host": "h\x1b", "port": 80},
    "reason": "the lease expired without a report",
    "attempt": 3,
    "max_attempts": 3,
    "agent_id": 4,
    "died_at": "2026-11-24T10:11:12.123456789Z",
}


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> FakeOperator:
    api = FakeOperator()
    api.agent_list = [AGENT, AGENT | {"agent_id": 5, "hostname": "twin"}]
    api.agent_list.append(AGENT | {"agent_id": 6, "hostname": "twin"})
    monkeypatch.setattr(operate, "OperatorClient", api.client)
    return api


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let somebody be there who can be asked."""
    monkeypatch.setattr(options, "is_asked", lambda: True)


def invoke(*words: str, said: str = "") -> Result:
    return CliRunner().invoke(main, words, input=said)


def lines(done: Result) -> list[dict[str, Any]]:
    return [wire.parse(line.encode()) for line in done.stdout.splitlines()]


# ── agents ──


def test_list_is_what_agents_alone_shows(operator: FakeOperator) -> None:
    assert lines(invoke("agents", "list", "--json")) == operator.agent_list
    assert invoke("agents", "list").stdout == invoke("agents").stdout


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "enabled"),
        ({"drained": True}, "draining"),
        ({"drained": True, "state": "draining"}, "draining"),
        ({"drained": True, "state": "draining", "active_leases": 0}, "drained"),
        ({"drained": True, "legacy": True, "state": None}, "drained"),
        ({"state": "draining"}, "draining"),
        ({"disabled": True, "drained": True}, "disabled"),
        ({"disabled": True, "revoked": True}, "revoked"),
    ],
)
def test_the_state_is_a_word(operator: FakeOperator, fields: dict[str, Any], word: str) -> None:
    operator.agent_list = [AGENT | fields]
    assert invoke("agents").stdout.splitlines()[1].split()[2] == word


def test_show_writes_every_field(operator: FakeOperator) -> None:
    done = invoke("agents", "show", "ams1")
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[1:])
    assert rows["stands"] == "enabled"
    assert (rows["health.fds"], rows["health.spool.rows"], rows["commands"]) == ("7", "1", "-")
    assert lines(invoke("agents", "show", "4", "--json")) == [AGENT]


@pytest.mark.parametrize("verb", ["drain", "resume", "disable", "enable"])
def test_agents_are_ordered_by_id_or_hostname(operator: FakeOperator, verb: str) -> None:
    done = invoke("agents", verb, "ams1", "5", "4")
    assert done.exit_code == Exit.OK
    assert operator.orders == [(4, verb), (5, verb)], "each once"
    assert "agent 4 (ams1)" in done.stdout
    assert lines(invoke("agents", verb, "4", "--json")) == [AGENT]


@pytest.mark.parametrize(("name", "said"), [("nobody", "no agent is"), ("twin", "its id, 5, 6")])
def test_a_name_is_one_agents(operator: FakeOperator, name: str, said: str) -> None:
    done = invoke("agents", "drain", "4", name)
    assert done.exit_code == Exit.USAGE
    assert said in done.stderr
    assert operator.orders == [], "nothing is done before all are found"


def test_revoking_is_asked_about(operator: FakeOperator, terminal: None) -> None:
    assert invoke("agents", "revoke", "ams1", said="n\n").exit_code == Exit.INTERRUPTED
    assert operator.orders == []
    done = invoke("agents", "revoke", "ams1", said="y\n")
    assert (done.exit_code, operator.orders) == (Exit.OK, [(4, "revoke")])
    assert "3 leases went back" in done.stdout


def test_without_a_terminal_it_takes_a_yes(operator: FakeOperator) -> None:
    done = invoke("agents", "revoke", "ams1")
    assert done.exit_code == Exit.USAGE
    assert "--yes" in done.stderr
    assert invoke("agents", "revoke", "ams1", "--yes").exit_code == Exit.OK
    assert operator.orders == [(4, "revoke")]


def test_options_before_a_subcommand_are_refused(operator: FakeOperator) -> None:
    """They would be ignored where the environment says otherwise."""
    done = invoke("agents", "--server", "http://127.0.0.1:9", "drain", "4")
    assert done.exit_code == Exit.USAGE
    assert "--server" in done.stderr
    assert operator.orders == []


# ── queues ──


def test_totals_end_the_table_of_several_queues(operator: FakeOperator) -> None:
    counts = {"kind": "ping", "ready": 1, "delayed": 0, "leased": 2, "oldest_ms": 500}
    totals = [counts | {"queues": 2, "ready": 2}, counts | {"queues": 1, "kind": "dns"}]
    queues = [counts | {"queue": "any"}, counts | {"queue": "agent:4"}]
    answer = {"queues": queues, "totals": totals, "dead_letters": 3, "counters": {"dead": 5}}
    operator.queue_answer = answer
    rows = [line.split() for line in invoke("queues").stdout.splitlines()]
    assert len([row for row in rows if row[0] == "all"]) == 1, "one queue needs no total"
    assert rows[3] == ["all", "ping", "2", "0", "2", "0.5", "s"]
    assert rows[-1] == ["dead", "letters", "now", "3"]
    assert lines(invoke("queue", "--json")) == [answer]


# ── dead letters ──


def test_dead_letters_as_a_table(operator: FakeOperator) -> None:
    operator.pages = [Page((LETTER,), None), Page((LETTER,), None)]
    done = invoke("dead-letters", "list", "--kind", "tcp", "--from", "2026-11-24T00:00:00Z")
    assert done.stdout.splitlines()[1].split() == [
        "9", "-", "tcp", "h\\x1b:80", "3", "of", "3", "4", "2026-11-24", "10:11:12",
        "the", "lease", "expired", "without", "a", "report",
    ]  # fmt: skip
    given = {name: value for name, value in operator.queries[0].items() if value is not None}
    assert given == {"kind": "tcp", "from": "2026-11-24T00:00:00Z", "limit": 100}
    assert lines(invoke("dead-letter", "list", "--json")) == [LETTER]


@pytest.mark.parametrize(("verb", "done_"), [("requeue", "requeued"), ("delete", "deleted")])
def test_letters_are_dealt_with_by_id(operator: FakeOperator, verb: str, done_: str) -> None:
    done = invoke("dead-letters", verb, "9", "8", "9")
    assert done.exit_code == Exit.OK
    assert done.stdout == f"task 9 {done_}\ntask 8 {done_}\n"
    assert operator.dealt == [(verb, 9), (verb, 8)]
    assert lines(invoke("dead-letters", verb, "7", "--json")) == [{"task_id": 7, done_: 1}]


@pytest.mark.parametrize(("verb", "done_"), [("requeue", "requeued"), ("delete", "deleted")])
def test_many_letters_take_a_yes(operator: FakeOperator, verb: str, done_: str) -> None:
    refused = invoke("dead-letters", verb, "--kind", "tcp", "--check", "5")
    assert refused.exit_code == Exit.USAGE
    assert f"{verb} up to 1000 dead letters of kind tcp, check_id 5: say so" in refused.stderr
    assert operator.dealt == []
    done = invoke("dead-letters", verb, "--kind", "tcp", "--to", "x", "--yes", "--limit", "2")
    assert done.stdout == f"2 {done_}; there are more, run it again\n"
    everything = invoke("dead-letters", verb, "--all", "--yes", "--json")
    assert lines(everything) == [{done_: 2, "more": True}]
    assert operator.dealt == [
        (verb, {"kind": "tcp", "died_to": "x", "limit": 2}),
        (verb, {"all": True, "limit": 1000}),
    ]


@pytest.mark.parametrize("words", [[], ["9", "--all"], ["--all", "--kind", "tcp"], ["9", "--to=x"]])
def test_one_way_of_choosing_is_needed(operator: FakeOperator, words: list[str]) -> None:
    done = invoke("dead-letters", "delete", *words, "--yes")
    assert done.exit_code == Exit.USAGE
    assert "say which dead letters" in done.stderr
    assert operator.dealt == []
