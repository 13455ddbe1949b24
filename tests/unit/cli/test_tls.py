"""The certificate options of every command that talks to an operator API."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from netsonde.cli import operate
from netsonde.cli.exits import Exit
from netsonde.cli.root import main
from netsonde.control_plane.operator import Page
from netsonde.tls import ClientTls
from support.operator import FakeOperator

COMMANDS = ("agents", "queues", "results", "check list", "check add ping x.test", "check remove 1")
ALL = ClientTls(ca=Path("ca.pem"), certificate=Path("c.pem"), key=Path("c.key"))


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> FakeOperator:
    api = FakeOperator()
    api.pages = [Page((), None)]
    monkeypatch.setattr(operate, "OperatorClient", api.client)
    return api


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_them(operator: FakeOperator, command: str) -> None:
    options = "--server https://x --ca ca.pem --client-cert c.pem --client-key c.key"
    done = CliRunner().invoke(main, [*command.split(), *options.split()])
    assert done.exit_code == Exit.OK, done.output
    assert operator.tls == ALL


def test_the_environment_gives_them_too(operator: FakeOperator) -> None:
    environ = {
        "NETSONDE_OPERATOR_URL": "https://x",
        "NETSONDE_OPERATOR_CA_FILE": "ca.pem",
        "NETSONDE_OPERATOR_CLIENT_CERT_FILE": "c.pem",
        "NETSONDE_OPERATOR_CLIENT_KEY_FILE": "c.key",
    }
    done = CliRunner().invoke(main, ["agents"], env=environ)
    assert done.exit_code == Exit.OK, done.output
    assert operator.tls == ALL


def test_without_them_the_systems_authorities_are_trusted(operator: FakeOperator) -> None:
    assert CliRunner().invoke(main, ["agents"]).exit_code == Exit.OK
    assert operator.tls == ClientTls()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--server https://x --client-cert c.pem", "belong together"),
        ("--server http://x --ca ca.pem", "http://x is not an https:// address"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    operator: FakeOperator, options: str, sentence: str
) -> None:
    done = CliRunner().invoke(main, ["agents", *options.split()])
    assert done.exit_code == Exit.USAGE
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr


def test_files_that_cannot_be_read_are_one_sentence() -> None:
    done = CliRunner().invoke(
        main, ["agents", "--server", "https://127.0.0.1:1", "--ca", "/nowhere/ca.pem"]
    )
    assert done.exit_code == Exit.CANNOT
    assert done.stderr.count("\n") == 1
    assert "/nowhere/ca.pem cannot be read" in done.stderr
