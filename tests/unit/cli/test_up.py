"""`netsonde up` without its processes: which checks, which result counts, when it ends."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import pytest

from netsonde import wire
from netsonde.cli import starter, up
from netsonde.cli.check_words import parse_check
from netsonde.cli.embedded import LOOPBACK_TARGETS, Embedding
from netsonde.cli.exits import Exit
from netsonde.cli.loop import until
from netsonde.cli.starter import (
    PREFIX,
    Services,
    install,
    named,
    refusal,
    starter_checks,
    unmeasurable,
)
from netsonde.cli.up import Wanted, exit_of, run_once
from netsonde.errors import PrivilegeError
from netsonde.model import TaskKind
from support.operator import FakeOperator

SERVICES = Services("127.0.0.1:8080", "127.0.0.1:5300", "up.netsonde.test")


def result(check_id: int, outcome: str = "ok") -> dict[str, Any]:
    return {
        "check_id": check_id,
        "kind": "tcp",
        "spec": {"kind": "tcp", "host": "127.0.0.1", "port": 80},
        "outcome": outcome,
        "observations": [],
    }


async def stream(*results: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    for each in results:
        yield each
    await asyncio.Event().wait()


def test_the_starters_are_all_five_kinds_and_make_sense() -> None:
    checks = starter_checks(SERVICES)
    assert {check["kind"] for check in checks} == set(TaskKind)
    for check in checks:
        (target,) = check["targets"]
        wire.build_spec(TaskKind(check["kind"]), target, check.get("spec", {}))


@pytest.mark.parametrize(
    ("access", "missing"), [("raw", set()), ("datagram", set()), (None, {"ping", "trace"})]
)
def test_what_cannot_be_measured_is_known(
    monkeypatch: pytest.MonkeyPatch, access: str | None, missing: set[str]
) -> None:
    monkeypatch.setattr(starter, "icmp_access", lambda family: access)
    assert unmeasurable() == missing


def test_a_refusal_names_the_kinds_and_the_grant_once() -> None:
    first, *rest = refusal({"trace", "ping"}).splitlines()
    assert first.startswith("ping and trace left out")
    assert sum("AmbientCapabilities=CAP_NET_RAW" in line for line in rest) == 1


def test_starters_are_left_out_but_what_was_asked_for_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted = Wanted(checks=(), has_starters=True, every_ms=None, as_json=False)
    kept = up._checks(wanted, SERVICES, {TaskKind.PING})
    assert {check["kind"] for check in kept} == set(TaskKind) - {"ping"}
    assert capsys.readouterr().err.startswith("netsonde: ping left out")
    asked = Wanted((parse_check(["ping a"]),), has_starters=True, every_ms=None, as_json=False)
    with pytest.raises(PrivilegeError, match="ping left out"):
        up._checks(asked, SERVICES, {TaskKind.PING})


def test_a_check_of_ups_own_is_named_and_repeated() -> None:
    check = {"kind": "ping", "targets": ["a"]}
    assert named(check, 5000) == check | {"name": f"{PREFIX}ping a", "every_ms": 5000}
    assert "every_ms" not in named(check, None)


async def test_install_replaces_only_its_own() -> None:
    api = FakeOperator()
    api.created = [
        {"kind": "ping", "targets": ["old"], "name": f"{PREFIX}ping old"},
        {"kind": "ping", "targets": ["mine"], "name": "mine"},
        {"kind": "ping", "targets": ["nameless"], "name": None},
    ]
    kept = await install(api, [named({"kind": "tcp", "targets": ["a:1"]}, None)])  # type: ignore[arg-type]
    assert api.removed == [1]
    assert [check["check_id"] for check in kept] == [4]


class Shown:
    """Remembers what was shown."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    async def __call__(self, each: Mapping[str, Any]) -> None:
        self.ids.append(each["check_id"])


async def test_once_ends_with_the_last_result() -> None:
    checks = [
        {"check_id": 1, "targets": ["a"], "name": "x"},
        {"check_id": 2, "targets": ["a", "b"], "name": "y"},
    ]
    results = stream(result(2), result(7), result(1), result(1), result(2, "target_error"))
    shown = Shown()
    assert await run_once(results, checks, shown) == Exit.TARGET_FAILED
    # Somebody else's result and a second one of the same target are not its own.
    assert shown.ids == [2, 1, 2]


async def test_once_is_bounded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(up, "ONCE_TIMEOUT_S", 0.0)
    checks = [{"check_id": 1, "targets": ["a"], "name": "up: ping a"}]
    assert await run_once(stream(), checks, Shown()) == Exit.CANNOT
    assert "up: ping a" in capsys.readouterr().err


async def test_nothing_to_measure_is_done_at_once() -> None:
    assert await run_once(stream(), [], Shown()) == Exit.OK


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        ("ok", Exit.OK),
        ("target_error", Exit.TARGET_FAILED),
        ("rejected", Exit.TARGET_FAILED),
        ("agent_error", Exit.CANNOT),
    ],
)
def test_each_outcome_has_its_code(outcome: str, code: Exit) -> None:
    assert exit_of(result(1, outcome)) == code


def test_a_brief_run_takes_any_port(tmp_path: Path) -> None:
    options: dict[str, Any] = {"listen": None, "operator_listen": None, "allow": ()}
    brief = Embedding.of(tmp_path, is_brief=True, **options)
    assert (brief.listen, brief.operator_listen) == ("127.0.0.1:0", "127.0.0.1:0")
    lasting = Embedding.of(tmp_path, is_brief=False, **options)
    assert (lasting.listen, lasting.operator_listen) == ("127.0.0.1:8080", "127.0.0.1:8090")
    named_port = Embedding.of(tmp_path, is_brief=True, **options | {"listen": "127.0.0.1:9"})
    assert named_port.listen == "127.0.0.1:9"


def test_more_targets_are_added_to_the_loopback(tmp_path: Path) -> None:
    embedding = Embedding.of(
        tmp_path, is_brief=True, listen=None, operator_listen=None, allow=("private",)
    )
    assert embedding.targets == (*LOOPBACK_TARGETS, "private")


async def test_until_returns_what_the_work_returned() -> None:
    async def work() -> int:
        return 7

    assert await until(asyncio.Event(), work()) == 7


async def test_until_stops_the_work() -> None:
    stopped, ended = asyncio.Event(), asyncio.Event()

    async def work() -> bool:
        try:
            stopped.set()
            return await asyncio.Event().wait()
        finally:
            ended.set()

    assert await until(stopped, work()) is None
    assert ended.is_set()


async def test_until_lets_a_failure_out() -> None:
    async def work() -> None:
        raise LookupError("broken")

    with pytest.raises(ExceptionGroup) as caught:
        await until(asyncio.Event(), work())
    assert caught.group_contains(LookupError)
