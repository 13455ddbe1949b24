"""`netsonde up` without its processes: which checks, which result counts, when it ends."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from netsonde import wire
from netsonde.cli import starter, up
from netsonde.cli.embedded import LOOPBACK_TARGETS, Embedding
from netsonde.cli.exits import Exit
from netsonde.cli.loop import until
from netsonde.cli.starter import (
    PREFIX,
    Services,
    install,
    named,
    starter_checks,
    unmeasurable,
)
from netsonde.cli.up import exit_of, run_once
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
    ("access", "raw_trace", "missing"),
    [("raw", True, set()), ("datagram", False, {"trace"}), (None, False, {"ping", "trace"})],
)
def test_what_cannot_be_measured_is_named_with_the_grant(
    monkeypatch: pytest.MonkeyPatch, access: str | None, raw_trace: bool, missing: set[str]
) -> None:
    monkeypatch.setattr(starter, "icmp_access", lambda family: access)
    monkeypatch.setattr(starter, "capabilities", lambda: {"raw_trace": raw_trace})
    found = unmeasurable()
    assert set(found) == missing
    for kind, sentence in found.items():
        assert sentence.startswith(kind)
        assert "CAP_NET_RAW" in sentence


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


async def test_once_ends_with_the_last_result(capsys: pytest.CaptureFixture[str]) -> None:
    checks = [
        {"check_id": 1, "targets": ["a"], "name": "x"},
        {"check_id": 2, "targets": ["a", "b"], "name": "y"},
    ]
    results = stream(result(2), result(7), result(1), result(1), result(2, "target_error"))
    assert await run_once(results, checks, as_json=True) == Exit.TARGET_FAILED
    # Somebody else's result and a second one of the same target are not its own.
    ids = [wire.parse(line.encode())["check_id"] for line in capsys.readouterr().out.splitlines()]
    assert ids == [2, 1, 2]


async def test_once_is_bounded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(up, "ONCE_TIMEOUT_S", 0.0)
    checks = [{"check_id": 1, "targets": ["a"], "name": "up: ping a"}]
    assert await run_once(stream(), checks, as_json=True) == Exit.CANNOT
    assert "up: ping a" in capsys.readouterr().err


async def test_nothing_to_measure_is_done_at_once() -> None:
    assert await run_once(stream(), [], as_json=True) == Exit.OK


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
