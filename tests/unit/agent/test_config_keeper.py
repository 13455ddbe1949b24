"""Signed configurations on the agent: every way to be refused, and what survives a crash."""

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from msgspec import structs

from netsonde import wire
from netsonde.agent import kept_config
from netsonde.agent.config_applier import ConfigApplier
from netsonde.agent.config_keeper import ASK_NS, FETCH_GAP_NS, FETCH_SPREAD_NS, ConfigKeeper
from netsonde.agent.kept_config import ConfigMemory, Mark
from netsonde.ceiling import Ceiling
from netsonde.clock import NS_PER_S, ManualClock
from netsonde.control_plane import ControlPlaneError, TransportError
from netsonde.control_plane.calls import ConfigAnswer
from netsonde.dsse import PAYLOAD_MAX_BYTES, Envelope, SigningKey, TrustedKeys
from netsonde.errors import ConfigError, StorageError
from netsonde.model import ConfigStatus, HeartbeatRequest, TaskKind
from netsonde.remote_config import Holder, KindValues, RemoteConfig
from support.configs import KEY, OTHER_KEY, document, envelope


class Died(BaseException):
    """The process ends here."""


class Source:
    """Answers with what a test put there, or raises it."""

    def __init__(self) -> None:
        self.answer: bytes | None = None
        self.error: Exception | None = None
        self.asked: list[str | None] = []
        self.tag: str | None = None

    def serve(self, sealed: Envelope, **more: Any) -> None:
        self.answer = json.dumps(document(sealed) | more).encode()

    async def config(self, etag: str | None) -> ConfigAnswer | None:
        self.asked.append(etag)
        if self.error is not None:
            raise self.error
        if self.answer is None:
            return None
        tag = self.tag or f'"{hash(self.answer)}"'
        return ConfigAnswer(None if etag == tag else self.answer, tag)


class Rig:
    """A keeper, what it applied, and the means to end it and begin again."""

    def __init__(self, folder: Path, clock: ManualClock) -> None:
        self.path = folder / "config.json"
        self.clock = clock
        self.boot_id: str | None = "boot-1"
        self.source = Source()
        self.keys: tuple[SigningKey, ...] = (KEY,)
        self.ceiling = Ceiling()
        self.holder = Holder(7, "ams-1", {"site": "ams"})
        self.applied: list[RemoteConfig] = []
        self.on_prepare: Callable[[RemoteConfig], None] = lambda _: None
        self.on_commit: Callable[[RemoteConfig], None] = lambda _: None
        self.keeper = self.made()

    def made(self) -> ConfigKeeper:
        """Begin as a process does."""
        self.applied.clear()
        keys = TrustedKeys(key.public for key in self.keys)
        memory = ConfigMemory(self.path, self.boot_id)
        applier = ConfigApplier(self.clock, memory, keys, self.ceiling)
        applier.prepare = self._prepare
        applier.holder = lambda: self.holder
        self.keeper = ConfigKeeper(self.clock, self.source, applier, Random(3))
        return self.keeper

    def restart(self) -> ConfigKeeper:
        self.made().start()
        return self.keeper

    def _prepare(self, values: RemoteConfig) -> Callable[[], None]:
        self.on_prepare(values)

        def commit() -> None:
            self.on_commit(values)
            self.applied.append(values)

        return commit

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.keeper.run())
            await self.clock.settle()
            yield
            task.cancel()

    async def fetch(self) -> ConfigStatus:
        """Have the keeper look once, and return what it says then."""
        async with self.running():
            status = self.keeper.status()
        assert status is not None
        return status

    async def given(self, *args: Any, **changes: Any) -> ConfigStatus:
        """Have the keeper look once at a configuration."""
        self.source.serve(envelope(*args, **changes))
        return await self.fetch()

    @property
    def concurrency(self) -> int | None:
        """What was applied last."""
        kinds = self.applied[-1].kinds if self.applied else {}
        return kinds[TaskKind.PING].concurrency if TaskKind.PING in kinds else None


