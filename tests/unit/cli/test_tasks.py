"""`netsonde task add`, without a server."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from netsonde import wire
from netsonde.cli import operate, task_lines, tasks
from netsonde.cli.exits import Exit
from netsonde.cli.root import main
from netsonde.errors import ControlPlaneError, TransportError
from support.operator import FakeOperator

PING = b'{"kind":"ping","spec":{"host":"192.0.2.1"}}\n'
REFUSED = wire.LineAnswer(2, None, "ERR_VALIDATION", "kind must be \x1b[31mone")


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> FakeOperator:
    api = FakeOperator()
    monkeypatch.setattr(operate, "OperatorClient", api.client)
    return api


def add(*args: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(main, ["task", "add", *args], input=stdin)


def test_a_file_of_lines(operator: FakeOperator, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(PING * 3)
    done = add(str(tmp_path / "t"))
    assert (done.exit_code, done.stdout, done.stderr) == (Exit.OK, "3 tasks added\n", "")
    (upload,) = operator.uploads
    assert upload.lines == dict.fromkeys((1, 2, 3), wire.parse(PING))
    assert len(upload.key) == 36, "a key of its own"


def test_an_array_is_uploaded_item_by_item(operator: FakeOperator, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"[" + PING + b"," + PING + b"]")
    done = add(str(tmp_path / "t"), "--json")
    lines = [wire.parse(line.encode()) for line in done.stdout.splitlines()]
    assert lines == [{"line": 1, "task_id": 1001}, {"line": 2, "task_id": 1002}]
    assert len(operator.uploads[0].lines) == 2


def test_what_is_refused_is_named_by_its_line(operator: FakeOperator, tmp_path: Path) -> None:
    operator.refused = {2: REFUSED}
    (tmp_path / "t").write_bytes(PING + b"\n\n" + PING + PING)
    done = add(str(tmp_path / "t"))
    assert done.exit_code == Exit.USAGE
    assert done.stdout == "2 tasks added, 1 refused\n"
    assert f"{tmp_path}/t:4: ERR_VALIDATION: kind must be \\x1b[31mone" in done.stderr


def test_refusals_as_json_have_the_number_of_the_file(
    operator: FakeOperator, tmp_path: Path
) -> None:
    operator.refused = {2: REFUSED}
    (tmp_path / "t").write_bytes(b"\n" + PING + PING)
    done = add(str(tmp_path / "t"), "--json")
    assert done.exit_code == Exit.USAGE
    assert done.stderr == ""
    first, second = [wire.parse(line.encode()) for line in done.stdout.splitlines()]
    assert first == {"line": 2, "task_id": 1001}
    assert second == {"line": 3, "error": "ERR_VALIDATION", "message": REFUSED.message}


def test_a_line_that_is_too_long_is_not_sent(operator: FakeOperator, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(PING + b"x" * (wire.LINE_MAX_BYTES + 1) + b"\n" + PING)
    done = add(str(tmp_path / "t"))
    assert done.exit_code == Exit.USAGE
    assert ":2: ERR_TOO_LARGE" in done.stderr
    sent = {number for upload in operator.uploads for number in upload.lines}
    assert sent == {1, 2}, "its number is the next one's"


class Drawn:
    """Keeps what a terminal would show."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def show(self, text: str) -> None:
        self.shown.append(text)

    def clear(self) -> None:
        self.shown.append("")


def test_a_terminal_sees_how_far_it_is(
    operator: FakeOperator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Drawn()
    monkeypatch.setattr(tasks, "Progress", lambda: drawn)
    monkeypatch.setattr(task_lines, "PART_LINES", 2)
    operator.refused = {2: REFUSED}
    (tmp_path / "t").write_bytes(PING * 3)
    assert add(str(tmp_path / "t")).exit_code == Exit.USAGE
    assert drawn.shown == ["", "1 task added, 1 refused", "2 tasks added, 1 refused", ""]


@pytest.mark.parametrize(
    "error",
    [
        TransportError("POST /v1/tasks", "connection refused"),
        ControlPlaneError("later", code="ERR_UNAVAILABLE", status=503, retryable=True),
    ],
)
def test_an_upload_that_fails_says_how_to_go_on(
    operator: FakeOperator, tmp_path: Path, error: Exception
) -> None:
    operator.refused = {3: error}
    (tmp_path / "t").write_bytes(PING * 5)
    done = add(str(tmp_path / "t"), "--key", "nightly")
    assert done.exit_code == Exit.CANNOT
    assert "2 tasks added so far; run it again with --key nightly" in done.stderr
    assert operator.uploads[0].key == "nightly"


def test_a_refusal_of_it_all_needs_no_other_try(operator: FakeOperator, tmp_path: Path) -> None:
    operator.refused = {
        1: ControlPlaneError("no token", code="ERR_UNAUTHORIZED", status=401, retryable=False)
    }
    (tmp_path / "t").write_bytes(PING)
    done = add(str(tmp_path / "t"))
    assert done.exit_code == Exit.CANNOT
    assert "--key" not in done.stderr


def test_one_offs_from_options(operator: FakeOperator) -> None:
    done = add(
        "--kind", "tcp", "--target", "192.0.2.1:80", "--target", "[2001:db8::1]:443",
        "-o", "timeout_ms=500", "--agent", "7", "--priority", "-5",
    )  # fmt: skip
    assert (done.exit_code, done.stdout) == (Exit.OK, "2 tasks added\n")
    first, second = operator.uploads[0].lines.values()
    assert (first["kind"], first["agent"], first["priority"]) == ("tcp", 7, -5)
    assert first["spec"] == {"kind": "tcp", "host": "192.0.2.1", "port": 80, "timeout_ms": 500}
    assert second["spec"]["host"] == "2001:db8::1"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "give either FILE"),
        (["--kind", "ping"], "give either FILE"),
        (["--target", "x"], "give either FILE"),
        (["f", "--kind", "ping", "--target", "x"], "give either FILE"),
        (["f", "--target", "x"], "give either FILE"),
        (["f", "--agent", "x"], "belong to --kind"),
        (["f", "-o", "a=b"], "belong to --kind"),
        (["f", "--priority", "0"], "belong to --kind"),
        (["f", "--key", ""], "--key"),
        (["f", "--key", "x" * 256], "--key"),
        (["f", "--key", "\u00fc"], "--key"),
        (["--kind", "ping", "--target", "not a host"], "host"),
        (["--kind", "tcp", "--target", "192.0.2.1:80", "-o", "colour=red"], "colour"),
        (["--kind", "tcp", "--target", "192.0.2.1:80", "-o", "x"], "NAME=VALUE"),
        (["--kind", "pong", "--target", "x"], "pong"),
        (["/no/such/file"], "task file /no/such/file cannot be read"),
        (["/"], "task file / cannot be read"),
    ],
)
def test_what_makes_no_sense_is_refused(operator: FakeOperator, args: list[str], said: str) -> None:
    done = add(*args)
    assert done.exit_code == Exit.USAGE
    assert said in done.stderr
    assert operator.uploads == [] or not operator.uploads[0].lines
