"""The two forms of the log."""

import json
import logging

import pytest

from netsonde.cli.logs import JsonFormatter, TextFormatter, configure


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.getLogger("netsonde.agent").makeRecord(
        "netsonde.agent", logging.WARNING, __file__, 1, message, args, None, extra=extra
    )
    made.created = 1_700_000_000.25
    return made


def test_text_is_one_line_with_the_fields() -> None:
    line = TextFormatter().format(record("lease %d\x1b expired", 7, action="lease_expired", n=1))
    assert line == (
        "2023-11-14T22:13:20.250Z warning lease 7\\x1b expired action=lease_expired n=1"
    )


def test_further_lines_are_indented_so_that_none_looks_like_a_record() -> None:
    forged = "2023-11-14T22:13:20.250Z info all is well"
    _, second = TextFormatter().format(record(f"first\n{forged}")).splitlines()
    assert second == f"    {forged}"


def test_json_is_one_object_with_the_fields() -> None:
    line = JsonFormatter().format(record("x\ny", action="drain", what={"a": 1}))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250000000Z",
        "level": "warning",
        "logger": "netsonde.agent",
        "message": "x\ny",
        "action": "drain",
        "what": "{'a': 1}",
    }


def test_an_exception_is_shown() -> None:
    made = record("x")
    made.exc_info = (ValueError, ValueError("broken"), None)
    assert "ValueError: broken" in TextFormatter().format(made)
    assert "ValueError: broken" in json.loads(JsonFormatter().format(made))["exception"]


@pytest.mark.parametrize(("level", "shown"), [("info", True), ("warning", False)])
def test_the_level_is_netsondes_own(
    capsys: pytest.CaptureFixture[str], level: str, shown: bool
) -> None:
    root, ours = logging.getLogger(), logging.getLogger("netsonde")
    before = (root.handlers[:], root.level, ours.level)
    try:
        configure(level, as_json=True)
        logging.getLogger("netsonde.agent").info("ours")
        logging.getLogger("aiohttp.access").info("theirs")
    finally:
        root.handlers[:], root.level = before[0], before[1]
        ours.setLevel(before[2])
    err = capsys.readouterr().err
    assert ("ours" in err) == shown
    assert "theirs" not in err