@pytest.fixture
def rig(tmp_path: Path, clock: ManualClock) -> Rig:
    rig = Rig(tmp_path, clock)
    rig.keeper.start()
    return rig


def config(concurrency: int) -> dict[str, Any]:
    return {"kinds": {"ping": {"concurrency": concurrency}}}


async def test_a_good_one_is_applied_acknowledged_and_kept(rig: Rig) -> None:
    status = await rig.given(3, config(5))

    assert (status.applied, status.status, status.revision) == (3, "ack", 3)
    assert rig.concurrency == 5
    assert rig.path.stat().st_mode & 0o777 == 0o600
    rig.restart()
    assert rig.concurrency == 5
    again = rig.keeper.status()
    assert again is not None
    assert (again.applied, again.status) == (3, "ack")


async def test_there_is_nothing_to_say_without_one(rig: Rig) -> None:
    async with rig.running():
        assert rig.keeper.status() is None
    assert rig.source.asked == [None]


async def test_a_greater_revision_replaces_it(rig: Rig) -> None:
    await rig.given(3, config(5))
    status = await rig.given(9, config(6))
    assert (status.applied, status.status, rig.concurrency) == (9, "ack", 6)
    rig.restart()
    assert rig.concurrency == 6


# ── refusals ──


def tampered(sealed: Envelope) -> Envelope:
    body = bytearray(base64.b64decode(sealed.payload))
    body[body.index(b"5")] = ord("9")
    return structs.replace(sealed, payload=base64.b64encode(bytes(body)).decode())


GOOD = envelope(9, config(5))
REFUSED: dict[str, Envelope] = {
    "bad_signature": tampered(GOOD),
    "unknown_key": envelope(9, config(5), OTHER_KEY),
    "replayed": envelope(2, config(5)),
    "expired": envelope(9, config(5), expires_s=1),
    "oversize": structs.replace(GOOD, payload="A" * (PAYLOAD_MAX_BYTES * 4 // 3 + 8)),
    "invalid": envelope(9, config(-1)),
    "out_of_scope": envelope(9, config(5), scope={"labels": {"site": "fra"}}),
    "wrong_type": structs.replace(GOOD, payload_type="text/plain"),
    "malformed": structs.replace(GOOD, payload="?"),
}


@pytest.mark.parametrize("reason", REFUSED)
async def test_each_refusal_has_its_reason_and_changes_nothing(rig: Rig, reason: str) -> None:
    await rig.given(3, config(1))
    rig.source.serve(REFUSED[reason], revision="9")
    status = await rig.fetch()

    assert (status.status, status.reason, status.applied) == ("nack", reason, 3)
    assert status.revision == (2 if reason == "replayed" else 9)
    assert status.error
    assert rig.concurrency == 1
    assert rig.keeper.counters[f"nack_{reason}"] == 1
    rig.restart()
    assert rig.concurrency == 1
    later = await rig.given(10, config(2))
    assert (later.status, rig.concurrency) == ("ack", 2)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "malformed"),
        (b"not found", "malformed"),
        (b"[]", "malformed"),
        (b'{"revision":"v1","config":{},"signature":"x"}', "malformed"),
        (b'{"payload":5}', "malformed"),
        (b"[" * 10_000, "malformed"),
        (b" " * (4 << 20), "oversize"),
    ],
)
async def test_what_is_no_envelope_is_refused(rig: Rig, answer: bytes, reason: str) -> None:
    rig.source.answer = answer
    status = await rig.fetch()
    assert (status.status, status.reason, status.applied) == ("nack", reason, None)


@pytest.mark.parametrize("named", [None, "v1", "-1", "9" * 40, 2**60, "²"])
async def test_a_revision_that_nobody_signed_is_only_a_name(rig: Rig, named: Any) -> None:
    rig.source.serve(REFUSED["bad_signature"], revision=named)
    assert (await rig.fetch()).revision is None


