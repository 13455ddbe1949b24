"""How a check is written on the command line."""

from typing import Any

import pytest
from click.testing import CliRunner

from netsonde.cli import operate
from netsonde.cli.checks import parse_check
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
