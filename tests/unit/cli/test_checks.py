"""How a check is written on the command line."""

import re
from typing import Any

import pytest
from click.testing import CliRunner, Result

from netsonde.cli import operate
from netsonde.cli.check_words import parse_check
from netsonde.cli.exits import Exit
from netsonde.cli.root import main
from netsonde.errors import ConfigError, RequestError
from support.operator import FakeOperator


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> FakeOperator:
    api = FakeOperator()
    monkeypatch.setattr(operate, "OperatorClient", api.client)
    return api


@pytest.mark.parametrize(
    ("words", "kind", "targets"),
    [
        (["ping example.net"], "ping", ["example.net"]),
        (["ping", "example.net", "::1"], "ping", ["example.net", "::1"]),
        (["tcp [::1]:443 example.net:80"], "tcp", ["[::1]:443", "example.net:80"]),
        (["http", "http://127.0.0.1:8080/x?y=1"], "http", ["http://127.0.0.1:8080/x?y=1"]),
    ],
)
def test_a_check_is_a_kind_and_targets(words: list[str], kind: str, targets: list[str]) -> None:
    assert parse_check(words) == {"kind": kind, "targets": targets}


def test_options_of_the_kind_are_typed() -> None:
    check = parse_check(["http", "http://a/"], ["timeout_ms=500", "verify=false", "method=HEAD"])
    assert check["spec"] == {"timeout_ms": 500, "verify": False, "method": "HEAD"}


@pytest.mark.parametrize(
    ("words", "options", "error", "sentence"),
    [
        (["ping"], [], ConfigError, "a kind and its targets"),
        ([""], [], ConfigError, "a kind and its targets"),
        (["pong example.net"], [], ConfigError, "kind must be one of dns, http, tcp, ping, trace"),
        (["tcp", "example.net"], [], RequestError, "port"),
        (["tcp", "example.net:70000"], [], RequestError, "65535"),
        (["ping", "a b"], [], RequestError, "host"),
        (["http", "ftp://a/"], [], RequestError, "url"),
        (["ping", "a"], ["count=0"], RequestError, "count .*1 to 100000"),
        (["ping", "a"], ["colour=red"], RequestError, "no option colour"),
        (["ping", "a"], ["count"], ConfigError, "--option must be NAME=VALUE"),
    ],
)
def test_what_makes_no_sense_is_refused_before_it_is_sent(
    words: list[str], options: list[str], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        parse_check(words, options)


@pytest.mark.parametrize(
    ("args", "select"),
    [
        ([], None),
        (["--agent", "3", "--agent", "ams1"], {"agents": [3, "ams1"]}),
        (["--label", "site=ams"], {"labels": {"site": "ams"}}),
        (["--label", "site=ams", "--all"], {"labels": {"site": "ams"}, "all": True}),
        (["--all"], {"labels": {}, "all": True}),
        (["--count", "3"], {"labels": {}, "count": 3}),
        (["--count", "3", "--label", "a=b"], {"labels": {"a": "b"}, "count": 3}),
    ],
)
def test_add_says_who_measures(
    operator: FakeOperator, args: list[str], select: dict[str, Any] | None
) -> None:
    command = ["check", "add", "ping", "example.net", "--every", "60s", *args]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == Exit.OK, done.stderr
    assert done.stdout == "check 1 added: ping example.net every 60 s\n"
    assert operator.created[0].get("select") == select
    assert operator.created[0]["every_ms"] == 60_000


def test_agents_and_labels_exclude_each_other(operator: FakeOperator) -> None:
    done = CliRunner().invoke(main, ["check", "add", "ping a", "--agent", "1", "--all"])
    assert done.exit_code == Exit.USAGE
    assert "--agent" in done.stderr
    assert operator.created == []


def test_list_is_a_table_that_cuts_nothing_off(operator: FakeOperator) -> None:
    name = "x" * 100
    CliRunner().invoke(main, ["check", "add", "ping a", "--name", name])
    done = CliRunner().invoke(main, ["check", "list"])
    heading, row = done.stdout.splitlines()
    assert heading.startswith("ID  NAME")
    assert name in row
    assert "once" in row


def test_list_as_json_is_one_object_per_line(operator: FakeOperator) -> None:
    CliRunner().invoke(main, ["check", "add", "ping a"])
    CliRunner().invoke(main, ["check", "add", "ping b"])
    done = CliRunner().invoke(main, ["check", "list", "--json"])
    assert done.stdout == (
        '{"check_id":1,"kind":"ping","targets":["a"]}\n'
        '{"check_id":2,"kind":"ping","targets":["b"]}\n'
    )


def test_remove_takes_several(operator: FakeOperator) -> None:
    done = CliRunner().invoke(main, ["check", "remove", "3", "4"])
    assert done.exit_code == Exit.OK
    assert operator.removed == [3, 4]
    assert CliRunner().invoke(main, ["check", "remove", "x"]).exit_code == Exit.USAGE


def called(*words: str) -> Result:
    return CliRunner().invoke(main, ["check", *words])


def test_add_says_everything_that_a_check_can(operator: FakeOperator) -> None:
    words = (
        "add ping a b --every 1m --jitter 5s --stale-after 30s --priority -5 --attempts 2"
        " -o count=3 --expect loss_pct_max=1 --expect avg_ms_max=20 --paused"
    )
    done = called(*words.split())
    assert done.exit_code == Exit.OK, done.stderr
    assert done.stdout == "check 1 added: ping a b every 60 s, paused\n"
    assert operator.created == [
        {
            "kind": "ping",
            "targets": ["a", "b"],
            "spec": {"count": 3, "expect": {"loss_pct_max": 1.0, "avg_ms_max": 20.0}},
            "every_ms": 60_000,
            "jitter_ms": 5_000,
            "stale_after_ms": 30_000,
            "priority": -5,
            "max_attempts": 2,
            "enabled": False,
        }
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("add ping a --expect colour=1", "--expect takes loss_pct_max, avg_ms_max"),
        ("add ping a --expect loss_pct_max=200", "0 to 100"),
        ("add http http://a/ --expect loss_pct_max=1", "http has no option expect"),
        ("add ping a --all --count 2", "--all is every agent, --count some"),
        ("add ping a --agent 1 --count 2", "without --label, --all and --count"),
        ("change 1", "say what to change"),
        ("change 1 --once --every 5s", "--once and --every exclude each other"),
        ("change 1 --anybody --all", "--anybody is any agent"),
        ("change 1 --target b:99", "host must be"),
        ("change 1 -o count=0", "count .*1 to 100000"),
        ("pause", "Missing argument 'ID"),
        ("run 0", "Invalid value for 'ID"),
    ],
)
def test_what_makes_no_sense_changes_nothing(
    operator: FakeOperator, words: str, sentence: str
) -> None:
    operator.created.append({"kind": "ping", "targets": ["a"]})
    done = called(*words.split())
    assert done.exit_code == Exit.USAGE
    assert re.search(sentence, done.stderr)
    assert done.stderr.count("\n") == 1
    assert (len(operator.created), operator.changed, operator.orders) == (1, [], [])


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("--every 5m --name x", {"every_ms": 300_000, "name": "x"}),
        ("--once", {"every_ms": None}),
        ("--anybody", {"select": None}),
        ("--agent 7", {"select": {"agents": [7]}}),
        ("--target b --target c", {"targets": ["b", "c"]}),
        ("-o count=3", {"spec": {"count": 3, "ttl": 9, "expect": {"avg_ms_max": 5}}}),
        (
            "--expect loss_pct_max=1",
            {"spec": {"count": 1, "ttl": 9, "expect": {"avg_ms_max": 5, "loss_pct_max": 1.0}}},
        ),
    ],
)
def test_change_sends_what_is_named_and_keeps_the_rest(
    operator: FakeOperator, words: str, changes: dict[str, Any]
) -> None:
    spec = {"count": 1, "ttl": 9, "expect": {"avg_ms_max": 5}}
    operator.created.append({"kind": "ping", "targets": ["a"], "spec": spec})
    done = called("change", "1", *words.split())
    assert done.exit_code == Exit.OK, done.stderr
    assert done.stdout.startswith("check 1 changed: ping ")
    assert operator.changed == [(1, changes)]