async def test_an_agent_without_keys_takes_nothing(rig: Rig) -> None:
    rig.keys = ()
    rig.restart()
    rig.source.serve(GOOD)
    async with rig.running():
        assert rig.keeper.status() is None
        rig.keeper.announce("9")
        await rig.clock.advance(FETCH_GAP_NS + FETCH_SPREAD_NS)
        await rig.clock.advance(3 * ASK_NS)
        status = rig.keeper.status()
    assert status is not None
    assert (status.status, status.reason, status.revision) == ("nack", "unknown_key", 9)
    assert rig.keeper.counters["nack_unknown_key"] == 1, "once is enough"
    assert "trusted_keys" in (status.error or "")
    assert rig.source.asked == []


async def test_keys_are_exchanged_without_touching_agents_twice(rig: Rig) -> None:
    """The agent pins both keys from the beginning; the old one signs no more."""
    rig.keys = (KEY, OTHER_KEY)
    rig.restart()
    assert (await rig.given(1, config(1), KEY)).status == "ack"
    assert (await rig.given(2, config(2), KEY, OTHER_KEY)).status == "ack"
    assert (await rig.given(3, config(3), OTHER_KEY)).status == "ack"
    rig.keys = (OTHER_KEY,)
    rig.restart()
    assert rig.concurrency == 3


async def test_new_signatures_on_the_same_revision_are_kept(rig: Rig) -> None:
    await rig.given(1, config(1), KEY)
    rig.applied.clear()
    status = await rig.given(1, config(1), KEY, OTHER_KEY)
    assert (status.status, rig.applied) == ("ack", [])
    rig.keys = (OTHER_KEY,)
    rig.restart()
    assert rig.concurrency == 1


async def test_what_a_withdrawn_key_has_signed_is_not_applied_again(rig: Rig) -> None:
    await rig.given(5, config(1))
    rig.keys = (OTHER_KEY,)
    rig.restart()
    status = rig.keeper.status()
    assert status is not None
    assert (status.applied, status.reason, rig.applied) == (None, "unknown_key", [])
    assert status.revision == 5, "so that it is told what it was"
    old = await rig.given(4, config(4), OTHER_KEY)
    assert old.reason == "replayed", "who was trusted then counts all the same"


async def test_what_is_kept_is_verified_again(rig: Rig) -> None:
    await rig.given(5, config(5))
    kept = kept_config.load(rig.path)
    assert kept.envelope is not None
    kept_config.save(rig.path, structs.replace(kept, envelope=tampered(kept.envelope)))
    rig.restart()
    status = rig.keeper.status()
    assert status is not None
    assert (status.applied, status.reason, rig.applied) == (None, "bad_signature", [])


# ── two phases, and crashes ──


async def test_what_this_host_cannot_have_is_refused_before_anything_changes(rig: Rig) -> None:
    await rig.given(1, config(1))
    rig.applied.clear()

    def refuse(_: RemoteConfig) -> None:
        raise ConfigError("resolvers: 10.0.0.53 is private")

    rig.on_prepare = refuse
    status = await rig.given(2, config(2))
    assert (status.status, status.reason, status.applied) == ("nack", "invalid", 1)
    assert "10.0.0.53" in (status.error or "")
    assert rig.applied == []
    assert kept_config.load(rig.path).applying is None


async def test_a_bug_in_a_check_costs_the_revision_and_not_the_agent(rig: Rig) -> None:
    await rig.given(1, config(1))

    def fail(_: RemoteConfig) -> None:
        raise ZeroDivisionError("boom")

    rig.on_prepare = fail
    status = await rig.given(2, config(2))
    assert (status.status, status.reason, status.applied) == ("nack", "apply_failed", 1)


