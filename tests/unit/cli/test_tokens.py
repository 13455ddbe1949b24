"""`netsonde token` and `netsonde audit` against the real API, without sockets."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from netsonde.cli import operate
from netsonde.cli.exits import Exit
from netsonde.cli.options import operator_token
from netsonde.cli.root import main
from netsonde.cli.tokens import SCOPES
from netsonde.errors import ConfigError
from netsonde.server.scopes import Scope
from support.operator_api import LocalOperatorApi
from support.stores import Caller, callers

FILE_TOKEN = "correct-horse-battery"


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalOperatorApi]:
    monkeypatch.delenv("NETSONDE_OPERATOR_TOKEN", raising=False)
    monkeypatch.delenv("NETSONDE_OPERATOR_TOKEN_FILE", raising=False)
    for caller in callers("memory", tmp_path):
        local = LocalOperatorApi(caller)
        monkeypatch.setattr(operate, "OperatorClient", local.client)
        yield local


@pytest.fixture
def guarded(api: LocalOperatorApi) -> LocalOperatorApi:
    api.caller = Caller(api.caller.plane, api.caller.clock, operator_token=FILE_TOKEN)
    return api


def ran(*args: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, args, env=env)


def test_the_scopes_are_the_servers() -> None:
    assert list(SCOPES) == list(Scope)


def test_the_secret_is_all_there_is_on_standard_output(api: LocalOperatorApi) -> None:
    done = ran("token", "create", "ci", "--scope", "read", "--scope", "checks:write")
    assert done.exit_code == Exit.OK, done.output
    token = done.stdout.removesuffix("\n")
    assert token.startswith("nop_")
    assert token.split() == [token]
    assert done.stderr == (
        "netsonde: token 1 allows read, checks:write, for ever; it is not shown again\n"
    )
    assert ran("token", "create", "ci", "--scope", "read").exit_code == Exit.CANNOT, "409"


def test_as_json_it_is_one_object(api: LocalOperatorApi) -> None:
    done = ran("token", "create", "ci", "--scope", "read", "--expires", "90d", "--json")
    (line,) = done.stdout.splitlines()
    made = json.loads(line)
    assert (made["name"], made["scopes"], done.stderr) == ("ci", ["read"], "")
    assert made["expires_at"] > made["created_at"]


def test_a_token_for_new_agents(api: LocalOperatorApi) -> None:
    done = ran(
        "token", "create", "--enrol", "--uses", "3", "--label", "site=ams", "--expires", "2h"
    )
    assert done.stdout.startswith("net_")
    assert "token 1 enrols 3 agents, until " in done.stderr
    assert "enrols one agent, until" in ran("token", "create", "spare", "--enrol").stderr
    listed = ran("token", "list", "--enrol").stdout.splitlines()
    assert listed[0].split() == ["ID", "NAME", "USED", "EXPIRES", "CREATED", "LABELS"]
    assert listed[1].split()[:3] == ["1", "-", "0/3"]
    assert listed[1].endswith("site=ams")
    assert listed[2].split()[:3] == ["2", "spare", "0/1"]
    assert ran("token", "list").stdout.splitlines()[1:] == []


def test_listing_and_revoking(api: LocalOperatorApi) -> None:
    for name in ("a", "b"):
        ran("token", "create", name, "--scope", "read")
    heading, first, _ = ran("token", "list").stdout.splitlines()
    assert heading.split()[:3] == ["ID", "NAME", "SCOPES"]
    assert first.split()[:5] == ["1", "a", "read", "never", "never"]
    done = ran("token", "revoke", "1", "2")
    assert (done.exit_code, done.stdout) == (Exit.OK, "token 1 revoked\ntoken 2 revoked\n")
    done = ran("token", "revoke", "1")
    assert (done.exit_code, done.stdout) == (Exit.USAGE, "")
    assert "there is no operator token 1" in done.stderr
    ran("token", "create", "--enrol")
    assert ran("token", "revoke", "3").exit_code == Exit.USAGE, "it is of the other kind"
    assert json.loads(ran("token", "revoke", "3", "--enrol", "--json").stdout) == {"token_id": 3}
    assert [json.loads(line) for line in ran("token", "list", "--json").stdout.splitlines()] == []


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--scope", "read"], "needs a NAME"),
        (["ci"], "--scope is needed, any of read, checks:write"),
        (["ci", "--scope", "root"], "'root' is not one of"),
        (["ci", "--scope", "read", "--uses", "2"], "--uses and --label are for --enrol"),
        (["--enrol", "--scope", "read"], "leave it or --enrol out"),
        (["--enrol", "--uses", "0"], "0 is not in the range"),
        (["--enrol", "--label", "site"], "--label must be NAME=VALUE"),
        (["--enrol", "--expires", "soon"], "is not a duration"),
        (["--enrol", "--expires", "400d"], "expires_in_ms must be 1000 to"),
        (["loopback", "--scope", "read"], "is what the audit log calls"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    api: LocalOperatorApi, args: list[str], sentence: str
) -> None:
    done = ran("token", "create", *args)
    assert (done.exit_code, done.stdout) == (Exit.USAGE, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


# ── how commands find their token ──


def test_a_file_goes_before_the_environment(guarded: LocalOperatorApi, tmp_path: Path) -> None:
    path = tmp_path / "operator"
    path.write_text(f"{FILE_TOKEN}\n")
    assert ran("agents", "--token-file", str(path)).exit_code == Exit.OK
    assert ran("agents", env={"NETSONDE_OPERATOR_TOKEN_FILE": str(path)}).exit_code == Exit.OK
    assert ran("agents", env={"NETSONDE_OPERATOR_TOKEN": FILE_TOKEN}).exit_code == Exit.OK
    both = {"NETSONDE_OPERATOR_TOKEN_FILE": str(path), "NETSONDE_OPERATOR_TOKEN": "wrong"}
    assert ran("agents", env=both).exit_code == Exit.OK


@pytest.mark.parametrize("env", [{}, {"NETSONDE_OPERATOR_TOKEN": "wrong"}])
def test_without_the_right_one_it_says_where_to_put_it(
    guarded: LocalOperatorApi, env: dict[str, str]
) -> None:
    done = ran("check", "list", env=env)
    assert (done.exit_code, done.stdout) == (Exit.CANNOT, "")
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("netsonde: ")]
    assert "--token-file or NETSONDE_OPERATOR_TOKEN_FILE" in said


def test_a_missing_scope_is_named(guarded: LocalOperatorApi) -> None:
    env = {"NETSONDE_OPERATOR_TOKEN": FILE_TOKEN}
    reader = ran("token", "create", "reader", "--scope", "read", env=env).stdout.strip()
    done = ran("check", "add", "ping", "192.0.2.1", env={"NETSONDE_OPERATOR_TOKEN": reader})
    assert done.exit_code == Exit.CANNOT
    assert "needs the scope checks:write, which the token reader does not have" in done.stderr


def test_what_is_no_token_is_refused_before_it_is_sent() -> None:
    assert operator_token(None, {}) is None
    assert operator_token(None, {"NETSONDE_OPERATOR_TOKEN": " "}) is None
    for text in ("two words", "é", "a\nb", "x" * 5000):
        with pytest.raises(ConfigError, match="must be one token") as caught:
            operator_token(None, {"NETSONDE_OPERATOR_TOKEN": text})
        assert text not in str(caught.value)


# ── audit ──


def test_the_log_is_shown_oldest_first(api: LocalOperatorApi) -> None:
    ran("token", "create", "ci", "--scope", "read")
    ran("check", "add", "ping", "192.0.2.1")
    ran("token", "revoke", "77")
    heading, *lines = ran("audit").stdout.splitlines()
    assert heading.split() == ["AT", "TOKEN", "FROM", "CALL", "OBJECT", "OUTCOME"]
    assert [line.split()[2:] for line in lines] == [
        ["loopback", "127.0.0.1", "POST", "/v1/tokens", "tokens/1", "ci", "201"],
        ["loopback", "127.0.0.1", "POST", "/v1/checks", "checks/1", "201"],
        ["loopback", "127.0.0.1", "DELETE", "/v1/tokens/{id}", "tokens/77", "ERR_NOT_FOUND"],
    ]
    (newest,) = ran("audit", "--json", "-n", "1").stdout.splitlines()
    assert json.loads(newest)["status"] == 404
    assert ran("audit", "--token", "ci", "--json").stdout == ""
    assert ran("audit", "--from", "yesterday").exit_code == Exit.USAGE