def test_pause_resume_run_and_cancel_take_several(operator: FakeOperator) -> None:
    operator.created += [{"kind": "ping", "targets": ["a"]}] * 2
    assert called("pause", "1", "2", "1").stdout == "check 1 is paused\ncheck 2 is paused\n"
    assert called("resume", "2").stdout == "check 2 runs again\n"
    assert operator.changed == [
        (1, {"enabled": False}),
        (2, {"enabled": False}),
        (2, {"enabled": True}),
    ]
    assert called("run", "1").stdout == "check 1 runs now: 2 tasks, 1 skipped\n"
    assert called("cancel", "2").stdout == "check 2 goes on, 1 run cancelled\n"
    assert operator.orders == [(1, "run"), (2, "cancel")]
    as_json = called("run", "1", "--json").stdout
    assert as_json == '{"check_id":1,"tasks":2,"skipped":1}\n'


def test_show_has_every_field_by_its_dotted_name(operator: FakeOperator) -> None:
    operator.created.append({"kind": "ping", "targets": ["a"], "spec": {"expect": {"x": 1}}})
    lines = called("show", "1").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["FIELD", "VALUE"], ["check_id", "1"], ["kind", "ping"], ["targets", '["a"]'],
        ["spec.expect.x", "1"],
    ]  # fmt: skip
    assert called("show", "1", "--json").stdout.startswith('{"check_id":1,')


def test_a_check_that_nobody_can_run_yet_is_told(
    operator: FakeOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def create(check: Any) -> dict[str, Any]:
        return {"check_id": 9, "tasks": 0, **check}

    monkeypatch.setattr(operator, "create_check", create)
    done = called("add", "ping a", "--agent", "nobody")
    assert (done.exit_code, done.stdout) == (Exit.OK, "check 9 added: ping a once\n")
    assert "no agent that it is for is known yet" in done.stderr