async def test_a_failure_puts_back_what_was_in_force(rig: Rig) -> None:
    await rig.given(1, config(1))

    def fail(values: RemoteConfig) -> None:
        if values.kinds[TaskKind.PING].concurrency == 2:
            raise ValueError("boom")

    rig.on_commit = fail
    status = await rig.given(2, config(2))
    assert (status.status, status.reason, status.applied) == ("nack", "apply_failed", 1)
    assert "ValueError: boom" in (status.error or "")
    assert rig.concurrency == 1
    assert kept_config.load(rig.path).applying is None
    rig.on_commit = lambda _: None
    assert (await rig.fetch()).status == "ack", "it is tried again"


async def test_a_revision_that_ended_the_process_is_not_applied_again(rig: Rig) -> None:
    await rig.given(1, config(1))

    def die(_: RemoteConfig) -> None:
        raise Died

    rig.on_commit = die
    rig.source.serve(envelope(2, config(2)))
    with pytest.raises(BaseExceptionGroup):
        await rig.fetch()
    rig.on_commit = lambda _: None
    rig.restart()
    status = rig.keeper.status()
    assert status is not None
    assert (status.status, status.reason, status.revision) == ("nack", "crashed", 2)
    assert (status.applied, rig.concurrency) == (1, 1)
    assert (await rig.fetch()).reason == "crashed"
    rig.restart()
    assert (await rig.fetch()).reason == "crashed", "nor after another restart"
    assert rig.concurrency == 1
    assert (await rig.given(3, config(3))).status == "ack"
    assert kept_config.load(rig.path).crashed == ()


async def died_in(rig: Rig, revision: int) -> None:
    """End the process while a revision is applied."""

    def die(_: RemoteConfig) -> None:
        raise Died

    rig.on_commit = die
    rig.source.serve(envelope(revision, config(revision)))
    with pytest.raises(BaseExceptionGroup):
        await rig.fetch()
    rig.on_commit = lambda _: None


async def test_a_power_cut_in_its_midst_is_not_a_revisions_fault(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.given(1, config(1))
    await died_in(rig, 2)
    rig.boot_id = "boot-2"
    rig.restart()
    status = rig.keeper.status()
    assert status is not None
    assert (status.status, status.applied, rig.concurrency) == ("ack", 1, 1)
    assert "went down while configuration 2 was applied" in caplog.text
    status = await rig.fetch()
    assert (status.status, status.applied, rig.concurrency) == ("ack", 2, 2)
    kept = kept_config.load(rig.path)
    assert (kept.crashed, kept.interrupted, kept.applying) == ((), None, None)


async def test_one_that_was_in_force_outlives_a_power_cut_at_the_start(rig: Rig) -> None:
    await rig.given(1, config(1))

    def die(_: RemoteConfig) -> None:
        raise Died

    rig.on_commit = die
    rig.boot_id = "boot-2"
    with pytest.raises(Died):
        rig.restart()
    rig.on_commit = lambda _: None
    rig.boot_id = "boot-3"
    rig.restart()
    assert rig.concurrency == 1


async def test_one_that_takes_the_host_with_it_is_tried_once_more_and_no_more(rig: Rig) -> None:
    await rig.given(1, config(1))
    await died_in(rig, 2)
    rig.boot_id = "boot-2"
    rig.restart()
    await died_in(rig, 2)
    rig.boot_id = "boot-3"
    rig.restart()
    assert (await rig.fetch()).reason == "crashed"
    assert rig.concurrency == 1


@pytest.mark.parametrize(("before", "after"), [(None, "boot-2"), ("boot-1", None), (None, None)])
async def test_where_boots_have_no_name_it_is_the_revisions_fault(
    rig: Rig, before: str | None, after: str | None
) -> None:
    rig.boot_id = before
    rig.made()
    await died_in(rig, 2)
    rig.boot_id = after
    rig.restart()
    status = rig.keeper.status()
    assert status is not None
    assert (status.status, status.reason, status.revision) == ("nack", "crashed", 2)


async def test_a_power_cut_is_remembered_once_also_by_a_disk_that_is_full(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await died_in(rig, 2)

    def refuse(*_: Any) -> None:
        raise StorageError("cannot write config.json: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(kept_config, "save", refuse)
        for boot in ("boot-2", "boot-3"):
            rig.boot_id = boot
            rig.restart()
    assert (await rig.fetch()).status == "ack"


@pytest.mark.parametrize("damage", ["cut", "signature", "oversize", "type", "key"])
async def test_what_came_broken_is_fetched_again_under_the_same_tag(
    rig: Rig, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A proxy may break an answer and leave its tag: the tag says nothing of what came."""
    sealed = envelope(2, config(5))
    rig.source.serve(sealed)
    assert rig.source.answer is not None
    whole = rig.source.answer
    broken = {
        "cut": lambda: whole[:-20],
        "signature": lambda: json.dumps(document(tampered(sealed))).encode(),
        "oversize": lambda: whole + b" " * 2 * PAYLOAD_MAX_BYTES * 2,
        "type": lambda: json.dumps(document(sealed) | {"payload_type": "text/x"}).encode(),
        "key": lambda: json.dumps(document(envelope(2, config(5), OTHER_KEY))).encode(),
    }[damage]()
    rig.source.tag = '"2"'
    rig.source.answer = broken
    for _ in range(2):
        assert (await rig.fetch()).status == "nack"
    assert caplog.text.count("is refused") == 1, "said once"
    rig.source.answer = whole
    status = await rig.fetch()
    assert (status.status, status.applied, rig.concurrency) == ("ack", 2, 5)
    await rig.fetch()
    assert rig.source.asked == [None, None, None, '"2"']


async def test_a_crash_is_remembered_also_by_a_disk_that_is_full(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.given(1, config(1))
    kept_config.save(rig.path, structs.replace(kept_config.load(rig.path), applying=Mark(2, "d")))

    def refuse(*_: Any) -> None:
        raise StorageError("cannot write config.json: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(kept_config, "save", refuse)
        rig.restart()
    status = rig.keeper.status()
    assert status is not None
    assert (status.reason, status.revision, status.applied) == ("crashed", 2, 1)
    rig.restart()
    assert rig.concurrency == 1


async def test_one_that_ends_the_next_process_is_not_tried_for_ever(rig: Rig) -> None:
    await rig.given(1, config(1))

    def die(_: RemoteConfig) -> None:
        raise Died

    rig.on_commit = die
    with pytest.raises(Died):
        rig.restart()
    rig.on_commit = lambda _: None
    rig.restart()
    status = rig.keeper.status()
    assert status is not None
    assert (status.reason, status.applied, rig.applied) == ("crashed", None, [])


async def test_without_a_disk_nothing_is_applied(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be remembered could be replayed, or crash the agent again and again."""
    save = kept_config.save

    def refuse(*_: Any) -> None:
        raise StorageError("cannot write config.json: No space left on device")

    monkeypatch.setattr(kept_config, "save", refuse)
    status = await rig.given(1, config(1))
    assert (status.reason, status.applied, rig.applied) == ("not_kept", None, [])
    monkeypatch.setattr(kept_config, "save", save)
    assert (await rig.fetch()).status == "ack"


async def test_what_was_in_force_needs_no_disk_to_be_so_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A host whose disk is full when it starts must not forget what it may not measure."""
    await rig.given(3, config(3))

    def refuse(*_: Any) -> None:
        raise StorageError("cannot write config.json: No space left on device")

    with monkeypatch.context() as full:
        full.setattr(kept_config, "save", refuse)
        rig.restart()
        status = rig.keeper.status()
        assert status is not None
        assert (status.applied, status.status, rig.concurrency) == (3, "ack", 3)
        assert "was in force before and is again" in caplog.text
    rig.restart()
    assert rig.concurrency == 3


async def test_every_write_may_fail(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.given(1, config(1))
    save = kept_config.save
    for failing in (1, 2):
        calls = 0

        def faulty(*args: Any, failing: int = failing) -> None:
            nonlocal calls
            calls += 1
            if calls == failing:
                raise StorageError("cannot write config.json: Input/output error")
            save(*args)

        monkeypatch.setattr(kept_config, "save", faulty)
        status = await rig.given(2, config(2))
        assert (status.reason, status.applied, rig.concurrency) == ("not_kept", 1, 1), failing
    monkeypatch.setattr(kept_config, "save", save)
    assert (await rig.fetch()).status == "ack"


async def test_a_damaged_memory_is_moved_aside(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    await rig.given(1, config(1))
    rig.path.write_bytes(rig.path.read_bytes()[:-20])
    rig.restart()
    assert rig.applied == []
    assert rig.path.with_name("config.json.damaged-0").exists()
    assert "damaged" in caplog.text
    assert (await rig.fetch()).status == "ack"


def test_a_memory_that_cannot_be_read_is_told(rig: Rig) -> None:
    rig.path.mkdir()
    with pytest.raises(StorageError, match=r"config\.json"):
        rig.restart()


# ── the ceiling, the end ──


async def test_what_was_lowered_is_told(rig: Rig) -> None:
    rig.ceiling = Ceiling(kinds={TaskKind.PING: KindValues(concurrency=4)})
    rig.restart()
    status = await rig.given(1, config(5))
    assert rig.concurrency == 4
    assert status.clamped == ({"path": "kinds.ping.concurrency", "asked": "5", "applied": "4"},)
    wire.encode(status)
    rig.ceiling = Ceiling()
    rig.restart()
    assert rig.concurrency == 5, "the ceiling is the one of today"


async def test_one_that_expires_stays_and_says_so(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = rig.clock.realtime_ns() // NS_PER_S
    status = await rig.given(1, config(1), expires_s=now_s + 60)
    assert not status.stale
    async with rig.running():
        for _ in range(3):
            await rig.clock.advance(2 * ASK_NS)
        status_later = rig.keeper.status()
    assert status_later is not None
    assert (status_later.applied, status_later.status, status_later.stale) == (1, "ack", True)
    assert rig.concurrency == 1
    stale = [one for one in caplog.records if getattr(one, "action", "") == "config_stale"]
    assert len(stale) == 1
    rig.restart()
    assert rig.concurrency == 1, "also after a restart"
    after = await rig.given(2, config(2))
    assert (after.stale, after.applied) == (False, 2)


# ── when to ask ──


async def test_it_asks_now_and_then_and_names_what_it_has(rig: Rig) -> None:
    rig.source.serve(envelope(1, config(1)))
    async with rig.running():
        for _ in range(3):
            await rig.clock.advance(2 * ASK_NS)
    assert len(rig.source.asked) >= 4
    assert rig.source.asked[0] is None
    assert len(set(rig.source.asked[1:])) == 1
    assert len(rig.applied) == 1


async def test_an_announcement_is_followed_at_once_and_only_once(rig: Rig) -> None:
    async with rig.running():
        rig.source.serve(envelope(1, config(1)))
        rig.keeper.announce("1")
        await rig.clock.advance(FETCH_GAP_NS + FETCH_SPREAD_NS)
        assert (len(rig.source.asked), rig.concurrency) == (2, 1)
        for _ in range(5):
            rig.keeper.announce(1)
            await rig.clock.advance(FETCH_GAP_NS + FETCH_SPREAD_NS)
        assert len(rig.source.asked) == 2


async def test_what_was_lowered_is_told_within_what_a_heartbeat_may_say(rig: Rig) -> None:
    """One word too long and every heartbeat would be refused."""
    rig.ceiling = Ceiling(resolvers=())
    rig.made()
    status = await rig.given(1, {"resolvers": ["fe80::1%" + "a" * 1000]})
    body = wire.encode(HeartbeatRequest(agent_id=7, config=status))
    beat = wire.decode(HeartbeatRequest, body, max_bytes=len(body))
    assert beat.config is not None
    assert beat.config.clamped[0]["applied"] == "left out"


async def test_an_order_to_look_again_is_followed_and_judges_again(rig: Rig) -> None:
    rig.source.serve(envelope(1, config(1)))
    async with rig.running():
        await rig.keeper.refresh()
        await rig.clock.advance(FETCH_GAP_NS + FETCH_SPREAD_NS)
    assert rig.source.asked == [None, None]  # whatever it has, it wants to see it
    assert len(rig.applied) == 1


@pytest.mark.parametrize(
    ("prefixes", "is_here"), [(10, True), (2000, False)], ids=["small", "large"]
)
async def test_what_takes_long_to_judge_does_not_stop_the_loop(
    rig: Rig, prefixes: int, is_here: bool
) -> None:
    """25 000 prefixes stopped it for a second: longer than the margin of a lease's deadline."""
    deny = [f"11.{number >> 8}.{number & 255}.0/24" for number in range(prefixes)]
    judging: list[threading.Thread] = []
    said = asyncio.Event()
    rig.on_prepare = lambda _: judging.append(threading.current_thread())
    rig.keeper.on_verdict = said.set
    rig.source.serve(envelope(1, {"deny": deny}))
    async with rig.running():
        await asyncio.wait_for(said.wait(), 30)
        assert [thread is threading.current_thread() for thread in judging] == [is_here]
        assert [len(values.deny) for values in rig.applied] == [prefixes]
        rig.on_prepare = refuse_all
        said.clear()
        rig.source.serve(envelope(2, {"deny": deny}))
        await rig.keeper.refresh()
        await rig.clock.advance(FETCH_GAP_NS + FETCH_SPREAD_NS)
        await asyncio.wait_for(said.wait(), 30)
        status = rig.keeper.status()
    assert status is not None
    assert (status.applied, status.reason) == (1, "invalid")


def refuse_all(_: RemoteConfig) -> None:
    raise ConfigError("not here")


async def test_whatever_is_announced_it_asks_only_so_often(rig: Rig) -> None:
    async with rig.running():
        for number in range(600):
            rig.keeper.announce(number)
            await rig.clock.advance(NS_PER_S // 10)
        assert len(rig.source.asked) <= 1 + 60 * NS_PER_S // FETCH_GAP_NS


@pytest.mark.parametrize(
    "error",
    [
        TransportError("config", "reset"),
        ControlPlaneError("no", code="ERR_BACKEND", status=500, retryable=True),
    ],
)
async def test_a_failed_fetch_is_tried_again_when_it_is_announced_again(
    rig: Rig, error: Exception
) -> None:
    rig.source.error = error
    async with rig.running():
        rig.keeper.announce("1")
        await rig.clock.advance(FETCH_GAP_NS + FETCH_SPREAD_NS)
        rig.source.error = None
        rig.source.serve(envelope(1, config(1)))
        rig.keeper.announce("1")
        await rig.clock.advance(FETCH_GAP_NS + FETCH_SPREAD_NS)
    assert rig.concurrency == 1
    assert rig.keeper.counters["fetch_failed"] == 2


async def test_a_clock_that_is_set_right_makes_an_expired_one_good(rig: Rig) -> None:
    now_s = rig.clock.realtime_ns() // NS_PER_S
    rig.clock.step_realtime(10**9 * NS_PER_S)
    status = await rig.given(1, config(1), expires_s=now_s + 1000)
    assert status.reason == "expired"
    rig.clock.step_realtime(-(10**9) * NS_PER_S)
    assert (await rig.fetch()).status == "ack"
